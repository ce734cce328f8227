"""What a weighting asks of the interaction matrix A when it has products in its place.

A method that needs only a few products ``A v`` says so with a second form of itself,
:attr:`~ldro_jax.weighting.base.Weighting.by_products`. Its ``update`` finds :class:`Asking` in
``statistics.products`` and keeps what it was told in its state, as :class:`Held`::

    asked = (lambda values: weights, lambda values: one_hot(worst_after(values[0])))
    held = statistics.products.measured(state.held, asked)

Where one product is measured in each step, in turn, the others are what they were last.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ldro_jax.runtime import conditions
from ldro_jax.weighting import base, gram

# Of the mean of the squared lengths, each of which is an estimate from one random direction.
_DECAY = 0.99
# Share of the way to a corner of the simplex that one step takes.
_LONGEST = 0.1


class Held(NamedTuple):
    """What is known of A, in the state of a weighting.

    Attributes:
      values: the products asked for, ``[D, N]``; NaN for what has never been measured.
      vectors: what A was multiplied with, ``[D, N]``.
      squares: decaying sums of the estimates of two terms of A's diagonal, ``[2, N]``.
      total: the same sum of ones, ``[N]``, zero for a task of which there is none.
      unmeasured: how often what was measured of each task was not finite, int32 ``[N]``, counting
        each product. One that underflows to zero isn't counted.
    """

    values: jax.Array
    vectors: jax.Array
    squares: jax.Array
    total: jax.Array
    unmeasured: jax.Array

    @classmethod
    def nothing(cls, count: int, num_tasks: int, dtype: Any) -> "Held":
        """Before anything is measured of ``count`` products."""
        zeros = jnp.zeros(num_tasks, dtype)
        return cls(
            jnp.full((count, num_tasks), jnp.nan, dtype),
            jnp.zeros((count, num_tasks), dtype),
            jnp.zeros((2, num_tasks), dtype),
            zeros,
            jnp.zeros(num_tasks, jnp.int32),
        )

    def known(self, *, squares: bool = False) -> jax.Array:
        """The tasks of which all was measured, with ``squares`` these as well, bool ``[N]``."""
        known = jnp.isfinite(self.values).all(axis=0)
        return known & (self.total > 0) if squares else known

    def started(self, *, squares: bool = False) -> jax.Array:
        """Whether all that is asked for was measured for some tasks, bool."""
        return self.known(squares=squares).any()

    def filled(self) -> jax.Array:
        """The products, ``[D, N]``, with the mean of the others where one isn't known."""
        known = jnp.isfinite(self.values)
        count = jnp.maximum(known.sum(axis=1, keepdims=True, dtype=self.values.dtype), 1)
        mean = jnp.sum(jnp.where(known, self.values, 0), axis=1, keepdims=True) / count
        return jnp.where(known, self.values, mean)

    @property
    def diagonal(self) -> jax.Array:
        """A's diagonal, ``[N]``: the squared lengths of a batch's gradients, their noise included.

        Few estimates say little, so the means begin at that of all tasks.
        """
        known = self.total > 0
        count = jnp.maximum(jnp.sum(known, dtype=self.total.dtype), 1)
        means = self.squares / jnp.where(known, self.total, 1)[None, :]
        of_all = jnp.sum(jnp.where(known[None, :], means, 0), axis=1, keepdims=True) / count
        first, second = self.squares + (1 - self.total)[None, :] * of_all
        return jnp.maximum(first, 0) + second


Asked = Callable[[jax.Array], jax.Array]


class Asking(NamedTuple):
    """How a weighting asks for products with A in one step.

    Attributes:
      times: ``v [N] -> A v [N]``, and which tasks there were rows of, bool ``[N]``.
      squares: ``key -> [2, N]``, estimates of two terms of A's diagonal, and with them which tasks
        there were rows of, and whether they are exact: see :class:`ldro_jax.interaction.Products`.
      present: the tasks in the batch, bool ``[N]``.
      due: whether anything is measured in this step, bool.
      turn: how often something was due before, int32.
      in_turn: whether one product is measured at a time, a Python bool.
    """

    times: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    squares: Callable[[jax.Array], tuple[jax.Array, jax.Array, bool]]
    present: jax.Array
    due: jax.Array | bool = True
    turn: jax.Array | int = 0
    in_turn: bool = False

    def measured(self, held: Held, asked: Sequence[Asked], *, squares: bool = False) -> Held:
        """Measures what is due.

        Args:
          held: what is known so far.
          asked: for each of the D products the v to multiply A with, as a function of the D
            products ``[D, N]`` as they are known by then.
          squares: whether A's diagonal is asked for, too.

        Returns:
          What is known now. Of absent tasks, and where something isn't finite, it is what it was.
        """
        count = len(asked)
        if not self.in_turn:

            def all_of_them():
                now = held
                for number, vector in enumerate(asked):
                    now = self._product(now, number, vector(now.values))
                return self._squares(now) if squares else now

            return conditions.cond(self.due, all_of_them, lambda: held)

        def one_of_them():
            number = self._number(count, squares)

            def product():
                vectors = jnp.stack([v(held.values) for v in asked])
                return self._product(held, number, vectors[number])

            if not squares:
                return product()
            if not count:
                return self._squares(held)
            return conditions.cond(number == count, lambda: self._squares(held), product)

        return conditions.cond(self.due, one_of_them, lambda: held)

    def _number(self, count: int, squares: bool) -> jax.Array:
        """Which of ``count`` products is measured now, int32; ``count`` itself for the squares.

        First the squares, which others may need. After the first round the order is random: in a
        fixed one a task that comes every third step might always meet the same of three.
        """
        turn = jnp.asarray(self.turn, jnp.int32)
        first = jnp.roll(jnp.arange(count + squares, dtype=jnp.int32), int(squares))
        key = jax.random.fold_in(jax.random.key(1), turn // first.size)
        order = jnp.where(turn < first.size, first, jax.random.permutation(key, first))
        return order[turn % first.size]

    def _product(self, held: Held, number: Any, vector: jax.Array) -> Held:
        vector = jnp.where(self.present, vector, 0)
        product, there = self.times(vector)
        there &= self.present
        finite = jnp.isfinite(product)
        values = jnp.where(there & finite, product.astype(held.values.dtype), held.values[number])
        lost = (there & ~finite).astype(jnp.int32)
        return held._replace(
            values=held.values.at[number].set(values),
            vectors=held.vectors.at[number].set(vector.astype(held.vectors.dtype)),
            unmeasured=held.unmeasured + lost,
        )

    def _squares(self, held: Held) -> Held:
        key = jax.random.fold_in(jax.random.key(0), jnp.asarray(self.turn, jnp.int32))
        estimates, there, exact = self.squares(key)
        there &= self.present
        finite = jnp.isfinite(estimates).all(axis=0)
        new = there & finite
        decay = 0.0 if exact else _DECAY

        def mean(old, value):
            taken = jnp.broadcast_to(new, old.shape)
            return jnp.where(taken, decay * old + (1 - decay) * value, old).astype(old.dtype)

        lost = (there & ~finite).astype(jnp.int32)
        return held._replace(
            squares=mean(held.squares, estimates),
            total=mean(held.total, jnp.ones_like(held.total)),
            unmeasured=held.unmeasured + lost,
        )


def nothing_to_ask(num_tasks: int, dtype: Any) -> Asking:
    """Zeros for all that is asked for; a pytree without leaves but those that are arrays."""
    present = jnp.ones(num_tasks, bool)
    squares = jnp.zeros((2, num_tasks), dtype)
    return Asking(lambda v: (0 * v, present), lambda key: (squares, present, False), present)


def along_sums(
    direction_fn: Callable[[base.Statistics, jax.Array, jax.Array], jax.Array],
    weighting: base.Weighting,
) -> base.Weighting:
    """The form by products of an exponentiated-gradient step along what the sums over A's rows say.

    Args:
      direction_fn: from the statistics, ``A 1`` over known tasks and A's diagonal, both ``[N]``, to
        the direction ``[N]``.
      weighting: the form that uses the matrix.
    """

    def init(num_tasks, dtype=jnp.float32):
        return Held.nothing(1, num_tasks, dtype), base.uniform_log_state(num_tasks, dtype)

    def update(statistics, state):
        held, last = state
        known = base.known_tasks(statistics)
        ones = known.astype(statistics.losses.dtype)
        held = statistics.products.measured(held, (lambda values: ones,), squares=True)
        squares = jnp.where(known, held.diagonal, 0)
        direction = direction_fn(statistics, jnp.where(known, held.filled()[0], 0), squares)
        direction = jnp.where(held.started(squares=True), direction, 0)
        weights, last = base.after_step(last.log_weights + direction, known)
        return weights, (held, last)

    return form(init, update, weighting)


def of_lengths(weighting: base.Weighting) -> base.Weighting:
    """The form by products of a weighting that looks at the lengths of the gradients alone."""

    def init(num_tasks, dtype=jnp.float32):
        return Held.nothing(0, num_tasks, dtype), weighting.init(num_tasks, dtype)

    def update(statistics, state):
        held, last = state
        held = statistics.products.measured(held, (), squares=True)
        seen = base.known_tasks(statistics)
        known = seen & held.known(squares=True)
        started = known.any()
        known = jnp.where(started, known, seen)
        shown = statistics._replace(interaction=jnp.diag(held.diagonal), known=known)
        weights, inner = weighting.update(shown, last)
        weights = base.with_newcomers(weights, seen & ~known)
        weights = jnp.where(started, weights, gram.even(statistics).astype(weights.dtype))
        inner = jax.tree.map(lambda new, old: jnp.where(started, new, old), inner, last)
        return weights, (held, inner)

    return form(init, update, weighting)


def frank_wolfe(pull: optax.ScalarOrSchedule, weighting: base.Weighting) -> base.Weighting:
    r"""The form by products of MGDA's programme, :math:`\min ½ w^⊤ A w`, one step of it at a time.

    The weights are ``(x + λu) / (1 + λ)``, with x on the simplex and u even. A step of Frank and
    Wolfe goes towards the corner, an x with all of it on one task, where ``A w`` is least, as far
    as lowers ``w^⊤ A w`` most, and at most a tenth of the way, since products are noisy.

    Args:
      pull: λ, how much the weights are drawn to even ones; 0 for MGDA.
      weighting: the form that uses the matrix.
    """

    def init(num_tasks, dtype=jnp.float32):
        return Held.nothing(2, num_tasks, dtype), base.uniform_state(num_tasks, dtype)

    def update(statistics, state):
        held, last = state
        known = base.known_tasks(statistics)
        share = jnp.where(known, last.weights, 0)
        w = share / jnp.sum(share)
        strength = base.value_at(pull, statistics)
        even = gram.even(statistics)

        def corner(values):
            slopes = jnp.where(known, held._replace(values=values).filled()[0], jnp.inf)
            nearest = jax.nn.one_hot(jnp.argmin(slopes), w.size, dtype=w.dtype)
            return (nearest + strength * even) / (1 + strength)

        held = statistics.products.measured(held, (lambda values: w, corner))
        (start, end), (slope, other) = held.vectors, held.filled()
        way = jnp.where(known, end - start, 0)
        curvature, fall = jnp.sum(way * (other - slope)), -jnp.sum(way * slope)
        length = jnp.where(curvature > 0, fall / jnp.where(curvature > 0, curvature, 1), 0)
        moved = start + jnp.clip(length, 0, _LONGEST) * way
        # A task that has come since then was in neither of the two.
        moved = jnp.where(known & (start + end == 0), w, moved)
        weights = jnp.where(held.started(), moved / jnp.sum(moved), w)
        return weights, (held, base.weights_state(weights, known))

    return form(init, update, weighting)


def form(init: Any, update: Any, weighting: base.Weighting) -> base.Weighting:
    """The form by products of a weighting, from its functions."""
    return base.Weighting(
        init,
        update,
        uses_products=True,
        needs_positive_losses=weighting.needs_positive_losses,
        default_interaction="products",
    )
