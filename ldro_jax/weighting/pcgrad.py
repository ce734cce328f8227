"""PCGrad: each task's gradient loses what conflicts with the other tasks' gradients.

References:
  Yu, Kumar, Gupta, Levine, Hausman and Finn, *Gradient Surgery for Multi-Task Learning*, NeurIPS
  2020, Algorithm 1.
"""

import functools

import jax
import jax.numpy as jnp

from ldro_jax.runtime import checks
from ldro_jax.weighting import about, base, gram


@about.method(
    about.GRADIENTS,
    weights="projected gradients",
    paper="Yu 2020",
    sums_to="1 or more",
    random=True,
    scale_free=True,
)
def pcgrad(*, seed: int = 0) -> base.Weighting:
    r"""Projects conflicting gradients, computed from the Gram matrix alone.

    Each task starts from its own gradient :math:`g_i^{PC} = g_i` and goes through the other tasks
    in a random order of its own, fresh in every step; wherever :math:`⟨g_i^{PC}, g_j⟩ < 0` it takes
    :math:`⟨g_i^{PC}, g_j⟩ / ‖g_j‖^2 \, g_j` away. All of that stays in the span of the task
    gradients, so only coefficients are computed: the weights are their mean over i. They are not
    negative, at least 1 / N, and may sum to more than one. Without conflicts they are uniform; the
    paper takes the sum instead of the mean, which is N times the learning rate.

    By default the interaction is measured in every step: the projections are meant for the
    gradients of this batch.

    Args:
      seed: of the orders, which are a function of it and of the step.

    Raises:
      ValueError: if the seed is not an integer of 32 bits.
    """
    seed = checks.seed("seed", seed)

    def weights(statistics):
        orders = base.random_orders(seed, statistics)
        projected = coefficients(base.known_interaction(statistics), orders)
        return gram.dot(projected.T, gram.even(statistics))

    return base.stateless(weights, uses_interaction=True)


@functools.partial(jax.jit, inline=True)
def coefficients(interaction: jax.Array, orders: jax.Array) -> jax.Array:
    """The projected gradients as combinations of the task gradients.

    Args:
      interaction: Gram matrix of the task gradients, ``[N, N]``.
      orders: in which order each task goes through the others, int32 ``[N, N]``; a task passes
        itself over.

    Returns:
      C, ``[N, N]``, with :math:`g_i^{PC} = Σ_j C_{ij} g_j`.
    """
    tasks = jnp.arange(interaction.shape[0], dtype=jnp.int32)
    squared_norms = gram.lengths(interaction) ** 2

    def one_task(task, order):
        def project(row, other):
            inner = jnp.dot(row, interaction[:, other], precision=jax.lax.Precision.HIGHEST)
            squared_norm = squared_norms[other]
            # A zero gradient has nothing in conflict, though rounding may say so.
            conflict = (inner < 0) & (squared_norm > 0) & (other != task)
            share = jnp.where(conflict, inner / jnp.where(squared_norm > 0, squared_norm, 1), 0)
            return row.at[other].add(-share), None

        start = (tasks == task).astype(interaction.dtype)
        return jax.lax.scan(project, start, order)[0]

    return jax.vmap(one_task)(tasks, orders)
