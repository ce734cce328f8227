"""GO4Align: tasks whose losses are alike form groups, and those of a group share a weight.

References:
  Shen, Wang, Xiao, van Noord and Worring, *GO4Align: Group Optimization for Multi-Task Alignment*,
  NeurIPS 2024.
"""

import functools
import math

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ldro_jax.runtime import checks
from ldro_jax.weighting import about, base


@about.method(
    about.SCALES,
    weights="means of groups of (Σℓ/ℓ)p",
    paper="Shen 2024",
    state="p",
    sums_to="",
    usual={"num_groups": 2, "risk_lr": 0.1},
)
def go4align(num_groups: int, *, risk_lr: optax.ScalarOrSchedule) -> base.Weighting:
    r"""The means of groups of :math:`(Σ_k ℓ_k / ℓ_i) \, p_i`, where :math:`p ∝ p \exp(−β ℓ)`.

    The first factor brings the losses to one scale; p remembers which tasks are ahead. The groups
    are those of k-means: the authors' program searches for them from a random start, here they are
    the division with the least sum of squares, which numbers on a line allow to find. The sum of
    the losses is that of the program, too; the paper has their mean, and weights an N-th of these.
    The weights sum to what the indicators do, which is N where all losses are the same. The method
    needs positive losses, and the weight of a task whose loss can be made zero grows without limit.

    Args:
      num_groups: K, how many groups there may be; fewer where there are fewer different tasks. The
        paper's are 2 for 3 tasks, 5 for 11.
      risk_lr: β, in units of one over a loss, 1e-4 in the authors' program. In a step p moves by β
        times the difference of two losses, so it has to be smaller where losses are larger or
        training is longer: with losses 100 apart, 1e-4 shifts p by a factor e every 100 steps. With
        0 p stays even.

    Raises:
      ValueError: if K is not a positive integer, or β is negative or not finite.
    """
    num_groups = checks.integer("num_groups", num_groups)
    base.check_range("risk_lr", risk_lr)

    def init(num_tasks, dtype=jnp.float32):
        return base.LogWeightsState(jnp.full(num_tasks, -math.log(num_tasks), dtype))

    def update(statistics, state):
        known, losses = base.known_tasks(statistics), base.positive_losses(statistics)
        step = base.value_at(risk_lr, statistics) * statistics.losses
        log_shares = jax.nn.log_softmax(state.log_weights - step, where=known)
        total = jnp.sum(losses, where=known)
        indicators = total / losses * jnp.exp(log_shares)
        weights = group_means(indicators, num_groups, known)
        return weights, base.log_weights_state(log_shares, known)

    return base.Weighting(init, update, needs_positive_losses=True)


@functools.partial(jax.jit, static_argnames="num_groups", inline=True)
def group_means(values: jax.Array, num_groups: int, counted: jax.Array | None = None) -> jax.Array:
    """Replaces each value by the mean of its group.

    The groups are those with the least sum of squared distances to their means, found by dynamic
    programming over the values in order. Equal values are never divided.

    Args:
      values: ``[N]``, not negative.
      num_groups: how many groups there may be at most.
      counted: which values count, bool ``[N]``; all by default.

    Returns:
      ``[N]``, zero for a value that doesn't count.
    """
    size = values.size
    if counted is None:
        counted = jnp.ones(size, bool)
    largest = jnp.max(values, where=counted, initial=0)
    # At the largest value, and so in its group, the others make no difference.
    values = jnp.where(counted, values, largest)
    places = jnp.argsort(values)
    ordered, ones = values[places], counted[places].astype(values.dtype)
    relative = ordered / jnp.where(largest > 0, largest, 1)
    # The squares of a group are those between all its pairs over its size, which are sums without
    # cancellation: of pairs that begin at its first value or later, and end at its last or before.
    pairs = jnp.triu((relative[:, None] - relative[None, :]) ** 2) * ones[:, None] * ones[None, :]
    pairs = lax.cumsum(lax.cumsum(pairs, axis=0, reverse=True), axis=1)
    first, last = jnp.arange(size)[:, None], jnp.arange(size)[None, :]
    before = jnp.append(0, jnp.cumsum(ones))
    counts = jnp.maximum(before[None, 1:] - before[:-1, None], 1)
    differs = jnp.append(True, relative[1:] > relative[:-1])
    costs = jnp.where((first <= last) & differs[:, None], pairs / counts, jnp.inf)

    def add_group(best, _):
        # best[j] is the least cost of the j lowest values with the groups so far.
        totals = best[:-1, None] + costs
        return best.at[1:].set(jnp.min(totals, axis=0)), jnp.argmin(totals, axis=0)

    def take_group(end, firsts):
        begin = jnp.where(end > 0, firsts[end - 1], 0)
        return begin, begin

    none = jnp.full(size + 1, jnp.inf, values.dtype).at[0].set(0)
    _, firsts = lax.scan(add_group, none, length=min(num_groups, size))
    _, begins = lax.scan(take_group, jnp.asarray(size, firsts.dtype), firsts, reverse=True)
    groups = jnp.cumsum(jnp.zeros(size, jnp.int32).at[begins].set(1)) - 1
    sizes = jnp.maximum(jax.ops.segment_sum(ones, groups, size), 1)
    # Divided before the sum, which could overflow.
    means = jax.ops.segment_sum(ones * ordered / sizes[groups], groups, size)
    return jnp.zeros_like(values).at[places].set(ones * means[groups])
