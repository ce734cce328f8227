"""Problems whose tasks are groups of examples, which the training may know, in part or not at all.

What is measured is always each group to evaluate; what methods weigh is what the training knows:
groups, classes, or nothing.
"""

import functools
from typing import Any

import numpy as np

from ldro_jax.problems import base
from ldro_jax.problems.arrays import ArrayProblem
from ldro_jax.problems.classifiers import accuracy, check_logits, cross_entropy
from ldro_jax.problems.objectives import Objective, ObjectiveProblem
from ldro_jax.runtime import checks
from ldro_jax.tasks.base import Split
from ldro_jax.tasks.grouped import GroupedData
from ldro_jax.tasks.grouped.variants import EVERYTHING

# What of the training examples tasks are made of.
KNOWN = ("groups", "classes", "nothing")
UNKNOWN = "unknown"


def groups(
    data: GroupedData,
    model: Any,
    *,
    known: str = "groups",
    objective: Objective | None = None,
) -> ArrayProblem:
    """Makes a problem of a data set with groups.

    The tasks that methods weigh are those of the training examples: with ``"groups"`` each group
    that has any, and of each class the examples whose attribute isn't known; with ``"classes"``
    each class; with ``"nothing"`` all examples, which any method trains on alike. The average loss
    over groups is what Idrissi et al. call RWG, over classes RWY, and ``weighting.erm`` is ERM in
    all three. What is measured is the accuracy in each group to evaluate, whatever training knows.

    Args:
      data: examples with classes and attributes; see :mod:`ldro_jax.tasks.grouped`.
      model: from inputs to logits ``[R, classes]``.
      known: "groups", "classes" or "nothing".
      objective: what is minimised in the place of the mean loss of a task:
        :class:`~ldro_jax.problems.CVaR` over examples, the loss of inputs that are
        :class:`~ldro_jax.problems.Perturbed`, or the loss with a
        :class:`~ldro_jax.problems.Reconstruction` of the inputs beside it.

    Raises:
      ValueError: if something is of another kind, a class has no training example, a group to
        evaluate has none on validation or test, or the model or the objective doesn't fit.

    References:
      Idrissi et al., *Simple data balancing achieves competitive worst-group-accuracy*, 2022.
    """
    checks.instance("data", data, GroupedData, "what tasks.grouped.spurious_digits() gives")
    checks.one_of("known", known, KNOWN)
    if objective is not None:
        _check_objective(objective, known)
    names, splits = divided(data, known)
    make = ArrayProblem
    if objective is not None:
        make = functools.partial(ObjectiveProblem, objective)
    problem = make(
        names,
        splits,
        model,
        cross_entropy,
        {base.Metric("accuracy", higher_is_better=True): accuracy},
        prepare=data.prepare,
        measured_names=data.evaluation_names,
    )
    check_logits(problem, data.train.inputs, len(data.class_names))
    return problem


def divided(data: GroupedData, known: str) -> tuple[list[str], dict[str, Split]]:
    """The names of the tasks, and all examples: of the tasks to train on, of the groups to measure.

    Raises:
      ValueError: if a class has no training example, or a group to evaluate has none on validation
        or test.
    """
    names, numbers = _tasks(data, known)
    missing = sorted(set(range(len(data.class_names))) - set(data.train.classes.tolist()))
    if missing:
        raise ValueError(
            "data must have training examples of each class, but has none of "
            f"{', '.join(data.class_names[place] for place in missing)}."
        )
    order = np.argsort(numbers, kind="stable")
    sizes = np.bincount(numbers, minlength=len(names)).astype(np.int32)
    train = Split(data.train.inputs[order], data.train.classes[order].astype(np.int32), sizes)
    splits = {"train": train, **{name: _measured(data, name) for name in ("validation", "test")}}
    return names, splits


def _check_objective(objective: Any, known: str) -> None:
    checks.instance("objective", objective, Objective, "problems.CVaR(share=0.1)")
    if known not in objective.known:
        raise ValueError(
            f"known must be 'nothing' with objective={type(objective).__name__}, which is of all "
            f"examples together, but it is {known!r}."
        )


def _tasks(data: GroupedData, known: str) -> tuple[list[str], np.ndarray]:
    """The names of the tasks, and the number of that of each training example."""
    classes, groups_of = data.train.classes, data.groups("train")
    if known == "nothing":
        return [EVERYTHING], np.zeros(len(classes), np.int32)
    if known == "classes":
        return list(data.class_names), classes
    each = len(data.attribute_names)
    names = list(data.group_names)
    # Behind the groups, those of each class whose attribute isn't known.
    names += [f"{name}{data.between}{UNKNOWN}" for name in data.class_names]
    numbers = np.where(groups_of < 0, each * len(data.class_names) + classes, groups_of)
    there, numbers = np.unique(numbers, return_inverse=True)
    return [names[place] for place in there], numbers


def _measured(data: GroupedData, name: str) -> Split:
    """The examples of each group to evaluate, one group after another; some may be in several."""
    split, members = getattr(data, name), data.members(name)
    sizes = members.sum(axis=1).astype(np.int32)
    empty = [data.evaluation_names[place] for place in np.flatnonzero(sizes == 0)]
    # Where nothing is known of groups on validation, they have no value there.
    if empty and (name == "test" or (split.attributes >= 0).any()):
        raise ValueError(
            f"data.{name} must have an example of each group to evaluate, but has none of "
            f"{', '.join(empty)}. Leave such groups out, or take a larger share of the data."
        )
    where = np.concatenate([np.flatnonzero(of_group) for of_group in members])
    return Split(split.inputs[where], split.classes[where].astype(np.int32), sizes)
