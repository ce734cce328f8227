"""GradVac: gradients bent towards the cosines that they have on average.

References:
  Wang, Tsvetkov, Firat and Cao, *Gradient Vaccine: Investigating and Improving Multi-task
  Optimization in Massively Multilingual Models*, ICLR 2021.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ldro_jax.runtime import checks
from ldro_jax.weighting import about, base, gram


class CosinesState(NamedTuple):
    """State of :func:`gradvac`: φ̂, the running means of the cosines, ``[N, N]``."""

    cosines: jax.Array


@about.method(
    about.GRADIENTS,
    weights="PCGrad with learned cosines",
    paper="Wang 2021",
    state="cosines",
    sums_to="1 or more",
    random=True,
    scale_free=True,
)
def gradvac(decay: optax.ScalarOrSchedule = 0.5, *, seed: int = 0) -> base.Weighting:
    r"""As PCGrad, but for a target of its own in each pair of tasks.

    Each task starts from its gradient and goes through the others in a random order. Where its
    cosine φ to another is below the running mean φ̂ of that pair, it takes as much of the other's
    gradient as makes it φ̂; then :math:`\hat φ ← (1 − β) \hat φ + β φ`. The weights are means over
    the tasks' bent gradients, 1 / N or more; the paper takes the sum.

    Args:
      decay: β in [0, 1], how fast the targets follow.
      seed: of the orders, which are a function of it and of the step.

    Raises:
      ValueError: if β lies outside [0, 1], or the seed is not an integer of 32 bits.
    """
    base.check_range("decay", decay, "[0, 1]")
    seed = checks.seed("seed", seed)

    def init(num_tasks, dtype=jnp.float32):
        return CosinesState(jnp.zeros((num_tasks, num_tasks), dtype))

    def update(statistics, state):
        # In units of the longest gradient; cosines have none.
        interaction = base.known_interaction(statistics)
        longest = jnp.max(gram.lengths(interaction))
        interaction = interaction / jnp.where(longest > 0, longest, 1) ** 2
        beta = base.value_at(decay, statistics)
        orders = base.random_orders(seed, statistics)
        rows, targets = _bent(interaction, state.cosines, orders, beta)
        return gram.dot(rows.T, gram.even(statistics)), CosinesState(targets)

    return base.Weighting(init, update, uses_interaction=True)


@functools.partial(jax.jit, inline=True)
def _bent(interaction, cosines, orders, beta):
    """The bent gradients as combinations of the task gradients, and the cosines learned."""
    lengths = gram.lengths(interaction)
    tasks = jnp.arange(lengths.size, dtype=jnp.int32)

    def one_task(task, order, targets):
        def bend(carry, other):
            row, targets = carry
            product = gram.dot(interaction, row)
            length = jnp.sqrt(jnp.maximum(row @ product, 0))
            known = (length > 0) & (lengths[other] > 0) & (other != task)
            size = jnp.where(known, length * lengths[other], 1)
            cosine = jnp.clip(product[other] / size, -1, 1)
            target = targets[other]
            sine, target_sine = (jnp.sqrt(jnp.maximum(1 - c * c, 0)) for c in (cosine, target))
            short = known & (cosine < target) & (target_sine > 0)
            step = length * (target * sine - cosine * target_sine)
            step = step / jnp.where(short, lengths[other] * target_sine, 1)
            row = row.at[other].add(jnp.where(short, step, 0))
            moved = (1 - beta) * target + beta * cosine
            return (row, targets.at[other].set(jnp.where(known, moved, target))), None

        start = (tasks == task).astype(interaction.dtype)
        return jax.lax.scan(bend, (start, targets), order)[0]

    return jax.vmap(one_task)(tasks, orders, cosines)
