"""What is compared in an experiment: a weighting with its settings, under a name."""

import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optax

from ldro_jax import interaction, transform, weighting
from ldro_jax.interaction import Interaction
from ldro_jax.runtime import checks
from ldro_jax.weighting import Weighting, wrappers

# Fields that a record has a place for. It has the others where they aren't the default.
_APART = ("name", "weighting", "hyperparameters", "interaction", "interaction_interval")

_OF_THE_INTERACTION = ("interaction_rows", "lagged", "geometry", "shared")


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to weigh tasks, as an experiment runs and reports it.

    Attributes:
      name: how tables and pictures call it.
      weighting: a key of :data:`ldro_jax.weighting.METHODS`; or your own, as a
        :class:`~ldro_jax.weighting.Weighting` or a function of the hyperparameters that makes one.
      hyperparameters: its arguments.
      interaction: how to measure the interaction, as in :func:`ldro_jax.transform.weighted`. Rows
        with several labels, and models with statistics or dropout, have one way: each task is
        pulled back through the same pass, and a name says only whether rows are ``"split"``; or
        ``"products"``, which costs the same for any number of labels.
      interaction_interval: every how many steps to measure it; by default as the weighting says,
        and in each step where it is only asked for products.
      interaction_rows: measure it on so many rows of each task, drawn apart if a batch has fewer;
        by default as all methods of the comparison do. See :class:`Batches` for tables.
      lagged: with an interval of 1, let the weights use the matrix of the step before.
      smoothing: decay of the running means of losses and interactions that the weighting sees.
      signal_power: shows the weighting each loss times the share of the task's squared gradient
        that is no noise, to this power, as in :func:`ldro_jax.weighting.by_signal`; by default the
        loss alone.
      total: what the weights' absolute values are made to sum to; by default what the method says.
      floor: share of the weight that is spread evenly.
      sampling: how language models draw the rows of a batch: ``"uniform"``, the same number of each
        task, or ``"weights"``, at random with the task weights as probabilities; the loss of a row
        then counts ``w / q``, with the weights w now and the probabilities q that it was drawn
        with. These are the weights at the last evaluation, and at least a hundredth of an even
        share.
      geometry: ``"euclidean"``, or ``"optimizer"`` to measure the interaction in that of the
        optimizer, as :func:`ldro_jax.ldro.preconditioner` does; or a function of your own from the
        optimizer's state to a preconditioner.
      shared: the parameters that the interaction counts: a function from the parameters to a tree
        of bools like them, or ``True`` for all. By default, where rows have labels of several
        tasks, those that the losses of several tasks depend on, which leaves out heads of one task,
        and otherwise all; see :func:`ldro_jax.transform.weighted`.

    Raises:
      ValueError: if one of these is unknown or out of range.
    """

    name: str
    weighting: str | Callable[..., Weighting] | Weighting
    hyperparameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    interaction: str | Interaction = "auto"
    interaction_interval: int | None = None
    interaction_rows: int | None = None
    lagged: bool = False
    smoothing: float = 0.0
    signal_power: float | None = None
    total: float | None = None
    floor: float = 0.0
    sampling: str = "uniform"
    geometry: str | Callable[[Any], Any] = "euclidean"
    shared: bool | Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        checks.text("name", self.name)
        weighting.factory(self.weighting)
        if self.interaction_rows is not None:
            checks.integer("interaction_rows", self.interaction_rows)
        checks.one_of("sampling", self.sampling, ("uniform", "weights"))
        if not callable(self.geometry):
            checks.one_of("geometry", self.geometry, ("euclidean", "optimizer"))
        fits = self.shared in (None, True) or callable(self.shared)
        expected = "True, or a function from the parameters to a tree of bools like them"
        checks.require(fits, "shared", expected, self.shared)
        given = self.hyperparameters
        checks.require(isinstance(given, Mapping), "hyperparameters", "a dictionary", given)
        made = weighting.average()
        try:
            # A grid may give what is lacking.
            if set(weighting.lacking(self.weighting, given)) <= set(weighting.FROM_DATA):
                made = weighting.outline(self.weighting, given)
        except ValueError as error:
            raise ValueError(f"hyperparameters: {error}") from error
        self._weighted(made, 1)

    def transform(
        self,
        num_tasks: int,
        rates: Mapping[str, Any] | None = None,
        *,
        trainable: Any = None,
        shared: Any = None,
    ) -> optax.GradientTransformationExtraArgs:
        """The Optax transformation of this method.

        Args:
          num_tasks: N.
          rates: values for the hyperparameters of :meth:`rates`, instead of its own; they may be
            traced, so that one program serves many settings.
          trainable: the parameters that are trained; see :func:`ldro_jax.transform.weighted`.
          shared: those that the interaction counts, if that isn't left to the method.

        Returns:
          The transformation, to be chained before an optimizer.

        Raises:
          ValueError: if the method or one of its settings is unknown or out of range.
        """
        return self._weighted(self.weigh(rates or {}), num_tasks, trainable, shared)

    def weigh(self, rates: Mapping[str, Any]) -> Weighting:
        """The weighting alone, with other values for some hyperparameters."""
        return weighting.create(self.weighting, {**self.hyperparameters, **rates})

    def wrapped(self, rates: Mapping[str, Any] | None = None) -> Weighting:
        """The weighting with smoothing, signal power, total and floor."""
        return self._with_options(self.weigh(rates or {}))

    def _with_options(self, made: Weighting) -> Weighting:
        return wrappers.wrapped(made, **self._taken_by(wrappers.wrapped))

    def _weighted(self, made: Weighting, num_tasks: int, trainable: Any = None, shared: Any = None):
        settings = self._taken_by(transform.weighted)
        if shared is not None:
            settings["shared"] = shared
        return transform.weighted(made, num_tasks, trainable=trainable, **settings)

    def _taken_by(self, function: Callable[..., Any]) -> dict[str, Any]:
        """The settings of this method that a function takes by their names."""
        return {name: getattr(self, name) for name in _settings_taken_by(function)}

    @functools.cached_property
    def _outline(self) -> Weighting:
        return self._with_options(weighting.outline(self.weighting, self.hyperparameters))

    @property
    def _plain(self) -> dict[str, Any]:
        """The hyperparameters with NumPy's numbers and arrays as Python's, for records and keys."""
        given = self.hyperparameters
        return {k: v.tolist() if hasattr(v, "tolist") else v for k, v in given.items()}

    @functools.cached_property
    def _rates(self) -> dict[str, float]:
        names = weighting.rates(self.weighting, self.hyperparameters)
        return {k: float(v) for k, v in self.hyperparameters.items() if k in names}

    def rates(self) -> dict[str, float]:
        """The hyperparameters that one program can take many values of, where they are numbers."""
        return dict(self._rates)

    def compile_key(self) -> tuple[Any, ...]:
        """What methods have in common that the same compiled program can train.

        Returns:
          A hashable key, of everything but the name and the values of :meth:`rates`.
        """
        static = {k: v for k, v in self._plain.items() if k not in self.rates()}
        others = (
            self.interaction,
            self.interval,
            *(getattr(self, field.name) for field in _options()),
        )
        return (self.weighting, *sorted(self.rates()), repr(sorted(static.items())), *others)

    @property
    def uses_interaction(self) -> bool:
        """Whether the weights depend on the interaction matrix."""
        return self._outline.uses_interaction

    @property
    def uses_products(self) -> bool:
        """Whether they depend on products of it, which are measured in its place."""
        return self.uses_interaction and self.strategy.gives_products

    @property
    def uses_excess(self) -> bool:
        """Whether they depend on how much worse than a reference the model is."""
        return self._outline.uses_excess

    @property
    def strategy(self) -> Interaction:
        """How to measure the interaction."""
        return interaction.get(self.named_strategy)

    @property
    def named_strategy(self) -> str | Interaction:
        """Its name, or the strategy itself."""
        return self._outline.interaction_for(self.interaction)

    @property
    def interval(self) -> int:
        """Every how many steps the interaction matrix is measured, if it is."""
        if self.interaction_interval is None:
            return 1 if self.uses_products else self._outline.default_interval
        return int(self.interaction_interval)

    def settings(self) -> dict[str, Any]:
        """All that a record needs to tell this method from others: its non-default settings."""
        settings = dict(self._plain)
        if self.uses_interaction:
            settings["interaction_interval"] = self.interval
            if self.interaction != "auto":
                settings["interaction"] = _named(self.interaction)
        for field in _options():
            has_effect = self.uses_interaction or field.name not in _OF_THE_INTERACTION
            value = getattr(self, field.name)
            if value != field.default and has_effect:
                value = getattr(value, "__name__", "own") if callable(value) else value
                settings[field.name] = value
        return settings


def _named(strategy: str | Interaction) -> str:
    """A word for it, for a record."""
    if isinstance(strategy, str):
        return strategy
    if not strategy.gives_products:
        return "own"
    apart = strategy.multiple == 2
    return f"products(apart={apart}, in_turn={strategy.in_turn}, share={strategy.share})"


@functools.cache
def _settings_taken_by(function: Callable[..., Any]) -> tuple[str, ...]:
    fields = {field.name for field in dataclasses.fields(Method)}
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name in fields)


def _options() -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(Method) if field.name not in _APART]


def grid(method: Method, values: Mapping[str, Sequence[Any]]) -> list[Method]:
    """All combinations of some settings of a method, for a sweep.

    Args:
      method: the method, whose other settings all have.
      values: from the name of a hyperparameter, or of a field of :class:`Method`, to its values.

    Returns:
      The methods, of the same name, the last setting varying fastest.

    Raises:
      ValueError: if a setting has no values, isn't a sequence of them, or has one that the method
        doesn't take.
    """
    checks.instance("method", method, Method, "@ldro/Method()")
    checks.require(isinstance(values, Mapping), "values", "a dictionary", values)
    for name, options in values.items():
        checks.sequence(f"values[{name!r}]", options, "values, such as (0.01, 0.1)")
    fields = {field.name for field in dataclasses.fields(Method)}
    found = []
    for combination in itertools.product(*values.values()):
        chosen = dict(zip(values, combination, strict=True))
        own = {name: chosen.pop(name) for name in fields & chosen.keys()}
        hyperparameters = {**method.hyperparameters, **chosen}
        try:
            found.append(dataclasses.replace(method, **{"hyperparameters": hyperparameters, **own}))
        except ValueError as error:
            raise ValueError(f"values: {error}") from error
    return found
