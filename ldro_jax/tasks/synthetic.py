"""The paper's two-parameter problem, in which neither the average nor DRO finds the good solution.

Each task is a point of the plane and its loss the squared distance to it. Nine points lie together
and one, the outlier, far from them. The model can't come closer to the outlier than R, so once it
is there, DRO is stuck although the other tasks could still improve at no cost.

References:
  Michel, Ruder and Yogatama, *Balancing Average and Worst-case Accuracy in Multitask Learning*,
  2021, section 4.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ldro_jax.runtime import checks

OUTLIER = (1.0, 0.0)
RADIUS = 1.25


def points(*, num_similar: int = 9, spread: float = 0.1, seed: int = 4) -> np.ndarray:
    """Places the tasks: similar ones near (−1, 0), and the outlier at (1, 0), last.

    Args:
      num_similar: number of similar tasks.
      spread: their standard deviation around (−1, 0).
      seed: of their places.

    Returns:
      Float32 ``[num_similar + 1, 2]``.

    Raises:
      ValueError: if a number is out of range.
    """
    checks.integer("num_similar", num_similar)
    checks.number("spread", spread, "[0, inf)")
    checks.seed("seed", seed)
    rng = np.random.default_rng(seed)
    similar = np.array([-1.0, 0.0]) + spread * rng.normal(size=(num_similar, 2))
    return np.concatenate([similar, [OUTLIER]]).astype(np.float32)


def position(params: jax.Array) -> jax.Array:
    """Where the model with parameters (r, φ) is, ``[2]``: R + r² from the outlier, at angle φ."""
    r, phi = params
    outlier, distance = jnp.asarray(OUTLIER, params.dtype), RADIUS + r**2
    return outlier + distance * jnp.stack([jnp.cos(phi), jnp.sin(phi)])


def task_loss(params: jax.Array, point: jax.Array) -> jax.Array:
    """Squared distance of the model with the parameters (r, φ) from a task's point, ``[2]``."""
    return jnp.sum((position(params) - point) ** 2)
