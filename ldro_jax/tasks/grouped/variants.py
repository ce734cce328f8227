"""The same data with less known of its groups, or with other numbers of examples to train on."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ldro_jax.runtime import checks
from ldro_jax.tasks.grouped.base import SPLITS, EvaluationGroups, GroupedData, GroupedSplit, draw

# What all examples are called.
EVERYTHING = "all examples"
_EXAMPLE = "waterbirds(data_dir=…)"


def hide(data: GroupedData, share: float, *, seed: int = 0) -> GroupedData:
    """Keeps the attributes of a share of the training examples; those of the others are unknown.

    Which are kept is drawn from all of them alike, so that a rare group may lose all of its own.
    With the same seed a larger share keeps those of a smaller one, and others.

    Args:
      data: whose validation and test examples stay as they are.
      share: of the training examples, from 0 to 1.
      seed: of the draw.

    Raises:
      ValueError: if an argument isn't what it must be.
    """
    checks.instance("data", data, GroupedData, _EXAMPLE)
    checks.number("share", share, "[0, 1]")
    checks.seed("seed", seed)
    size = len(data.train.attributes)
    hidden = np.random.default_rng(seed).permutation(size)[round(share * size) :]
    attributes = data.train.attributes.copy()
    attributes[hidden] = -1
    train = data.train._replace(attributes=attributes)
    return dataclasses.replace(data, train=train, shares=data.training_shares)


def unlabelled(data: GroupedData, *, splits: Sequence[str] = ("train",)) -> GroupedData:
    """Takes all attributes out of some splits, train alone or validation too.

    Raises:
      ValueError: if an argument isn't what it must be.
    """
    checks.instance("data", data, GroupedData, _EXAMPLE)
    checks.names("splits", splits, "('train', 'validation')")
    changed: dict[str, Any] = {"shares": data.training_shares}
    for name in splits:
        checks.one_of("splits", name, SPLITS[:2])
        split: GroupedSplit = getattr(data, name)
        changed[name] = split._replace(attributes=np.full_like(split.attributes, -1))
    return dataclasses.replace(data, **changed)


def subsample(data: GroupedData, by: str = "groups", *, seed: int = 0) -> GroupedData:
    """Takes as many training examples of each group, or class, as the smallest one has.

    What Idrissi et al. call SUBG and SUBY. Examples whose group isn't known are left out of SUBG.

    Args:
      data: whose validation and test examples stay as they are, as do its ``training_shares``.
      by: "groups", class × attribute, or "classes".
      seed: of the draw.

    Raises:
      ValueError: if an argument isn't what it must be, or one of these has no training example.

    References:
      Idrissi et al., *Simple data balancing achieves competitive worst-group-accuracy*, 2022.
    """
    checks.instance("data", data, GroupedData, _EXAMPLE)
    checks.one_of("by", by, ("groups", "classes"))
    checks.seed("seed", seed)
    numbers, names = data.train.classes, data.class_names
    if by == "groups":
        numbers, names = data.groups("train"), data.group_names
    counts = np.bincount(numbers[numbers >= 0], minlength=len(names))
    if missing := [names[place] for place in np.flatnonzero(counts == 0)]:
        raise ValueError(
            f"data must have training examples of each of the {by} to take as many of each, but "
            f"none is known to be of {', '.join(missing)}."
        )
    order = np.random.default_rng(seed).permutation(len(numbers))
    rows = [order[numbers[order] == number][: counts.min()] for number in range(len(names))]
    return with_rows(data, np.sort(np.concatenate(rows)))


def upsample(data: GroupedData, rows: np.ndarray, factor: int) -> GroupedData:
    """Takes some training examples several times.

    Args:
      data: whose validation and test examples stay as they are, as do its ``training_shares``.
      rows: which, bool ``[E]``.
      factor: how often each of them is there; the others are there once.

    Raises:
      ValueError: if an argument isn't what it must be.
    """
    checks.instance("data", data, GroupedData, _EXAMPLE)
    size = len(data.train.classes)
    fits = np.shape(rows) == (size,) and np.asarray(rows).dtype == bool
    checks.require(fits, "rows", f"bool [{size}], one for each training example", rows)
    checks.integer("factor", factor)
    return with_rows(data, np.repeat(np.arange(size), np.where(rows, factor, 1)))


def with_rows(data: GroupedData, rows: np.ndarray, split: str = "train") -> GroupedData:
    """The data with some examples of a split, by their numbers ``[E]``, which may repeat."""
    changed: dict[str, Any] = {"shares": data.training_shares}
    changed[split] = GroupedSplit(*(x[rows] for x in getattr(data, split)))
    if data.evaluation is not None:
        members = getattr(data.evaluation, split)[:, rows]
        changed["evaluation"] = data.evaluation._replace(**{split: members})
    return dataclasses.replace(data, **changed)


def on_validation(data: GroupedData, share: float, *, seed: int) -> GroupedData:
    """The data with a share of each group of validation to train on, and the rest to choose by.

    Raises:
      ValueError: if the group of an example on validation isn't known, or the share has none of a
        group.
    """
    numbers = data.groups("validation")
    if unknown := int((numbers < 0).sum()):
        raise ValueError(
            "data.validation must have the attribute of each example to be trained on, but that of "
            f"{unknown} isn't known."
        )
    first, rest = draw(numbers, (share,), np.random.default_rng(seed))
    missing = np.bincount(numbers[first], minlength=len(data.group_names)) == 0
    if missing.any():
        counts = data.counts("validation")
        found = [f"{counts[n]} of {data.group_names[n]}" for n in np.flatnonzero(missing)]
        raise ValueError(
            f"data.validation must have examples of each group in a share of {share} to train on, "
            f"but of all examples there are {', '.join(found)}. Take a larger share."
        )
    trained, chosen = with_rows(data, first, "validation"), with_rows(data, rest, "validation")
    evaluation = chosen.evaluation
    if evaluation is not None:
        assert trained.evaluation is not None
        evaluation = evaluation._replace(train=trained.evaluation.validation)
    return dataclasses.replace(chosen, train=trained.validation, evaluation=evaluation)


def of_class(name: str) -> str:
    """What the examples of a class are called among groups to evaluate."""
    return f"class {name}"


def with_totals(data: GroupedData) -> GroupedData:
    """The data with each class, and all examples, among the groups to evaluate.

    Only where they don't follow from these: where groups overlap, or an example is in none.
    """
    if data.evaluation is None and (data.validation.attributes >= 0).all():
        return data
    names = (*data.evaluation_names, *map(of_class, data.class_names), EVERYTHING)
    numbers = np.arange(len(data.class_names))[:, None]

    def members(split: str) -> np.ndarray:
        classes = getattr(data, split).classes
        everything = np.ones((1, len(classes)), bool)
        return np.concatenate([data.members(split), classes == numbers, everything])

    return dataclasses.replace(data, evaluation=EvaluationGroups(names, *map(members, SPLITS)))
