"""The lookahead game with both players regularised.

Lookahead-DRO's game has many equilibria, jumps between them with the noise of a minibatch, and can
put all weight on one task. With a price on leaving the even weights, for both players, it has one
equilibrium, which moves smoothly with losses and gradients.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ldro_jax import games
from ldro_jax.weighting import about, base, lookahead, products

# By products: of the longest step that can't overshoot.
_PART = 0.1


class SmoothState(NamedTuple):
    """State of :func:`smooth_lookahead`.

    Attributes:
      weights: ``[N]``, where the next solution begins.
      unsolved: in how many steps the equilibrium wasn't found, int32.
    """

    weights: jax.Array
    unsolved: jax.Array


@about.method(
    about.LOOKAHEAD,
    weights="the same game, both players regularised",
    paper="ours",
    state="w, to start from",
    usual={"lookahead_lr": 0.1, "temperature": 0.3},
    variants={
        "relative": {
            "lookahead_lr": 3.0,
            "temperature": 0.3,
            "adversary_temperature": 0.1,
            "relative": True,
        }
    },
    solver="convex",
)
def smooth_lookahead(
    lookahead_lr: optax.ScalarOrSchedule,
    temperature: optax.ScalarOrSchedule,
    *,
    adversary_temperature: optax.ScalarOrSchedule | None = None,
    relative: bool = False,
    normalize_interaction: bool = True,
) -> base.Weighting:
    r"""Smooth Lookahead-DRO: :math:`\min_w \max_v v^⊤(ℓ1^⊤ − λA)w + τ KL(w‖u) − σ KL(v‖u)`.

    The adversary v weighs the losses after the step by :math:`\exp((ℓ − λAw) / σ)`; the weights
    answer with :math:`w ∝ \exp(λ A^⊤ v / τ)`. τ, σ → 0 is Lookahead-DRO (Algorithm 1), τ → ∞ the
    average loss. Best with means over steps: ``smoothed(smooth_lookahead(…), 0.99)``. Each solution
    begins at the last.

    By products of A (``interaction="products"``) it isn't solved anew: both players answer once in
    a step, the weights by a part of the way that can't overshoot, so that they follow the
    equilibrium with a delay, which is long for low temperatures.

    Args:
      lookahead_lr: λ, the size of the step that is looked ahead; see
        :func:`ldro_jax.weighting.lookahead_online`, also for ``relative``.
      temperature: τ, the price of uneven weights, in units of the losses; with ``relative``, of
        their mean.
      adversary_temperature: σ, in the same unit; τ if it isn't given.
      relative: take λ, τ and σ relative to the mean loss and the gradients' lengths.
      normalize_interaction: divide column j of A by ‖∇ℓ_j‖.

    Raises:
      ValueError: if a rate is negative or a temperature not positive.
    """
    game = lookahead.Game(
        lookahead_lr=lookahead_lr,
        relative=relative,
        normalize_interaction=normalize_interaction,
    )
    base.check_range("temperature", temperature, "(0, inf)")
    if adversary_temperature is None:
        adversary_temperature = temperature
    base.check_range("adversary_temperature", adversary_temperature, "(0, inf)")

    def init(num_tasks, dtype=jnp.float32):
        return SmoothState(base.uniform_state(num_tasks, dtype).weights, jnp.zeros([], jnp.int32))

    def update(statistics, state):
        unit = base.mean_loss(statistics) if relative else jnp.ones((), statistics.losses.dtype)
        equilibrium = games.smooth_equilibrium(
            base.above_least(statistics) / unit,
            game.decrease(statistics) / unit,
            column_temperature=base.value_at(temperature, statistics),
            row_temperature=base.value_at(adversary_temperature, statistics),
            start=state.weights,
            playing=base.known_tasks(statistics),
        )
        unsolved = base.with_failure(state.unsolved, equilibrium.solved)
        return equilibrium.weights, SmoothState(equilibrium.weights, unsolved)

    made = base.Weighting(
        init,
        update,
        uses_interaction=True,
        expected_losses=game.expected_losses,
        needs_positive_losses=relative,
    )

    def by_products(statistics, state):
        known = base.known_tasks(statistics)
        unit = base.mean_loss(statistics) if relative else jnp.ones((), statistics.losses.dtype)
        column = base.value_at(temperature, statistics)
        row = base.value_at(adversary_temperature, statistics)
        held = game.measured(
            statistics,
            state.held,
            jax.nn.softmax(state.log_weights, where=known),
            lambda after: jax.nn.softmax(after / unit / row, where=known),
            squares=True,
        )
        step, scale = game.of_products(statistics, held)
        lengths = jnp.where(known, jnp.sqrt(held.diagonal), 0)
        # No entry of λA is larger, so that a step of this size overshoots nowhere; a part of it,
        # since products are noisy.
        largest = step * jnp.max(lengths) * jnp.max(lengths * scale) / unit
        share = _PART * column / (column + largest**2 / (4 * row))
        answer = step * held.filled()[1] * scale / unit / column
        logits = state.log_weights + share * (answer - state.log_weights)
        logits = jnp.where(held.started(squares=True), logits, state.log_weights)
        weights, kept = base.after_step(logits, known)
        return weights, lookahead.ByProductsState(kept.log_weights, held)

    asking = products.form(lookahead.ByProductsState.initial, by_products, made)
    return made._replace(by_products=asking)
