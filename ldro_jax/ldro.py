"""Lookahead-DRO for Optax: the front door.

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
from ldro_jax.weighting import lookahead


def transform(
    num_tasks: int,
    *,
    lookahead_lr: optax.ScalarOrSchedule,
    weight_lr: optax.ScalarOrSchedule | None = None,
    interaction_interval: int | None = None,
    exact: bool = False,
    normalize_interaction: bool = True,
    interaction: str | interaction_base.Interaction = "auto",
    lagged: bool = False,
    floor: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Lookahead-DRO as an Optax gradient transformation; chain it before any optimizer.

    It picks the weights of the task losses :math:`ℓ` so that the worst loss is smallest *after* a
    gradient step, the most even such weights if there are several:

    .. math:: \min_w \max_v v^⊤ (ℓ 1^⊤ − λA) w, \qquad A_{ij} = ⟨∇ℓ_i, ∇ℓ_j⟩,

    by one exponentiated-gradient step of rate η per training step, with A refreshed every k steps.

    Args:
      num_tasks: N.
      lookahead_lr: λ, the size of the step that is looked ahead. A number or an Optax schedule.
      weight_lr: η, the learning rate of the weights. A number or an Optax schedule. Needed unless
        ``exact``. Only the product ηλ moves the weights.
      interaction_interval: k, the number of steps between two measurements of A; by default 100,
        and 1 if ``exact``.
      exact: solve the matrix game anew in every step (Algorithm 1) instead. For problems without
        noise.
      normalize_interaction: divide column j of A by ‖∇ℓ_j‖, as the paper does.
      interaction: how to measure A; see :mod:`ldro_jax.interaction`.
      lagged: with k = 1, use the matrix of the step before, which saves memory.
      floor: share of the weight that is spread evenly over all tasks, in [0, 1].

    Returns:
      An ``optax.GradientTransformationExtraArgs``. Its ``update`` takes task statistics in one of
      four forms, listed at :func:`ldro_jax.transform.weighted`.

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
    if exact:
        weighting = lookahead.exact(lookahead_lr, normalize_interaction=normalize_interaction)
    elif weight_lr is None:
        raise ValueError("weight_lr is needed unless exact=True.")
    else:
        weighting = lookahead.online(
            lookahead_lr, weight_lr, normalize_interaction=normalize_interaction
        )
    return transform_lib.weighted(
        weighting,
        num_tasks,
        interaction=interaction,
        interaction_interval=interaction_interval,
        lagged=lagged,
        floor=floor,
    )


def weights(opt_state: Any) -> jax.Array:
    """The task weights of the last step, ``[N]``, wherever the transformation sits in a chain.

    Args:
      opt_state: the optimizer's state.

    Returns:
      ``[N]``, summing to one.

    Raises:
      ValueError: if the state holds no weighting, or more than one.
    """
    return transform_lib.find_state(opt_state).weights


def interaction(opt_state: Any) -> jax.Array:
    """The last interaction matrix ``⟨∇ℓ_i, ∇ℓ_j⟩``, raw, ``[N, N]``; zeros before the first.

    Args:
      opt_state: the optimizer's state.

    Returns:
      ``[N, N]``.

    Raises:
      ValueError: if the state holds no weighting, or more than one.
    """
    return transform_lib.find_state(opt_state).interaction


def losses(opt_state: Any) -> jax.Array:
    """The last finite loss of each task, ``[N]``; zeros before the first step.

    Args:
      opt_state: the optimizer's state.

    Returns:
      ``[N]``.

    Raises:
      ValueError: if the state holds no weighting, or more than one.
    """
    return transform_lib.find_state(opt_state).losses
