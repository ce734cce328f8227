"""Lookahead-DRO for Optax: the front door.

Example::

  from ldro_jax import ldro

  tx = optax.chain(
      ldro.transform(num_tasks=20, lookahead_lr=0.01, weight_lr=0.1, interaction_interval=100),
      optax.sgd(0.025, momentum=0.9, nesterov=True),
  )
  updates, opt_state = tx.update(None, opt_state, params, loss_fn=loss_fn, batch=batch)
"""

from typing import Any

import jax
import optax

from ldro_jax import transform as transform_lib
from ldro_jax.interaction import base as interaction_base
from ldro_jax.measuring.means import Rows, task_means
from ldro_jax.measuring.trained import moved_by, only
from ldro_jax.runtime import checks
from ldro_jax.transform.averaging import averaged, evaluated
from ldro_jax.transform.diagnostics import diagnose
from ldro_jax.transform.preconditioner import preconditioner
from ldro_jax.transform.statistics import statistics
from ldro_jax.transform.tap import tap
from ldro_jax.weighting import base as weighting_base
from ldro_jax.weighting import lookahead, smooth
from ldro_jax.weighting.regularized_dro import regularized_dro
from ldro_jax.weighting.signal import signal, signal_shares

__all__ = [
    "Rows",
    "averaged",
    "diagnose",
    "evaluated",
    "interaction",
    "losses",
    "moved_by",
    "only",
    "preconditioner",
    "signal_shares",
    "statistics",
    "tap",
    "task_means",
    "transform",
    "weights",
]


# Of the default: how much more, as a logarithm, the task weighs on which most can be gained.
_TILT = 1.0


def transform(
    num_tasks: int,
    *,
    lookahead_lr: optax.ScalarOrSchedule | None = None,
    weight_lr: optax.ScalarOrSchedule | None = None,
    interaction_interval: int | None = None,
    exact: bool = False,
    temperature: optax.ScalarOrSchedule | None = None,
    adversary_temperature: optax.ScalarOrSchedule | None = None,
    relative: bool = False,
    normalize_interaction: bool = True,
    interaction: str | interaction_base.Interaction = "auto",
    lagged: bool = False,
    smoothing: float = 0.0,
    signal_power: optax.ScalarOrSchedule | None = None,
    total: float | None = None,
    floor: float = 0.0,
    trainable: Any = None,
    shared: Any = None,
) -> transform_lib.Weighted:
    r"""Lookahead-DRO as an Optax gradient transformation; chain it before any optimizer.

    It picks the weights of the task losses :math:`ℓ` so that the worst loss is smallest *after* a
    gradient step, the most even such weights if there are several:

    .. math:: \min_w \max_v v^⊤ (ℓ 1^⊤ − λA) w, \qquad A_{ij} = ⟨∇ℓ_i, ∇ℓ_j⟩,

    by one exponentiated-gradient step of rate η per training step, with A refreshed every k steps.

    Losses are compared as they are: of tasks with losses of different size it sees the largest. And
    it looks for the worst task, not for the one that can still improve: a task that can't be learnt
    keeps the weight that others could use, more so with the minibatch's A, whose diagonal is mostly
    noise. See "Before you use it" in docs/choose.md.

    Given no rates, ``ldro.transform(num_tasks)``, it does something simpler that needs none, for
    mixtures in which some tasks can't be learnt: :func:`ldro_jax.weighting.signal` with a tilt of
    1, which measures how much of each task's gradient is signal on two halves of its batch every 20
    steps. Tasks that are hard but not hopeless may fall behind with it. It needs ``loss_fn`` and
    ``batch`` with an even number of rows of each task, or a ``losses_fn`` that returns
    :class:`Rows`; and losses above zero. Few rows say little: 64 of each task or more, in
    ``interaction_batch`` where the batch has fewer, are what it was tried on.

    Args:
      num_tasks: N.
      lookahead_lr: λ, the size of the step that is looked ahead. A number or an Optax schedule.
        Without it nothing is looked ahead: with ``temperature`` σ, and optionally ``weight_lr`` ρ,
        this is KL-regularised group DRO, :func:`ldro_jax.weighting.regularized_dro`.
      weight_lr: η, the learning rate of the weights. A number or an Optax schedule. Needed with
        ``lookahead_lr`` unless ``exact`` or a temperature is given. Only the product ηλ moves the
        weights.
      interaction_interval: k, the number of steps between two measurements of A; by default 100, 1
        if ``exact`` or a temperature is given, and 20 without rates.
      exact: solve the matrix game anew in every step (Algorithm 1) instead. For problems without
        noise.
      temperature: τ; makes it smooth Lookahead-DRO, whose game has one equilibrium that moves
        smoothly with losses and gradients, solved anew in every step: see
        :func:`ldro_jax.weighting.smooth_lookahead`.
      adversary_temperature: σ, of its adversary; τ if it isn't given.
      relative: take the rates relative to the mean loss and the gradients' lengths, so that they
        don't depend on the scale of losses and parameters. It needs positive losses.
      normalize_interaction: divide column j of A by ‖∇ℓ_j‖, as the paper does.
      interaction: how to measure A; see :mod:`ldro_jax.interaction`.
      lagged: with k = 1, use the matrix of the step before, which saves memory.
      smoothing: decay of the running means of losses and A that the weights are chosen from, such
        as 0.99; 0 for none. Solving the game in every step follows the noise of minibatches.
      signal_power: p, looks at ``ℓ·s^p`` in the place of the losses, so that a task that can't be
        learnt counts for little: s is the share of its squared gradient that is no noise. A is then
        measured by "split" by default. Without it the losses are taken as they are; without rates
        it is 1. See :func:`ldro_jax.weighting.by_signal`.
      total: what the weights are made to sum to; one by default.
      floor: share of the weight that is spread evenly over all tasks, in [0, 1].
      trainable: the parameters that are trained and counted in A, where others are frozen: a tree
        of bools like them, such as :func:`moved_by` makes, or a function from them to it.
      shared: the parameters that A counts, in the same way; by default those that several tasks
        share, where that can be found out: see :func:`ldro_jax.transform.weighted`.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. Its ``update`` is told of the tasks by keyword
      arguments: ``loss_fn`` and ``batch`` (and ``interaction_batch``); or ``losses_fn``, which may
      return :class:`Rows` (and ``interaction_fn`` or ``features_fn``); or ``losses`` and
      ``pullback`` (and ``interaction_fn``); or ``losses``, with the stacked task gradients as
      ``updates``. With any of them may come ``present`` and ``excess``, and ``preconditioner``
      where the weighting itself measures. :func:`ldro_jax.transform.weighted` says what each must
      be.

    Raises:
      TypeError: if ``num_tasks`` is not a Python integer.
      ValueError: if an argument is out of range or missing.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from ldro_jax import ldro
      >>> inputs = jax.random.normal(jax.random.key(0), (3, 8, 2))  # [task, example, feature]
      >>> batch = {"x": inputs, "y": inputs @ jnp.array([1.0, -1.0])}
      >>> def loss_fn(params, task_batch):
      ...     return jnp.mean((task_batch["x"] @ params - task_batch["y"]) ** 2)
      >>> tx = optax.chain(
      ...     ldro.transform(num_tasks=3, lookahead_lr=0.1, weight_lr=0.1), optax.sgd(0.1)
      ... )
      >>> params = jnp.zeros(2)
      >>> opt_state = tx.init(params)
      >>> @jax.jit
      ... def step(params, opt_state, batch):
      ...     updates, opt_state = tx.update(
      ...         None, opt_state, params, loss_fn=loss_fn, batch=batch
      ...     )
      ...     return optax.apply_updates(params, updates), opt_state
      >>> for _ in range(50):
      ...     params, opt_state = step(params, opt_state, batch)
      >>> bool(jnp.abs(params - jnp.array([1.0, -1.0])).max() < 1e-2)
      True
      >>> ldro.weights(opt_state).shape
      (3,)

    References:
      Michel, Ruder and Yogatama, *Balancing Average and Worst-case Accuracy in Multitask Learning*,
      2021.
    """
    checks.flag("exact", exact)
    kinds = {
        "weight_lr": weight_lr is not None,
        "temperature": temperature is not None,
        "exact": exact,
    }
    given = [name for name, is_given in kinds.items() if is_given]
    options: dict[str, Any] = {
        "relative": relative,
        "normalize_interaction": normalize_interaction,
    }
    named = given if adversary_temperature is None else [*given, "adversary_temperature"]
    if lookahead_lr is None and not named:
        if relative or not normalize_interaction:
            raise ValueError(
                "relative and normalize_interaction are of a lookahead: give lookahead_lr as well. "
                "Without rates nothing depends on them."
            )
        if signal_power is not None:
            weighting_base.check_range("signal_power", signal_power)
        weighting = signal(1.0 if signal_power is None else signal_power, tilt=_TILT)
        signal_power = None
    elif lookahead_lr is None:
        if temperature is None or exact or adversary_temperature is not None:
            raise ValueError(
                "Without lookahead_lr, temperature is needed, and optionally weight_lr; or none of "
                f"them, for what needs no rates. Given: {', '.join(named)}."
            )
        rate = 0.1 if weight_lr is None else weight_lr
        weighting = regularized_dro(temperature, rate=rate, relative=relative)
    elif len(given) != 1 or (temperature is None and adversary_temperature is not None):
        raise ValueError(
            "One of these is needed: weight_lr, or temperature (and adversary_temperature), or "
            f"exact=True. Given: {', '.join(named) or 'none of them'}."
        )
    elif exact:
        weighting = lookahead.lookahead_exact(lookahead_lr, **options)
    elif temperature is not None:
        options["adversary_temperature"] = adversary_temperature
        weighting = smooth.smooth_lookahead(lookahead_lr, temperature, **options)
    else:
        assert weight_lr is not None
        weighting = lookahead.lookahead_online(lookahead_lr, weight_lr, **options)
    return transform_lib.weighted(
        weighting,
        num_tasks,
        interaction=interaction,
        interaction_interval=interaction_interval,
        lagged=lagged,
        smoothing=smoothing,
        signal_power=signal_power,
        total=total,
        floor=floor,
        trainable=trainable,
        shared=shared,
    )


def weights(opt_state: Any) -> jax.Array:
    """The task weights of the last step, ``[N]``, wherever the transformation sits in a chain.

    Raises:
      ValueError: if the state holds no weighting, or more than one.
    """
    return transform_lib.find_state(opt_state).weights


def interaction(opt_state: Any) -> jax.Array:
    """The last interaction matrix ``⟨∇ℓ_i, ∇ℓ_j⟩``, raw, ``[N, N]``; zeros before the first.

    Raises:
      ValueError: if the state holds no weighting, or more than one.
    """
    return transform_lib.find_state(opt_state).interaction


def losses(opt_state: Any) -> jax.Array:
    """The last finite loss of each task, ``[N]``; zeros before the first step.

    Raises:
      ValueError: if the state holds no weighting, or more than one.
    """
    return transform_lib.find_state(opt_state).losses
