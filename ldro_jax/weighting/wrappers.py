"""Wrappers of a weighting: running means of what it sees or gives, and limits on what it gives."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ldro_jax.weighting import base, gram
from ldro_jax.weighting.signal import by_signal


def _of_both_forms(wrapper: Callable[..., base.Weighting]) -> Callable[..., base.Weighting]:
    """Wraps the form by products of a weighting as well, where it has one."""

    @functools.wraps(wrapper)
    def wrap(weighting, *args, **options):
        made = wrapper(weighting, *args, **options)
        if weighting.by_products is None:
            return made
        return made._replace(by_products=wrapper(weighting.by_products, *args, **options))

    return wrap


@_of_both_forms
def with_floor(weighting: base.Weighting, floor: optax.ScalarOrSchedule) -> base.Weighting:
    """Mixes the weights with even ones of the same sum: ``(1 − floor) w + floor Σ|w| / N``.

    Keeps every task in training when the weights would collapse onto a few. The weighting's own
    state is left as it is.

    Args:
      weighting: what to wrap.
      floor: share of the weight that is spread evenly, in [0, 1]; a number or an Optax schedule.

    Raises:
      ValueError: if ``floor`` is a number outside [0, 1].
    """
    base.check_weighting(weighting)
    base.check_range("floor", floor, "[0, 1]")

    def update(statistics, state):
        weights, state = weighting.update(statistics, state)
        share, weighed = base.value_at(floor, statistics), _weighed(statistics, weights)
        even = jnp.mean(jnp.abs(weights), where=weighed)
        return (1 - share) * weights + jnp.where(weighed, share * even, 0), state

    return weighting._replace(update=update)


def _weighed(statistics, weights):
    """The known tasks, and the others too where the method has fixed weights for them."""
    return base.known_tasks(statistics) | (weights != 0)


def wrapped(
    weighting: base.Weighting,
    *,
    smoothing: float,
    signal_power: optax.ScalarOrSchedule | None,
    total: float | None,
    floor: float,
) -> base.Weighting:
    """The weighting with the options that every method has.

    These are those of :func:`smoothed` (0 for none), :func:`~ldro_jax.weighting.by_signal` (0 or
    ``None`` for none), :func:`rescaled` (``None`` for what the method says) and :func:`with_floor`.
    """
    base.check_range("smoothing", smoothing, "[0, 1)")
    if isinstance(smoothing, jax.Array) or smoothing > 0:
        weighting = smoothed(weighting, smoothing)
    # Outside of the means, since it has its own, over measurements.
    if signal_power is not None:
        base.check_range("signal_power", signal_power)
        if has_signal(signal_power):
            weighting = by_signal(weighting, signal_power)
    if total is not None:
        weighting = rescaled(weighting, total)
    return with_floor(weighting, floor)


def has_signal(signal_power: Any) -> bool:
    """Whether losses are scaled by this power of the signal, which may be a schedule."""
    is_number = not (callable(signal_power) or isinstance(signal_power, jax.Array))
    return signal_power is not None and not (is_number and signal_power == 0)


class SmoothedState(NamedTuple):
    """State of :func:`smoothed`.

    Attributes:
      losses: decaying sum of the losses, ``[N]``.
      interaction: decaying sum of the interactions, ``[N, N]``; ``None`` if they aren't used.
      noise: decaying sum of the gradients' variances, ``[N]``; ``None`` if they aren't used.
      total: decaying sum of ones over the steps in which a task was known, ``[N]``, by which the
        others are divided.
      inner: state of the weighting.
    """

    losses: jax.Array
    interaction: jax.Array | None
    noise: jax.Array | None
    total: jax.Array
    inner: Any


@_of_both_forms
def smoothed(weighting: base.Weighting, decay: optax.ScalarOrSchedule) -> base.Weighting:
    """Shows a weighting the running means of losses and interactions instead of this step's.

    What is measured on a minibatch is mostly noise, and a weighting that answers to it at once
    follows the noise. Products of the interaction matrix that a weighting asks for stay as they
    are: each is with another vector. So does an interaction of which a weighting keeps means itself
    (:func:`signal`, :func:`by_signal`); smooth what is inside :func:`by_signal` there.

    Args:
      weighting: what to wrap.
      decay: of the exponential means, in [0, 1): 0.9 averages over about ten steps. They are
        corrected for their start from zero. A number or an Optax schedule.

    Raises:
      ValueError: if ``decay`` is a number outside [0, 1).
    """
    base.check_weighting(weighting)
    base.check_range("decay", decay, "[0, 1)")
    all_of_it = not weighting.keeps_means

    def init(num_tasks, dtype=jnp.float32):
        square = jnp.zeros((num_tasks, num_tasks), dtype)
        noise = jnp.zeros(num_tasks, dtype)
        return SmoothedState(
            losses=jnp.zeros(num_tasks, dtype),
            interaction=square if weighting.uses_interaction and all_of_it else None,
            noise=noise if weighting.uses_noise and all_of_it else None,
            total=jnp.zeros(num_tasks, dtype),
            inner=weighting.init(num_tasks, dtype),
        )

    def update(statistics, state):
        keep = base.value_at(decay, statistics)

        known = base.known_tasks(statistics)
        both = known[:, None] & known[None, :]

        def mean(old, new):
            return jnp.where(both if new.ndim == 2 else known, keep * old + (1 - keep) * new, 0)

        total = mean(state.total, jnp.ones_like(state.total))
        # Tasks stay known, so two are known together since the later of them is.
        totals = {1: total, 2: jnp.minimum(total[:, None], total[None, :])}
        new = state._asdict()
        names = [name for name in ("losses", "interaction", "noise") if new[name] is not None]
        for name in names:
            new[name] = mean(new[name], getattr(statistics, name))

        def corrected(sums):
            total = totals[sums.ndim]
            return sums / jnp.where(total > 0, total, 1)

        seen = statistics._replace(**{name: corrected(new[name]) for name in names})
        weights, inner = weighting.update(seen, state.inner)
        return weights, SmoothedState(**new | {"total": total, "inner": inner})

    return weighting._replace(init=init, update=update)


class AveragedState(NamedTuple):
    """State of :func:`averaged`.

    Attributes:
      weights: the mean weights, ``[N]``.
      known: which tasks they are of, bool ``[N]``; none before the first step.
      inner: state of the weighting.
    """

    weights: jax.Array
    known: jax.Array
    inner: Any


@_of_both_forms
def averaged(weighting: base.Weighting, decay: optax.ScalarOrSchedule) -> base.Weighting:
    """Running means of the weights, ``w ← decay · w + (1 − decay) ŵ``, from the first step's.

    A task that becomes known later begins with its weight of that step, and the others' means are
    brought to the sum of theirs, so that it gets the room that the method gives it.

    Args:
      weighting: what gives ŵ.
      decay: in [0, 1); a number or an Optax schedule.

    Raises:
      ValueError: if ``decay`` is a number outside [0, 1).

    References:
      Zhou, Zhang, Jiang, Zhong, Gu and Zhu, *On the Convergence of Stochastic Multi-Objective
      Gradient Manipulation and Beyond* (CR-MOGM), NeurIPS 2022.
    """
    base.check_weighting(weighting)
    base.check_range("decay", decay, "[0, 1)")

    def init(num_tasks, dtype=jnp.float32):
        uniform = jnp.full(num_tasks, 1 / num_tasks, dtype)
        none = jnp.zeros(num_tasks, bool)
        return AveragedState(uniform, none, weighting.init(num_tasks, dtype))

    def update(statistics, state):
        weights, inner = weighting.update(statistics, state.inner)
        known, keep = base.known_tasks(statistics), base.value_at(decay, statistics)
        old = known & state.known
        last, sizes = jnp.where(old, state.weights, 0), jnp.where(old, jnp.abs(weights), 0)
        room = jnp.sum(sizes) * gram.inverse_or_zero(jnp.sum(jnp.abs(last)))
        # Without a new task the sum is left as it is, not only the same up to rounding.
        last = last * jnp.where((known & ~state.known).any(), room, 1)
        weights = jnp.where(old, keep * last + (1 - keep) * weights, weights)
        return weights, AveragedState(weights, known, inner)

    return weighting._replace(init=init, update=update)


def normalized_gradients(weighting: base.Weighting) -> base.Weighting:
    """Weighs the gradients' directions: the weighting sees cosines instead of inner products.

    Its weights, which are those of unit vectors, are divided by the gradients' lengths, and made to
    sum to what they did. A task whose gradient is zero has none.
    """
    base.check_weighting(weighting)

    def update(statistics, state):
        matrix = base.known_interaction(statistics)
        seen = statistics._replace(interaction=gram.cosines(matrix))
        weights, state = weighting.update(seen, state)
        weights = jnp.where(base.known_tasks(statistics), weights, 0)
        lengths = gram.lengths(matrix)
        inverse = gram.inverse_or_zero(lengths)
        plain = weights * inverse * gram.inverse_or_zero(jnp.max(inverse))
        total = jnp.sum(plain)
        plain = plain * jnp.where(total != 0, jnp.sum(weights) / jnp.where(total != 0, total, 1), 0)
        return jnp.where(total != 0, plain, weights), state

    return weighting._replace(
        update=update, uses_interaction=True, expected_losses=None, by_products=None
    )


@_of_both_forms
def clipped(weighting: base.Weighting, lower: float = 0.0, upper: float = 1.0) -> base.Weighting:
    """Keeps each weight between two limits; what they sum to may change, see :func:`rescaled`.

    Args:
      weighting: what to wrap.
      lower: limit from below; 0 leaves out negative weights.
      upper: limit from above, not below the lower one.

    Raises:
      ValueError: if a limit is negative, or the upper one is below the lower.
    """
    base.check_weighting(weighting)
    base.check_range("lower", lower)
    base.check_range("upper", upper, f"[{lower}, inf]")

    def update(statistics, state):
        weights, state = weighting.update(statistics, state)
        limited = jnp.clip(weights, lower, upper)
        return jnp.where(_weighed(statistics, weights), limited, 0), state

    return weighting._replace(update=update)


@_of_both_forms
def rescaled(weighting: base.Weighting, total: float = 1.0) -> base.Weighting:
    """Makes the sizes of the weights sum to a number, so that methods share one learning rate.

    Sizes are absolute values. Weights of one sign then sum to the number; where signs differ, as
    they may for IMTL-G, ConFIG and Aligned-MTL, they sum to less. Where all are zero, even ones
    take their place.

    Args:
      weighting: what to wrap.
      total: of the absolute values of the weights, positive.

    Raises:
      ValueError: if ``total`` is not positive.
    """
    base.check_weighting(weighting)
    base.check_range("total", total, "(0, inf)")

    def update(statistics, state):
        weights, state = weighting.update(statistics, state)
        weights = jnp.where(_weighed(statistics, weights), weights, 0)
        # Divided twice, because a sum of large weights overflows.
        largest = jnp.max(jnp.abs(weights))
        relative = weights * gram.inverse_or_zero(largest)
        scaled = total * relative * gram.inverse_or_zero(jnp.sum(jnp.abs(relative)))
        # Not where one isn't finite: that must show.
        return jnp.where(largest == 0, total * gram.even(statistics), scaled), state

    return weighting._replace(update=update)
