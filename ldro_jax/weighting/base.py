"""A weighting turns task statistics into task weights.

Every method of this library is the same three steps: measure statistics of the tasks (their
losses, and for some methods how their gradients interact), choose weights from them, and take one
gradient step on the weighted loss. A :class:`Weighting` is the middle step alone. It is a pair of
pure functions that knows nothing of models, batches, gradients or devices:

* ``init(num_tasks, dtype)`` gives the weighting's state,
* ``update(statistics, state)`` gives the weights for this step and the next state.

The online methods are all one exponentiated-gradient step ``w ← normalise(w ⊙ exp(direction))``;
they differ in the direction. Group DRO moves along ``η ℓ``, Baselined-DRO along ``η (ℓ −
reference)`` and Lookahead-DRO along ``η λ A[i*, :]``, the row of the interaction matrix that
belongs to the task that would be worst after the step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ldro_jax.runtime import checks


class Statistics(NamedTuple):
    """What a weighting may look at in one step.

    Attributes:
      count: number of steps taken before this one, an int32 scalar; schedules are called with it.
      losses: mean loss of each task, ``[N]``. A task that was absent from the batch has its last
        one.
      interaction: Gram matrix of the task gradients, ``A_ij = ⟨∇ℓ_i, ∇ℓ_j⟩``, ``[N, N]``; as of the
        last time it was measured, and zeros before that or if the weighting doesn't use it.
      noise: variance of the minibatch gradient of each task, the sum over the parameters, ``[N]``;
        ``None`` unless the weighting asks for it.
      excess: mean over the examples or tokens of each task of how much worse than a reference the
        model is, ``[N]``; ``None`` unless the weighting asks for it.
      known: the tasks that were in some batch so far, and whose interactions were measured if the
        weighting uses them, bool ``[N]``; ``None`` if all. What is said above of any other task is
        a placeholder: the weights of the known ones must be those of a problem without it. At
        least one is: before anything is measured all that were in a batch, with zeros.
      fresh: the tasks whose interactions were measured in this step, bool ``[N]``; ``None`` if the
        weighting doesn't use them, or lags behind.
      products: asks for products of the interaction matrix, a
        :class:`~ldro_jax.weighting.products.Asking`; ``None`` unless the weighting uses them.
      signal: what losses and excess have been multiplied with, ``[N]``; ``None`` for nothing. The
        interaction and the noise are those of the losses before. See
        :func:`~ldro_jax.weighting.by_signal`.
    """

    count: jax.Array
    losses: jax.Array
    interaction: jax.Array
    noise: jax.Array | None = None
    excess: jax.Array | None = None
    known: jax.Array | None = None
    fresh: jax.Array | None = None
    products: Any = None
    signal: jax.Array | None = None


def with_newcomers(weights: jax.Array, newcomers: jax.Array) -> jax.Array:
    """Tasks that came before their interactions were measured get the mean weight of the others.

    Args:
      weights: of all tasks, ``[N]``.
      newcomers: which tasks those are, bool ``[N]``.
    """
    sizes = jnp.where(newcomers, 0, jnp.abs(weights))
    weighed = (sizes > 0).sum(dtype=weights.dtype)
    mean = jnp.sum(sizes) / jnp.maximum(weighed, 1)
    # All together weigh what the others did before.
    share = weighed / jnp.maximum(weighed + newcomers.sum(dtype=weights.dtype), 1)
    return jnp.where(newcomers.any(), share * jnp.where(newcomers, mean, weights), weights)


def onto_simplex(weights: jax.Array, known: jax.Array | None = None) -> jax.Array:
    """The nearest weights ``[N]`` that aren't negative and sum to one, zero where not ``known``."""
    if known is None:
        known = jnp.ones(weights.shape, bool)
    # The threshold lies at most one below the largest, so what is lower than that is zero anyway.
    # Near the largest, numbers of any size keep their digits.
    largest = jnp.max(weights, where=known, initial=-jnp.inf)
    below = jnp.where(known, jnp.maximum(weights - largest, -1), -1)
    # Optax leaves conversions to JAX.
    with jax.numpy_dtype_promotion("standard"):
        return optax.projections.projection_simplex(below).astype(weights.dtype)


def first_weights(weighting: "Weighting", num_tasks: int) -> jax.Array:
    """The weights ``[N]`` before any loss is known: a static method's, otherwise even ones."""
    unknown = nothing_known(num_tasks)
    weights, _ = weighting.update(unknown, weighting.init(num_tasks, unknown.losses.dtype))
    return weights


def known_tasks(statistics: Statistics) -> jax.Array:
    """The tasks of which something is known, bool ``[N]``."""
    if statistics.known is None:
        return jnp.ones(statistics.losses.shape, bool)
    return statistics.known


def number_known(statistics: Statistics) -> jax.Array:
    """How many tasks are known, a scalar of the losses' dtype."""
    return jnp.sum(known_tasks(statistics), dtype=statistics.losses.dtype)


def known_interaction(statistics: Statistics) -> jax.Array:
    """The interaction matrix, ``[N, N]``, with zeros in the rows and columns of unknown tasks."""
    known = known_tasks(statistics)
    return jnp.where(known[:, None] & known[None, :], statistics.interaction, 0)


def above_least(statistics: Statistics) -> jax.Array:
    """By how much each loss is above the least, ``[N]``, zero for an unknown task.

    For methods that only compare losses: a constant that is added to all of them changes nothing.
    """
    known, losses = known_tasks(statistics), statistics.losses
    return jnp.where(known, losses - jnp.min(losses, where=known, initial=jnp.inf), 0)


def times_signal(statistics: Statistics, values: jax.Array) -> jax.Array:
    """Numbers in the unit of the tasks' own losses, ``[N]``, in that of the losses shown."""
    return values if statistics.signal is None else values * statistics.signal


def positive_losses(statistics: Statistics) -> jax.Array:
    """The losses ``[N]``, for methods that divide by them or take their logarithm.

    In place of a loss that isn't positive, or of an unknown task, stands the least positive known
    loss, or one if there is none: such a task is treated like the best of the others. A method that
    uses this says so: :attr:`Weighting.needs_positive_losses`.
    """
    usable = known_tasks(statistics) & (statistics.losses > 0)
    least = jnp.min(statistics.losses, where=usable, initial=jnp.inf)
    return jnp.where(usable, statistics.losses, jnp.where(usable.any(), least, 1))


def log_mean_exp(logits: jax.Array, known: jax.Array) -> jax.Array:
    """The logarithm of the mean of the known tasks' exponentials, where a new task begins."""
    count = jnp.sum(known, dtype=logits.dtype)
    return jax.nn.logsumexp(jnp.where(known, logits, -jnp.inf)) - jnp.log(count)


def nothing_known(num_tasks: int, dtype: Any = jnp.float32) -> Statistics:
    """Zeros for all statistics, before any is measured."""
    zeros = jnp.zeros(num_tasks, dtype)
    square = jnp.zeros((num_tasks, num_tasks), dtype)
    return Statistics(jnp.zeros([], jnp.int32), zeros, square, noise=zeros, excess=zeros)


class Weighting(NamedTuple):
    """A pair of pure functions from statistics to weights.

    Attributes:
      init: ``(num_tasks, dtype) -> state``, a pytree of small arrays.
      update: ``(statistics, state) -> (weights [N], state)``.
      uses_interaction: whether ``update`` reads ``statistics.interaction``.
      uses_noise: whether it reads ``statistics.noise``, which is measured with the interaction by
        a strategy that can, such as "split".
      uses_excess: whether it reads ``statistics.excess``.
      keeps_means: whether it keeps running means of the interaction itself, so that
        :func:`~ldro_jax.weighting.smoothed` shows it those of the losses alone.
      needs_positive_losses: whether it divides by the losses or takes their logarithm or powers, so
        that a loss below zero has no meaning. Its weights are finite then, but not those of the
        method. One of exactly zero counts as the least of the others.
      default_interaction: how to measure the interaction where nothing else is said, as in
        :func:`ldro_jax.transform.weighted`.
      default_interval: every how many steps to measure the interaction where nothing else is said.
      expected_losses: ``(statistics, weights [N]) -> [N]``, the losses after the step by which it
        judges weights; ``None`` if it looks at the losses as they are.
      uses_products: whether it asks ``statistics.products`` in place of the matrix.
      by_products: the form of a weighting that uses the matrix which asks for products instead;
        ``None`` if it has none.
    """

    init: Callable[[int, Any], Any]
    update: Callable[[Statistics, Any], tuple[jax.Array, Any]]
    uses_interaction: bool = False
    uses_noise: bool = False
    uses_excess: bool = False
    keeps_means: bool = False
    needs_positive_losses: bool = False
    default_interaction: str = "auto"
    default_interval: int = 1
    expected_losses: Callable[[Statistics, jax.Array], jax.Array] | None = None
    uses_products: bool = False
    by_products: "Weighting | None" = None

    def interaction_for(self, interaction: Any) -> Any:
        """How to measure the interaction: as it is given, or for "auto" as this method likes."""
        return self.default_interaction if interaction == "auto" else interaction


class LogWeightsState(NamedTuple):
    """State of the online methods: log-weights ``[N]``, so that no task dies by underflow.

    The exponentials of those of the known tasks sum to one. An unknown task has the mean weight of
    the known ones, with which it will begin.
    """

    log_weights: jax.Array


class SolverState(NamedTuple):
    """State of methods that solve a problem anew in every step: how often that failed, int32.

    A method with a state of its own has a field of this name, which
    :func:`ldro_jax.transform.weighted` finds.
    """

    unsolved: jax.Array


class WeightsState(NamedTuple):
    """State of methods that move weights ``[N]`` on the simplex.

    Those of the known tasks sum to one, and an unknown one has their mean.
    """

    weights: jax.Array


def uniform_state(num_tasks: int, dtype: jax.typing.DTypeLike = jnp.float32) -> WeightsState:
    """Even weights."""
    return WeightsState(jnp.full(num_tasks, 1 / num_tasks, dtype))


def uniform_log_state(num_tasks: int, dtype: jax.typing.DTypeLike = jnp.float32) -> LogWeightsState:
    """Even weights, as logarithms."""
    return LogWeightsState(jnp.full((num_tasks,), -jnp.log(num_tasks), dtype))


def log_weights_state(log_weights: jax.Array, known: jax.Array) -> LogWeightsState:
    """The state after a step, from log-weights ``[N]`` that are normalised over known tasks."""
    mean = -jnp.log(jnp.sum(known, dtype=log_weights.dtype))
    return LogWeightsState(jnp.where(known, log_weights, mean))


def after_step(log_weights: jax.Array, known: jax.Array) -> tuple[jax.Array, LogWeightsState]:
    """The weights ``[N]`` and the state after a step to log-weights that aren't normalised yet."""
    log_weights = jax.nn.log_softmax(log_weights, where=known)
    return jnp.exp(log_weights), log_weights_state(log_weights, known)


def weights_state(weights: jax.Array, known: jax.Array) -> WeightsState:
    """The state after a step, from weights ``[N]`` that sum to one over known tasks."""
    return WeightsState(jnp.where(known, weights, 1 / jnp.sum(known, dtype=weights.dtype)))


def exponentiated_gradient(
    direction_fn: Callable[[Statistics, jax.Array], jax.Array], *, uses_interaction: bool = False
) -> Weighting:
    """Makes the weighting ``w ← normalise(w ⊙ exp(direction))``, from uniform weights.

    Args:
      direction_fn: ``(statistics, weights [N]) -> direction [N]``. The weights of unknown tasks
        are zero, and so are those that come out; their directions make no difference.
      uses_interaction: whether ``direction_fn`` reads the interaction matrix.

    Returns:
      The :class:`Weighting`.

    References:
      Kivinen and Warmuth, *Exponentiated gradient versus gradient descent for linear predictors*,
      Information and Computation, 1997.
    """
    checks.function("direction_fn", direction_fn, example="(statistics, weights) -> direction [N]")

    def update(statistics, state):
        known = known_tasks(statistics)
        # The state of a task that has just become known is on top of what sums to one.
        last = jax.nn.softmax(state.log_weights, where=known)
        direction = direction_fn(statistics, last)
        return after_step(state.log_weights + direction, known)

    return Weighting(uniform_log_state, _named_like(direction_fn, update), uses_interaction)


def stateless(
    weights_fn: Callable[[Statistics], jax.Array],
    *,
    uses_interaction: bool = False,
    uses_noise: bool = False,
    uses_excess: bool = False,
) -> Weighting:
    """Makes a weighting whose weights depend on this step's statistics alone.

    Args:
      weights_fn: ``statistics -> weights [N]``.
      uses_interaction: whether it reads ``statistics.interaction``, which is measured only then.
      uses_noise: whether it reads ``statistics.noise``.
      uses_excess: whether it reads ``statistics.excess``.

    Returns:
      The :class:`Weighting`, with an empty state.
    """
    checks.function("weights_fn", weights_fn, example="statistics -> weights [N]")

    def init(num_tasks, dtype: jax.typing.DTypeLike = jnp.float32):
        del num_tasks, dtype
        return ()

    def update(statistics, state):
        return weights_fn(statistics), state

    named = _named_like(weights_fn, update)
    return Weighting(init, named, uses_interaction, uses_noise, uses_excess)


def with_failure(unsolved: jax.Array, solved: jax.Array) -> jax.Array:
    """The number of steps without a solution, int32, counting this one unless it is ``solved``."""
    return unsolved + jnp.where(solved, 0, 1).astype(jnp.int32)


def solving(
    weights_fn: Callable[[Statistics], tuple[jax.Array, jax.Array]],
) -> Weighting:
    """Makes a weighting that solves a problem of the interaction in every step.

    Args:
      weights_fn: ``statistics -> (weights [N], solved)``, the second a bool.

    Returns:
      The :class:`Weighting`; its :class:`SolverState` counts the steps that weren't solved.
    """
    checks.function("weights_fn", weights_fn, example="statistics -> (weights [N], solved)")

    def init(num_tasks, dtype: jax.typing.DTypeLike = jnp.float32):
        del num_tasks, dtype
        return SolverState(jnp.zeros([], jnp.int32))

    def update(statistics, state):
        weights, solved = weights_fn(statistics)
        return weights, SolverState(with_failure(state.unsolved, solved))

    return Weighting(init, _named_like(weights_fn, update), uses_interaction=True)


def _named_like(function: Callable[..., Any], update: Callable[..., Any]) -> Callable[..., Any]:
    """The update of a weighting, called in errors as the user's part of it is."""
    update.__qualname__ = getattr(function, "__qualname__", checks.called(function))
    return update


def check_weighting(weighting: Any) -> None:
    """Raises ``ValueError`` unless something is a weighting, and not its name or its factory."""
    checks.instance("weighting", weighting, Weighting, "weighting.group_dro(0.1)")
    checks.function("Weighting.init", weighting.init, example="(num_tasks, dtype) -> state")
    example = "(statistics, state) -> (weights, state)"
    checks.function("Weighting.update", weighting.update, example=example)


def checked(weighting: Weighting) -> Weighting:
    """The weighting, which when it is traced says what is wrong with what it gives.

    Its ``update`` raises ``ValueError``, naming the weighting, unless it returns a pair of the
    weights, floating point ``[N]``, and a state like the one that it was given.
    """

    def update(statistics, state):
        returned = weighting.update(statistics, state)
        # Of a function in a factory the factory is what a user knows.
        name = getattr(weighting.update, "__qualname__", checks.called(weighting.update))
        name = f"The weighting {name.split('.<locals>')[0]}"
        if not (isinstance(returned, (tuple, list)) and len(returned) == 2):
            described = "an array" if hasattr(returned, "shape") else checks.shown(returned)
            raise ValueError(
                f"{name} must return a pair, the weights and its next state, but it returned "
                f"{described}. One without a state is made with weighting.stateless."
            )
        weights, following = returned
        shape, dtype = getattr(weights, "shape", None), getattr(weights, "dtype", object)
        if shape != statistics.losses.shape or not jnp.issubdtype(dtype, jnp.floating):
            described = checks.shown(weights) if shape is None else f"{dtype}{list(shape)}"
            raise ValueError(
                f"{name} must return a floating-point weight for each of the "
                f"{statistics.losses.size} tasks, an array of the shape "
                f"{list(statistics.losses.shape)}, but it returned {described}."
            )
        ours, theirs = (_structure(each) for each in (state, following))
        # Not the trees themselves: a container may have no equality.
        if jax.tree.flatten(ours) != jax.tree.flatten(theirs):
            raise ValueError(
                f"{name} must return a state like the one it was given, {checks.printed(ours)}, "
                f"but it returned {checks.printed(theirs)}."
            )
        return weights, following

    products = weighting.by_products
    return weighting._replace(update=update, by_products=products and checked(products))


def _structure(state: Any) -> Any:
    return jax.tree.map(lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}", state)


def value_at(value: optax.ScalarOrSchedule, statistics: Statistics) -> jax.Array:
    """A hyperparameter, which may be a schedule, at this step: a scalar of the losses' dtype."""
    current = value(statistics.count) if callable(value) else value
    return jnp.asarray(current, statistics.losses.dtype)


def mean_loss(statistics: Statistics) -> jax.Array:
    """The mean size of the known losses, a positive scalar: the unit of relative rates.

    Of positive losses it is their mean. The mean of losses of both signs could be anything, near
    zero or below it; their mean size is at least an N-th of the difference of any two, but a
    setting found for positive losses means little there: methods with such rates say that they need
    positive losses.
    """
    mean = jnp.mean(jnp.abs(statistics.losses), where=known_tasks(statistics))
    return jnp.where(mean > 0, mean, 1)


def random_orders(seed: int, statistics: Statistics) -> jax.Array:
    """For each task an order of all tasks, a function of seed and step alone, int32 ``[N, N]``."""
    tasks = jnp.arange(statistics.losses.size, dtype=jnp.int32)
    key = jax.random.fold_in(jax.random.key(seed), statistics.count)
    keys = jax.random.split(key, tasks.size)
    return jax.vmap(lambda key: jax.random.permutation(key, tasks))(keys)


def check_range(name: str, value: Any, interval: str = "[0, inf)") -> None:
    """Raises ``ValueError`` unless a number lies in an interval; see :func:`.checks.number`.

    Schedules and arrays (hyperparameters injected by Optax) are let through: their values are not
    known while the transformation is built.
    """
    if not callable(value) and not isinstance(value, jax.Array):
        checks.number(name, value, interval)


def numbers_per_task(name: str, values: Any, *, positive: bool = False) -> np.ndarray:
    """The numbers that a method takes for each task, float64 ``[N]``.

    Args:
      name: what errors call them.
      values: a sequence of N numbers.
      positive: whether they must be positive.

    Raises:
      ValueError: if they aren't finite numbers in one dimension.
    """
    try:
        numbers = np.asarray(values)
    except (TypeError, ValueError):  # ragged, or traced
        numbers = np.array(None)
    usable = numbers.dtype.kind in "iuf" and numbers.ndim == 1 and numbers.size
    usable = usable and np.isfinite(numbers).all() and (not positive or (numbers > 0).all())
    expected = f"one finite{' positive' if positive else ''} number for each task"
    checks.require(usable, name, expected, values)
    return numbers.astype(np.float64)


def check_per_task(name: str, values: jax.Array | np.ndarray, num_tasks: int) -> None:
    """Raises ``ValueError`` unless ``values`` has the shape ``[N]``."""
    if values.shape != (num_tasks,):
        raise ValueError(
            f"{name} must hold one number for each of the {num_tasks} tasks, shape "
            f"({num_tasks},), but its shape is {values.shape}."
        )
