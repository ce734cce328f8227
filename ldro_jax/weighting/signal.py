r"""Weights by signal: how much of a task's minibatch gradient is its true gradient.

The squared minibatch gradient of task i is on average :math:`\|∇ℓ_i\|^2 + σ_i^2`, with σ_i² the
variance of that gradient. Its share that is signal,

.. math:: s_i = \frac{\|∇ℓ_i\|^2}{\|∇ℓ_i\|^2 + σ_i^2},

is near one for a task that a step moves where its rows point to, and near zero for one that can't
be learnt, or is learnt already: its minibatch gradients are noise. It has no unit, so that losses
of different size don't matter. :func:`signal` weighs by s alone. :func:`by_signal` shows losses
``ℓ·s`` to another weighting, which then looks for what is high *and* can be gained.

Both parts are measured without bias by two halves of a task's rows, ``interaction="split"``. The
minibatch's own squared gradient would count its noise as signal.

What this is a case of: :math:`s = 1 / (1 + B_{noise} / B)`, with B rows of a task in a batch and
the simple gradient noise scale :math:`B_{noise} = σ_{row}^2 / \|∇ℓ\|^2` of McCandlish et al. By
their model of the loss, the best step along one task's minibatch gradient is s times the best step
along its true gradient: ``w ∝ s`` gives each task that share of a step, as if tasks didn't
interact. PiKE moves weights along the same two numbers, with one rate for each in units of the
losses; s is their ratio and needs no rate. GradNorm evens out the lengths of gradients, noise
included. As all s come near one, on large batches, what is left is the average loss, or the
weighting inside.

What s doesn't tell is whether a task gets better in the end. Where others move the outputs of a
task that can't be learnt away from its best guess, there is a true gradient back to it, and signal.

References:
  Efron and Morris, *Data Analysis Using Stein's Estimator and its Generalizations*, JASA 1975.
  McCandlish, Kaplan, Amodei and the OpenAI Dota Team, *An Empirical Model of Large-Batch Training*,
  2018.
  Li, Deng, Zhong, Razaviyayn and Mirrokni, *PiKE: Adaptive Data Mixing for Large-Scale Multi-Task
  Learning Under Low Gradient Conflicts*, NeurIPS 2025.
  Chen, Badrinarayanan, Lee and Rabinovich, *GradNorm: Gradient Normalization for Adaptive Loss
  Balancing in Deep Multitask Networks*, ICML 2018.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ldro_jax.runtime import checks, leaves
from ldro_jax.weighting import about, base

# The least share. A square measured as zero or less says that there is little signal, not that
# there is none, and a task without weight would not be trained until there is.
_LEAST = 1e-3

# Steps between two measurements, where the weighting inside makes none of its own.
_INTERVAL = 20


class SignalState(NamedTuple):
    """State of :func:`signal` and :func:`by_signal`.

    Attributes:
      squares: decaying sum of the squared true gradients as they were measured, ``[N]``.
      noise: the same sum of the variances, ``[N]``.
      total: the same sum of ones, ``[N]``, zero for a task that was never measured.
      moments: the same sums of the shares that single measurements had, but for what all tasks had
        in common, and of their squares, ``[2, N]``.
      size: the same sum of how large the measurements were, ``[N]``.
      part: the variance of a share, as a part of that of a single measurement's, ``[N]``.
      last: what was measured last, squares and variances, ``[2, N]``.
      inner: state of the weighting inside.
    """

    squares: jax.Array
    noise: jax.Array
    total: jax.Array
    moments: jax.Array
    size: jax.Array
    part: jax.Array
    last: jax.Array
    inner: Any = ()


def signal_shares(state: Any) -> jax.Array | None:
    """The shares that are signal so far, ``[N]``; NaN for a task that was never measured.

    They are the ratios of the means, as they are before they are drawn together.

    Args:
      state: of an optimizer, or a part of it, which :func:`signal` or :func:`by_signal` is in.

    Returns:
      ``None`` if there is none of these.
    """
    found = next(iter(leaves.of_type(state, SignalState)), None)
    if found is None:
        return None
    return jnp.where(found.total > 0, _ratio(found.squares, found.noise), jnp.nan)


def _initial(num_tasks: int, dtype: Any = jnp.float32) -> SignalState:
    nothing = jnp.zeros(num_tasks, dtype)
    two = jnp.zeros((2, num_tasks), dtype)
    return SignalState(nothing, nothing, nothing, two, nothing, nothing, two)


def _shares(statistics: base.Statistics, state: SignalState, decay: Any):
    """The signal shares of this step, how sure they are, and the state with what was measured."""
    noise: Any = statistics.noise
    measured = 'the variance of each task\'s gradient, as interaction="split" measures it'
    checks.require(noise is not None, "statistics.noise", measured, noise)
    known, keep = base.known_tasks(statistics), base.value_at(decay, statistics)
    square, variance = jnp.diagonal(statistics.interaction), jnp.maximum(noise, 0)
    seen = jnp.stack([square, variance])
    # What stays from an earlier step would count once for each step that it stays. A matrix that
    # lags behind doesn't say what in it is new.
    fresh = statistics.fresh
    new = known & ((seen != state.last).any(axis=0) if fresh is None else fresh)

    def mean(old, value):
        return jnp.where(jnp.broadcast_to(new, old.shape), keep * old + (1 - keep) * value, old)

    # Sums from zero are too small at first, all by the same factor. A square may be negative, and
    # only its mean is cut off: cut off one by one, they would have a bias.
    single = _apart(jnp.sign(square) * _ratio(jnp.abs(square), variance), state, new)
    size = mean(state.size, jnp.maximum(jnp.abs(square), variance))
    # Means are weighed by size: one large measurement among small ones decides alone.
    rest = jnp.where(size > 0, keep * state.size / jnp.where(size > 0, size, 1), 0)
    state = state._replace(
        squares=mean(state.squares, square),
        noise=mean(state.noise, variance),
        total=mean(state.total, 1),
        moments=mean(state.moments, jnp.stack([single, single**2])),
        size=size,
        part=jnp.where(new, rest**2 * state.part + (1 - rest) ** 2, state.part),
        last=jnp.where(new[None], seen, state.last),
    )
    raw = _ratio(state.squares, state.noise)
    shares, sure = _drawn_together(raw, state, known)
    return jnp.maximum(shares, _LEAST), sure, state


def _apart(single: jax.Array, state: SignalState, new: jax.Array) -> jax.Array:
    """A measurement's shares, ``[N]``, without what moves all of them off their means together.

    Tasks that share their rows are all off in the same direction, and so are all tasks while a
    model learns. How tasks compare is known more surely than any of their shares, as long as they
    are measured in the same steps: otherwise each has a part of its own in what is common.
    """
    before, total = state.total > 0, state.total
    count = jnp.sum(before, dtype=single.dtype)
    most, least = jnp.max(total), jnp.min(jnp.where(before, total, jnp.inf))
    together = (new | ~before).all() & (least > 0.99 * most) & (count > 1)
    mean = state.moments[0] / jnp.where(before, total, 1)
    off = single - mean
    common = jnp.sum(off, where=before) / jnp.maximum(count, 1)
    # What is left of N independent errors without their mean has (N - 1) / N of their variance.
    off = jnp.sqrt(count / jnp.maximum(count - 1, 1)) * (off - common)
    return jnp.where(before & together, mean + off, single)


def _ratio(square: jax.Array, variance: jax.Array) -> jax.Array:
    """The square by the sum of both, which could overflow; zero where it isn't positive."""
    positive = square > 0
    return jnp.where(positive, 1 / (1 + variance / jnp.where(positive, square, 1)), 0)


def _drawn_together(shares, state, known):
    """The shares drawn to their mean, the more the less surely they differ: James and Stein's way.

    Where measurements of one task differ as much from each other as tasks do, all have the mean.
    How much is left of their differences, in [0, 1], is returned as well, ``[N]``.
    """
    told = known & (state.total > 0)
    count = jnp.sum(told, dtype=shares.dtype)
    average = jnp.sum(shares, where=told) / jnp.maximum(count, 1)
    across = jnp.sum((shares - average) ** 2, where=told) / jnp.maximum(count - 1, 1)
    total, part = jnp.where(told, state.total, 1), state.part
    again = told & (part < 0.999)
    first, second = (moment / total for moment in state.moments)
    spread = jnp.maximum(second - first**2, 0) / jnp.where(again, 1 - part, 1)
    spread = jnp.sum(spread, where=again) / jnp.maximum(jnp.sum(again, dtype=shares.dtype), 1)
    tells = told & again.any() & (across > 0)
    doubt = jnp.minimum(spread * part / jnp.where(across > 0, across, 1), 1)
    sure = jnp.where(tells, 1 - doubt, 0)
    shares = jnp.where(tells, average + sure * (shares - average), average)
    return jnp.where(count > 0, shares, 1), sure


@about.method(
    about.MIXTURES,
    weights="∝ s^p exp(t ℓs^p/max), s = ‖∇ℓ‖²/(‖∇ℓ‖² + σ²)",
    paper="ours",
    state="means of ‖∇ℓ‖², σ²",
    variants={"squared": {"power": 2.0}, "tilted": {"tilt": 1.0}},
    scale_free=True,
)
def signal(
    power: optax.ScalarOrSchedule = 1.0,
    *,
    tilt: optax.ScalarOrSchedule | None = None,
    decay: optax.ScalarOrSchedule = 0.97,
) -> base.Weighting:
    r""":math:`w_i ∝ s_i^p \exp(t\, ℓ_i s_i^p / \max_j ℓ_j s_j^p)`, by the share that is signal.

    Without a tilt t it doesn't look at the losses. With one, more weight goes where most can still
    be gained, up to :math:`e^t` times as much; losses must then be positive. As long as shares
    aren't known well enough to tell tasks apart, it is the average loss with or without a tilt.

    It asks for ``interaction="split"`` by default, every 20 steps, best on more rows than a batch
    has (``interaction_rows``); σ² is always that of the training batch, where the trainer measures.
    Shares are drawn to their mean, and the tilt is reduced, as far as measurements of one task
    differ from each other, beyond what all tasks do together, like those of different tasks: few
    rows make weights even and not wild, and the first measurement alone says nothing. A share is at
    least 0.001. The weighting's ``update`` raises ``ValueError`` if the variance isn't measured.

    Args:
      power: p; 0 without a tilt is the average loss.
      tilt: t; none by default.
      decay: of the means over measurements, in (0, 1). What counts is the ratio of the means.

    Raises:
      ValueError: if a number is out of range.
    """
    base.check_range("power", power)
    if tilt is not None:
        base.check_range("tilt", tilt)
    base.check_range("decay", decay, "(0, 1)")

    def update(statistics, state):
        shares, sure, state = _shares(statistics, state, decay)
        known = base.known_tasks(statistics)
        # Logarithms, since a high power underflows.
        logits = base.value_at(power, statistics) * jnp.log(shares)
        if tilt is not None:
            gains = jnp.log(base.positive_losses(statistics)) + logits
            gains = jnp.exp(gains - jnp.max(gains, where=known, initial=-jnp.inf))
            gains = jnp.where(known, gains, 0)
            mean = jnp.sum(gains) / jnp.maximum(base.number_known(statistics), 1)
            # Where nothing is sure, a task is neither ahead nor behind.
            logits += base.value_at(tilt, statistics) * (mean + sure * (gains - mean))
        return jax.nn.softmax(logits, where=known), state

    return base.Weighting(
        _initial,
        update,
        uses_interaction=True,
        uses_noise=True,
        keeps_means=True,
        needs_positive_losses=tilt is not None,
        default_interaction="split",
        default_interval=_INTERVAL,
    )


def by_signal(
    weighting: base.Weighting,
    power: optax.ScalarOrSchedule = 1.0,
    *,
    decay: optax.ScalarOrSchedule = 0.97,
) -> base.Weighting:
    r"""Shows a weighting the losses ``ℓ·s^p``, so that it looks for what can still be gained.

    For weightings that look for the worst loss, now or after a step: a task that can't be learnt
    keeps a high loss, and without this all the weight. The weights that come out are those of the
    tasks' own losses. ``statistics.signal`` tells the weighting the factor.

    The losses after a step of size λ along :math:`Σ_j w_j ∇ℓ_j`, with s held constant, are

    .. math:: s_i^p ℓ_i − λ s_i^p Σ_j A_{ij} w_j,

    so that L-DRO and smooth L-DRO look at :math:`\operatorname{diag}(s^p) (ℓ − λAw)`: rows of A
    are scaled like the losses, its columns, and the lengths that they are divided by, are those of
    the step that is taken. The matrix itself is shown as measured, and any other weighting uses it
    as it is. So are the losses that a lookahead is recorded to expect.

    Where all tasks have the same share, losses are smaller by it: rates in the unit of the losses
    are in that of ``ℓ·s^p``, and ``relative=True`` makes no difference of it. Losses must be
    positive, as those below zero would look worse the less they can be learnt. It measures as
    :func:`signal` does, or as often as the weighting does itself, and can't do with products of A.

    Args:
      weighting: what to wrap.
      power: p; 0 is the weighting itself.
      decay: of the means over measurements, in (0, 1).

    Raises:
      ValueError: if a number is out of range.
    """
    base.check_weighting(weighting)
    base.check_range("power", power)
    base.check_range("decay", decay, "(0, 1)")

    def init(num_tasks, dtype=jnp.float32):
        return _initial(num_tasks, dtype)._replace(inner=weighting.init(num_tasks, dtype))

    def update(statistics, state):
        shares, _, state = _shares(statistics, state, decay)
        factor = shares ** base.value_at(power, statistics)
        excess = None if statistics.excess is None else statistics.excess * factor
        seen = statistics._replace(losses=statistics.losses * factor, excess=excess, signal=factor)
        weights, inner = weighting.update(seen, state.inner)
        return weights, state._replace(inner=inner)

    own = weighting.default_interval if weighting.uses_interaction else _INTERVAL
    return weighting._replace(
        init=init,
        update=update,
        uses_interaction=True,
        uses_noise=True,
        keeps_means=True,
        needs_positive_losses=True,
        default_interaction="split",
        default_interval=own,
        by_products=None,
    )
