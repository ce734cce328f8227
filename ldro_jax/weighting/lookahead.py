"""Lookahead-DRO: weights that minimise the worst task loss *after* the gradient step.

To first order a step of size λ on the w-weighted loss takes task i from ``ℓ_i`` to
``ℓ_i − λ Σ_j w_j ⟨∇ℓ_i, ∇ℓ_j⟩``. Choosing w against the worst outcome is a matrix game with payoff
``L = ℓ 1ᵀ − λA``, which :func:`lookahead_exact` solves anew in every step (Algorithm 1 of the
paper) and in which :func:`lookahead_online` takes one exponentiated-gradient step (Algorithms 2 and
3).

References:
  Michel, Ruder and Yogatama, *Balancing Average and Worst-case Accuracy in Multitask Learning*,
  2021.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ldro_jax import games
from ldro_jax.runtime import checks
from ldro_jax.weighting import about, base, gram, products


class ByProductsState(NamedTuple):
    """State of a lookahead that asks for products of the interaction matrix.

    Attributes:
      log_weights: ``[N]``, as in :class:`~ldro_jax.weighting.base.LogWeightsState`.
      held: ``A w`` and the product that the weights follow, ``[2, N]``.
    """

    log_weights: jax.Array
    held: products.Held

    @classmethod
    def initial(cls, num_tasks: int, dtype: Any = jnp.float32) -> "ByProductsState":
        """Even weights, and nothing measured."""
        even = base.uniform_log_state(num_tasks, dtype).log_weights
        return cls(even, products.Held.nothing(2, num_tasks, dtype))


def normalized(interaction: jax.Array) -> jax.Array:
    """Interaction with normalised lookahead steps, :math:`⟨∇ℓ_i, ∇ℓ_j / ‖∇ℓ_j‖⟩`, ``[N, N]``.

    Column j of the Gram matrix is divided by the norm of task j's gradient, which makes λ a
    distance and keeps a stale matrix usable while gradient norms change (appendix A.2 of the
    paper). The column of a task whose gradient is zero, one that has converged, is zero rather than
    0/0.
    """
    norms = gram.lengths(interaction)
    nonzero = norms > 0
    return jnp.where(nonzero[None, :], interaction / jnp.where(nonzero, norms, 1)[None, :], 0)


@about.method(
    about.LOOKAHEAD,
    weights="∝ w exp(ηλ A_{i*}), i* worst after the step",
    paper="Michel 2021",
    state="w",
    usual={"lookahead_lr": 0.1, "weight_lr": 0.5},
    variants={
        "raw": {"lookahead_lr": 0.1, "weight_lr": 0.5, "normalize_interaction": False},
        "relative": {"lookahead_lr": 1.0, "weight_lr": 0.5, "relative": True},
    },
)
def lookahead_online(
    lookahead_lr: optax.ScalarOrSchedule,
    weight_lr: optax.ScalarOrSchedule,
    *,
    relative: bool = False,
    normalize_interaction: bool = True,
) -> base.Weighting:
    r"""Online Lookahead-DRO (Algorithms 2 and 3 of the paper).

    With the best response of the adversary, :math:`i^* = \arg\max_i (ℓ − λAw)_i`, the step is

    .. math:: w_j ∝ w_j \exp(−η (ℓ_{i^*} − λ A_{i^*j})) ∝ w_j \exp(ηλ A_{i^*j}),

    because the loss is the same for every j and cancels in the normalisation. It follows the noise
    of minibatches less than :func:`lookahead_exact`, and A may be refreshed only now and then: by
    default every 100 steps. A task that can't be learnt stays the worst, and on minibatches its
    noise looks like progress, so that it takes the weight of the others.

    Args:
      lookahead_lr: λ, the size of the step that is looked ahead: with the normalised interaction a
        distance in parameter space, otherwise a learning rate.
      weight_lr: η, the learning rate of the weights. Only the product ηλ moves the weights, λ alone
        decides which task is looked at; the paper's grids make ηλ tiny (1e-7 to 1e-3), so try
        larger ones too.
      relative: take both rates relative to the mean loss and the gradients' lengths, so that the
        scale of losses and parameters makes no difference: λ is then the share of the mean loss
        that a step along a gradient of root-mean-square length would remove, to first order. It
        then needs positive losses, as their mean is no unit otherwise.
      normalize_interaction: use :func:`normalized` instead of the raw Gram matrix. On minibatches
        the length of a gradient is mostly that of its noise, unless A is measured on many rows or
        by ``interaction="split"``.

    Raises:
      ValueError: if a rate is negative or not finite.
    """
    base.check_range("weight_lr", weight_lr)
    game = Game(
        lookahead_lr=lookahead_lr,
        relative=relative,
        normalize_interaction=normalize_interaction,
    )

    def direction(statistics, weights):
        eta = base.value_at(weight_lr, statistics)
        expected = base.above_least(statistics) - gram.dot(game.decrease(statistics), weights)
        worst = jnp.argmax(jnp.where(base.known_tasks(statistics), expected, -jnp.inf))
        row = game.step_size(statistics) * game.interaction(statistics)[worst]
        return eta * row / base.mean_loss(statistics) if relative else eta * row

    made = base.exponentiated_gradient(direction, uses_interaction=True)._replace(
        default_interval=100,
        expected_losses=game.expected_losses,
        needs_positive_losses=relative,
    )

    def by_products(statistics, state):
        last = jax.nn.softmax(state.log_weights, where=base.known_tasks(statistics))
        held = game.measured(
            statistics, state.held, last, lambda expected: _one_hot(jnp.argmax(expected), expected)
        )
        step, scale = game.of_products(statistics, held)
        known, started = base.known_tasks(statistics), held.started(squares=game.needs_lengths)
        eta = base.value_at(weight_lr, statistics) * step
        row = jnp.where(started, held.filled()[1] * scale, 0)
        direction = eta * row / base.mean_loss(statistics) if relative else eta * row
        weights, kept = base.after_step(state.log_weights + direction, known)
        return weights, ByProductsState(kept.log_weights, held)

    return made._replace(by_products=products.form(ByProductsState.initial, by_products, made))


def _one_hot(index, like):
    return jax.nn.one_hot(index, like.size, dtype=like.dtype)


@about.method(
    about.LOOKAHEAD,
    weights="equilibrium of the game ℓ1ᵀ − λA",
    paper="Michel 2021",
    usual={"lookahead_lr": 0.1},
    variants={"raw": {"lookahead_lr": 0.1, "normalize_interaction": False}},
    solver="game",
    scale_free=True,
)
def lookahead_exact(
    lookahead_lr: optax.ScalarOrSchedule,
    *,
    relative: bool = False,
    normalize_interaction: bool = True,
) -> base.Weighting:
    """Exact Lookahead-DRO (Algorithm 1 of the paper): the maximum-entropy equilibrium, every step.

    Right when losses and gradients are measured without noise (small or full-batch problems). On
    minibatches the equilibrium jumps with the noise; use :func:`lookahead_online` there. By default
    A is measured in every step. The state counts the steps in which the equilibrium wasn't found.

    Args:
      lookahead_lr: λ, as in :func:`lookahead_online`.
      relative: as in :func:`lookahead_online`.
      normalize_interaction: use :func:`normalized` instead of the raw Gram matrix.

    Raises:
      ValueError: if the rate is negative or not finite.
    """
    game = Game(
        lookahead_lr=lookahead_lr,
        relative=relative,
        normalize_interaction=normalize_interaction,
    )

    def weights(statistics):
        payoff = base.above_least(statistics)[:, None] - game.decrease(statistics)
        equilibrium = games.max_entropy_nash(payoff, base.known_tasks(statistics))
        return equilibrium.weights, equilibrium.solved

    return base.solving(weights)._replace(
        expected_losses=game.expected_losses, needs_positive_losses=relative
    )


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Game:
    """The game whose payoff is the losses after a step; see :func:`lookahead_online`.

    Raises:
      ValueError: if the rate is negative or not finite.
    """

    lookahead_lr: optax.ScalarOrSchedule
    relative: bool
    normalize_interaction: bool

    def __post_init__(self) -> None:
        base.check_range("lookahead_lr", self.lookahead_lr)
        checks.flag("relative", self.relative)
        checks.flag("normalize_interaction", self.normalize_interaction)

    def step_size(self, statistics: base.Statistics, lengths: jax.Array | None = None) -> jax.Array:
        """λ in this step; the gradients' lengths ``[N]`` are by default those of the matrix."""
        step = base.value_at(self.lookahead_lr, statistics)
        if not self.relative:
            return step
        if lengths is None:
            lengths = gram.lengths(base.known_interaction(statistics))
        if statistics.signal is not None:
            # Of the diagonal of what is played: s_i ‖∇ℓ_i‖, or s_i ‖∇ℓ_i‖², squared below.
            scale = statistics.signal if self.normalize_interaction else jnp.sqrt(statistics.signal)
            lengths = lengths * scale
        longest = jnp.max(lengths)
        # The root-mean-square length; squares of lengths may overflow.
        relative = lengths * gram.inverse_or_zero(longest)
        squares = jnp.mean(relative**2, where=base.known_tasks(statistics))
        share = gram.inverse_or_zero(longest * jnp.sqrt(squares))
        step = step * base.mean_loss(statistics) * share
        return step if self.normalize_interaction else step * share

    def interaction(self, statistics: base.Statistics) -> jax.Array:
        """The matrix whose product with the weights is the decrease per λ, ``[N, N]``."""
        matrix = base.known_interaction(statistics)
        matrix = normalized(matrix) if self.normalize_interaction else matrix
        # A row belongs to a loss, a column to a step.
        return matrix if statistics.signal is None else statistics.signal[:, None] * matrix

    def decrease(self, statistics: base.Statistics) -> jax.Array:
        """λA, ``[N, N]``."""
        return self.step_size(statistics) * self.interaction(statistics)

    def expected_losses(self, statistics: base.Statistics, weights: jax.Array) -> jax.Array:
        """The losses after a step with some weights, ``[N]``."""
        # A matrix product in a lower precision (TPU, TF32) would pick another worst task.
        decrease = gram.dot(self.interaction(statistics), weights)
        return statistics.losses - self.step_size(statistics) * decrease

    @property
    def needs_lengths(self) -> bool:
        """Whether it looks at the lengths of the gradients."""
        return self.relative or self.normalize_interaction

    def of_products(
        self, statistics: base.Statistics, held: products.Held
    ) -> tuple[jax.Array, jax.Array]:
        """λ, and what column j of A is multiplied with, ``[N]``, zero where that isn't known."""
        known = base.known_tasks(statistics)
        if not self.needs_lengths:
            return self.step_size(statistics), jnp.where(known, 1.0, 0).astype(held.squares.dtype)
        lengths = jnp.where(known, jnp.sqrt(held.diagonal), 0)
        scale = gram.inverse_or_zero(lengths) if self.normalize_interaction else known
        return self.step_size(statistics, lengths), scale.astype(lengths.dtype)

    def measured(
        self,
        statistics: base.Statistics,
        held: products.Held,
        weights: jax.Array,
        adversary: Callable[[jax.Array], jax.Array],
        *,
        squares: bool = False,
    ) -> products.Held:
        """Asks for ``A w`` and for A times what the adversary makes of the losses after the step.

        Args:
          statistics: of the step.
          held: what is known so far, with these two products.
          weights: w, ``[N]``.
          adversary: from the losses after the step, ``[N]`` above the least of them now and −inf
            for unknown tasks, to its weights.
          squares: ask for A's diagonal even where the game itself doesn't need it.
        """
        step, scale = self.of_products(statistics, held)

        def response(values):
            fall = held._replace(values=values).filled()[0]
            after = base.above_least(statistics) - step * fall
            return adversary(jnp.where(base.known_tasks(statistics), after, -jnp.inf))

        asked = (lambda values: weights * scale, response)
        return statistics.products.measured(held, asked, squares=squares or self.needs_lengths)
