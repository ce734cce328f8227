"""Ways to train for the worst group: what each knows of the groups, and what it trains on.

References:
  Idrissi et al., *Simple data balancing achieves competitive worst-group-accuracy*, CLeaR 2022.
  Liu et al., *Just Train Twice: Improving Group Robustness without Training Group Information*,
  ICML 2021.
  Kirichenko, Izmailov and Wilson, *Last Layer Re-Training is Sufficient for Robustness to Spurious
  Correlations*, ICLR 2023.
"""

import abc
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ldro_jax.experiments import names
from ldro_jax.experiments import trainings as trainings_lib
from ldro_jax.experiments.trainings import Job, Trainings
from ldro_jax.measuring import trained as trained_lib
from ldro_jax.problems import checked
from ldro_jax.problems.grouped import KNOWN
from ldro_jax.problems.objectives import Objective
from ldro_jax.records import results
from ldro_jax.runtime import checks
from ldro_jax.tasks.grouped import GroupedData, hide, subsample, upsample
from ldro_jax.tasks.grouped.variants import on_validation
from ldro_jax.training.method import Method

# Rows whose activations are held at a time where a model looks at all of them.
_ROWS_AT_A_TIME = 256


class Way(abc.ABC):
    """What is compared: a way to train, with one setting or several.

    Attributes:
      name: how tables call it.
    """

    name: str

    @property
    @abc.abstractmethod
    def knows(self) -> str:
        """What it knows of the groups, in a word or two."""

    @property
    @abc.abstractmethod
    def settings(self) -> list[Mapping[str, Any]]:
        """Its settings, in the order in which they are trained."""

    @abc.abstractmethod
    def check(self, trainings: Trainings) -> None:
        """Traces what will be trained; raises ``ValueError`` for what doesn't fit."""

    @abc.abstractmethod
    def train(self, trainings: Trainings) -> Iterator[results.Run]:
        """Trains it with each setting and seed."""

    @property
    @abc.abstractmethod
    def described(self) -> dict[str, Any]:
        """It as the directory's configuration holds it."""


@dataclasses.dataclass(frozen=True)
class Approach(Way):
    """One training, with a weighting of what it knows.

    Attributes:
      method: how the groups that training knows are weighed, and the name of the approach; several
        settings of a method (a grid) are several settings of the approach.
      known: what training knows: "groups", "classes" or "nothing"; see
        :func:`ldro_jax.problems.groups`.
      labelled: share of the training examples whose groups are known, others with each seed.
      subsample: take as many examples of each of the "groups" or "classes", others with each seed;
        by default all are taken.
      objective: what is minimised in the place of the mean loss, such as
        :class:`ldro_jax.problems.CVaR`.
      model: ``(num_classes=...)`` to a model of its own; by default that of the experiment.
      optimizer: its own; by default that of the experiment.
      options: what tells it from others of the same name, where these don't differ in the settings
        of the method or of the objective: ``{"weight decay": 0.1}``.

    Raises:
      ValueError: if one of these isn't what it must be.
    """

    method: Method | Sequence[Method]
    known: str = "groups"
    labelled: float = 1.0
    subsample: str | None = None
    objective: Any = None
    model: Callable[..., Any] | None = None
    optimizer: optax.GradientTransformation | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        checks.sequence("method", self._methods, "methods, such as a grid")
        for method in self._methods:
            checks.instance("method", method, Method, "@group_dro/Method()")
        called = {method.name for method in self._methods}
        checks.require(len(called) == 1, "method", "one, or settings of one", sorted(called))
        checks.one_of("known", self.known, KNOWN)
        checks.number("labelled", self.labelled, "[0, 1]")
        if self.objective is not None:
            example = "problems.CVaR(share=0.1)"
            checks.instance("objective", self.objective, Objective, example)
        if self.subsample is not None:
            checks.one_of("subsample", self.subsample, ("groups", "classes"))
        if self.model is not None:
            checks.function("model", self.model, "num_classes", example="@MLP")
        if self.optimizer is not None:
            kind = optax.GradientTransformation
            checks.instance("optimizer", self.optimizer, kind, "@optax.sgd()")
        is_mapping = isinstance(self.options, Mapping)
        checks.require(is_mapping, "options", "a dictionary", self.options)

    @property
    def _methods(self) -> Sequence[Method]:
        return [self.method] if isinstance(self.method, Method) else self.method

    @property
    def name(self) -> str:
        """That of the method."""
        return self._methods[0].name

    @property
    def knows(self) -> str:
        """See :class:`Way`."""
        what = self.subsample or self.known
        return what if self.labelled == 1 else f"{what} of {self.labelled:.0%}"

    @property
    def settings(self) -> list[Mapping[str, Any]]:
        """Those of the method and of the objective."""
        is_data = dataclasses.is_dataclass(self.objective)
        objective = {
            field.name: getattr(self.objective, field.name)
            for field in (dataclasses.fields(self.objective) if is_data else ())
            if getattr(self.objective, field.name) != field.default
        }
        own = {} if self.labelled == 1 else {"labelled": self.labelled}
        return [{**m.settings(), **objective, **own, **self.options} for m in self._methods]

    @property
    def described(self) -> dict[str, Any]:
        """See :class:`Way`."""
        objective = None if self.objective is None else type(self.objective).__name__
        own = {"known": self.known, "subsample": self.subsample, "objective": objective}
        return {"name": self.name, **own, "settings": self.settings}

    def jobs(self, trainings: Trainings, **changes: Any) -> Iterator[tuple[Job, list[int]]]:
        """The training of each of its settings, with the seeds that have the same data.

        Args:
          trainings: what the job is for.
          **changes: of fields of the job.
        """
        alike: dict[int, list[int]] = {}
        for seed in trainings.seeds:
            has_own = self.subsample or self.labelled < 1
            alike.setdefault(seed if has_own else id(trainings.data[seed]), []).append(seed)
        for seeds in alike.values():
            data = trainings.data[seeds[0]]
            if self.labelled < 1:
                data = hide(data, self.labelled, seed=seeds[0])
            if self.subsample is not None:
                data = subsample(data, self.subsample, seed=seeds[0])
            for place in range(len(self._methods)):
                yield self.job(trainings, data, place, **changes), seeds

    def job(self, trainings: Trainings, data: GroupedData, place: int = 0, **changes: Any) -> Job:
        """The training of one of its settings on some data."""
        problem = trainings.problem(data, self.known, self.objective, self.model)
        form = self.known, self.objective, self.model, self.optimizer, data.prepare
        named = self.name, self._methods[place], self.settings[place]
        return dataclasses.replace(Job(*named, problem, form, self.optimizer), **changes)

    def check(self, trainings: Trainings) -> None:
        """See :class:`Way`."""
        for job, _ in self.jobs(trainings):
            trainings.check(job)

    def train(self, trainings: Trainings) -> Iterator[results.Run]:
        """See :class:`Way`."""
        for job, seeds in self.jobs(trainings):
            yield from trainings.train(job, seeds).values()


def _erm() -> Approach:
    return Approach(Method("ERM", "average"), known="nothing")


@dataclasses.dataclass(frozen=True)
class JTT(Way):
    r"""Just Train Twice: trains again, with more of the examples that a first model gets wrong.

    The first model is trained for a few steps. The training examples that it then gets wrong are
    there ``factor`` times when the second model is trained from the beginning, so that it minimises
    :math:`λ Σ_{i ∈ E} ℓ_i + Σ_{i ∉ E} ℓ_i`, up to its scale. No group is known to either. (In the
    authors' code an example of E is there λ + 1 times.)

    Attributes:
      steps: of the first model, T; each is a setting.
      factors: how often an example of the error set is there, λ; each is a setting.
      base: how both models are trained.
      name: how tables call it.

    Raises:
      ValueError: if one of these isn't what it must be.
    """

    steps: Sequence[int]
    factors: Sequence[int]
    base: Approach = dataclasses.field(default_factory=_erm)
    name: str = "JTT"

    def __post_init__(self) -> None:
        for name in ("steps", "factors"):
            checks.sequence(name, getattr(self, name), "numbers, such as (50, 100)")
            checks.integers(name, getattr(self, name))
        _check_base(self)
        whole = self.base.subsample is None and self.base.known == "nothing"
        checks.require(whole, "base", "of all examples, with known='nothing'", self.base)

    @property
    def knows(self) -> str:
        """See :class:`Way`."""
        return self.base.knows

    @property
    def settings(self) -> list[Mapping[str, Any]]:
        """Each number of steps with each factor."""
        both = itertools.product(self.steps, self.factors)
        return [{"first steps": steps, "factor": factor} for steps, factor in both]

    @property
    def described(self) -> dict[str, Any]:
        """See :class:`Way`."""
        return {"name": self.name, "base": self.base.described, "settings": self.settings}

    def _first(self, trainings: Trainings, steps: int) -> Iterator[tuple[Job, list[int]]]:
        name, own = f"{self.name}, first model", {"first steps": steps}
        return self.base.jobs(trainings, name=name, setting=own, steps=steps)

    def check(self, trainings: Trainings) -> None:
        """See :class:`Way`."""
        if max(self.steps) > trainings.schedule.train_steps:
            raise ValueError(
                f"JTT.steps must be at most train_steps, {trainings.schedule.train_steps}, but it "
                f"is {list(self.steps)}."
            )
        for job, _ in self._first(trainings, self.steps[0]):
            trainings.check(job)

    def train(self, trainings: Trainings) -> Iterator[results.Run]:
        """See :class:`Way`.

        Raises:
          ValueError: if a first model gets every example right.
        """
        wrong = {}
        for steps in self.steps:
            for job, seeds in self._first(trainings, steps):
                for seed, params in trainings.first_models(job, seeds).items():
                    rows = _wrong(job.problem, params)
                    if not rows.any():
                        raise ValueError(
                            f"{self.name}: with seed {seed} the first model is right on every "
                            f"training example after {steps} steps, so there is none to take more "
                            "often. Take fewer steps."
                        )
                    wrong[steps, seed] = rows
        for setting, seed in itertools.product(self.settings, trainings.seeds):
            rows = wrong[setting["first steps"], seed]
            data = upsample(trainings.data[seed], rows, setting["factor"])
            job = self.base.job(trainings, data, name=self.name, setting=setting)
            yield from trainings.train(job, [seed]).values()


def _wrong(problem: Any, params: Any) -> np.ndarray:
    """Which training examples a model gets wrong, bool ``[E]``."""
    rows = problem.on_device.arrays

    def classes(params, inputs):
        logits = checked.outputs(lambda x: problem.apply(params, x), inputs, _ROWS_AT_A_TIME)
        return jnp.argmax(logits, axis=-1)

    return np.asarray(jax.jit(classes)(params, rows["inputs"])) != np.asarray(rows["targets"])


@dataclasses.dataclass(frozen=True)
class DFR(Way):
    """Deep feature reweighting: trains the last layer anew on validation, balanced by groups.

    A model is trained as ``base`` says. Its last layer is then trained from the beginning, on as
    many examples of each group, drawn from half of validation; the other half is what checkpoints
    and settings are chosen by. All else stays as it is, and dropout and batch normalisation work as
    in an evaluation.

    The paper fits a logistic regression to each of ten draws and takes the mean of the last layers;
    here there is one draw for each seed, trained as everything else is.

    Attributes:
      penalties: factors of the ℓ1 norm of the last layer's weights; each is a setting.
      base: how the model is trained first.
      last_layer: which parameters that is, a function from the parameters to a tree of bools like
        them; by default those whose last axis has the number of classes.
      share: of validation that the last layer is trained on.
      name: how tables call it.

    Raises:
      ValueError: if one of these isn't what it must be.
    """

    penalties: Sequence[float] = (0.0,)
    base: Approach = dataclasses.field(default_factory=_erm)
    last_layer: Callable[[Any], Any] | None = None
    share: float = 0.5
    name: str = "DFR"

    def __post_init__(self) -> None:
        checks.sequence("penalties", self.penalties, "numbers, such as (0.0, 0.01)")
        for penalty in self.penalties:
            checks.number("penalties", penalty, "[0, inf)")
        _check_base(self)
        if self.last_layer is not None:
            example = "params -> a tree of bools"
            checks.function("last_layer", self.last_layer, example=example)
        checks.number("share", self.share, "(0, 1)")

    @property
    def knows(self) -> str:
        """See :class:`Way`."""
        return "groups on validation"

    @property
    def settings(self) -> list[Mapping[str, Any]]:
        """Each penalty."""
        return [{"penalty": penalty} for penalty in self.penalties]

    @property
    def described(self) -> dict[str, Any]:
        """See :class:`Way`."""
        own = {"share": self.share, "base": self.base.described}
        return {"name": self.name, **own, "settings": self.settings}

    def check(self, trainings: Trainings) -> None:
        """See :class:`Way`."""
        for job, seeds in self._first(trainings):
            trainings.check(job)
            shapes = jax.eval_shape(job.problem.init, jax.random.key(0))
            params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
            for seed in seeds:
                trainings.check(self._job(trainings, seed, params, self.settings[0]))

    def _job(self, trainings: Trainings, seed: int, params: Any, setting: Mapping[str, Any]) -> Job:
        data = trainings.data[seed]
        last = functools.partial(self._last, num_classes=len(data.class_names))
        kept = jax.tree.map(lambda mine, x: None if mine else x, last(params), params)
        data = subsample(on_validation(data, self.share, seed=seed), seed=seed)
        problem = trainings.problem(data, "nothing", model=self.base.model).in_evaluation()
        if jax.tree.leaves(kept):
            problem = problem.with_parameters(kept)
        problem.penalty = functools.partial(_l1, last, setting["penalty"])
        optimizer = self.base.optimizer or trainings.optimizer
        method = Method(self.name, "average")
        form = self.name, setting["penalty"], data.prepare
        # With more steps the first model is another, and so are those that begin from it.
        files = f"{self.name} after {trainings.schedule.train_steps} steps"
        own = trained_lib.only(optimizer, last)
        return Job(self.name, method, setting, problem, form, own, files=files)

    def _last(self, params: Any, *, num_classes: int) -> Any:
        if self.last_layer is not None:
            return self.last_layer(params)
        leaves = jax.tree_util.tree_leaves_with_path(params)
        mine = [x.ndim > 0 and x.shape[-1] == num_classes for _, x in leaves]
        sizes = sorted(x.ndim for (_, x), is_mine in zip(leaves, mine, strict=True) if is_mine)
        if sizes not in ([2], [1, 2]):
            named = [jax.tree_util.keystr(p) for (p, _), m in zip(leaves, mine, strict=True) if m]
            raise ValueError(
                f"DFR.last_layer must be given, since the parameters whose last axis is the "
                f"{num_classes} classes aren't one matrix and at most one vector, but {named}."
            )
        return jax.tree.unflatten(jax.tree.structure(params), mine)

    def train(self, trainings: Trainings) -> Iterator[results.Run]:
        """See :class:`Way`."""
        first = {}
        for job, seeds in self._first(trainings):
            first |= trainings.first_models(job, seeds)
        for setting, seed in itertools.product(self.settings, trainings.seeds):
            job = self._job(trainings, seed, first[seed], setting)
            yield from trainings.train(job, [seed]).values()

    def _first(self, trainings: Trainings) -> Iterator[tuple[Job, list[int]]]:
        return self.base.jobs(trainings, name=f"{self.name}, first model")


def _l1(last: Callable[[Any], Any], factor: float, params: Any) -> jax.Array:
    norms = jax.tree.map(lambda mine, x: jnp.abs(x).sum() if mine else 0.0, last(params), params)
    return factor * jnp.asarray(sum(jax.tree.leaves(norms)))


def _check_base(way: JTT | DFR) -> None:
    checks.text("name", way.name)
    checks.instance("base", way.base, Approach, "@erm/Approach()")
    one = len(way.base.settings) == 1
    checks.require(one, "base", "an approach with one setting", way.base.settings)


def check_names(ways: Sequence[Way]) -> None:
    """Raises ``ValueError`` unless each setting of each way has a name of its own for its files."""
    labels = [trainings_lib.label(way.name, s) for way in ways for s in way.settings]
    files = {names.file_names([label])[0].casefold() for label in labels}
    if len(files) < len(labels):
        raise ValueError(
            "approaches must each have their own name or setting, since the runs are named by "
            f"them, but they are {[(way.name, dict(s)) for way in ways for s in way.settings]}."
        )
    # Approaches of one name are settings of one: in the report, and with one first model.
    first: dict[str, Way] = {}
    for way in ways:
        other = first.setdefault(way.name, way)
        if other.knows != way.knows:
            raise ValueError(
                f"approaches of the same name must know the same of the groups, but of the two "
                f"{way.name!r} one knows {other.knows} and one {way.knows}. Rename one."
            )
        if getattr(other, "base", None) != getattr(way, "base", None):
            raise ValueError(
                f"approaches of the same name must have the same base, but two {way.name!r} have "
                "others. Rename one: their first models would have the same name."
            )
