"""Examples with a class and an attribute, which may be unknown; a group is one with the other.

The groups to train with are class × attribute, class by class: of two classes and two attributes,
group 2 is class 1 with attribute 0. Those to evaluate are the same, unless the data brings others,
which may overlap, as the sixteen of CivilComments do.

References:
  Sagawa et al., *Distributionally Robust Neural Networks for Group Shifts*, ICLR 2020.
  Koh et al., *WILDS: A Benchmark of in-the-Wild Distribution Shifts*, ICML 2021.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from ldro_jax.runtime import checks
from ldro_jax.tasks import base

SPLITS = ("train", "validation", "test")


class GroupedSplit(NamedTuple):
    """Examples with their classes and attributes.

    Attributes:
      inputs: ``[E, ...]``.
      classes: from 0, int32 ``[E]``.
      attributes: from 0, and -1 where it isn't known, int32 ``[E]``.
    """

    inputs: np.ndarray
    classes: np.ndarray
    attributes: np.ndarray


class EvaluationGroups(NamedTuple):
    """Groups to evaluate that aren't class × attribute; an example may be in several, or in none.

    Attributes:
      names: of the groups.
      train: which training examples are in each, bool ``[G, E]``.
      validation: the same of the validation examples.
      test: the same of the test examples.
    """

    names: tuple[str, ...]
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


@dataclasses.dataclass(frozen=True)
class GroupedData:
    """A data set with groups, NumPy arrays in memory.

    Attributes:
      train: examples to train on.
      validation: examples to choose by.
      test: examples to report, whose groups are all known.
      class_names: one for each class.
      attribute_names: one for each value of the attribute.
      between: what stands between the two in the name of a group.
      prepare: applied on the device to each batch, so that images can be stored as bytes.
      evaluation: the groups to evaluate, if they aren't class × attribute.
      shares: of the groups among the examples that training is about, float64 ``[G]``, where these
        aren't those of ``train``; see :attr:`training_shares`.

    Raises:
      ValueError: if arrays differ in length, or hold a class or an attribute without a name, or if
        a test example is in no known group.
    """

    train: GroupedSplit
    validation: GroupedSplit
    test: GroupedSplit
    class_names: tuple[str, ...]
    attribute_names: tuple[str, ...]
    between: str = ", "
    prepare: Callable[[jax.Array], jax.Array] = base.unchanged
    evaluation: EvaluationGroups | None = None
    shares: np.ndarray | None = None

    def __post_init__(self) -> None:
        checks.names("class_names", self.class_names, "('landbird', 'waterbird')")
        checks.names("attribute_names", self.attribute_names, "('land', 'water')")
        checks.require(isinstance(self.between, str), "between", "a text in quotes", self.between)
        checks.function("prepare", self.prepare, example="inputs -> inputs")
        for name in SPLITS:
            self._check_split(name, getattr(self, name))
        if self.evaluation is not None:
            self._check_evaluation(self.evaluation)
        if self.shares is not None:
            size = len(self.group_names)
            fits = np.shape(self.shares) == (size,) and np.min(self.shares) >= 0
            fits = fits and np.isclose(np.sum(self.shares), 1)
            expected = f"shares of the {size} groups, which sum to 1"
            checks.require(fits, "shares", expected, self.shares)

    def _check_split(self, name: str, split: GroupedSplit) -> None:
        example = "GroupedSplit(inputs, classes, attributes)"
        checks.instance(name, split, GroupedSplit, example)
        for part, array in split._asdict().items():
            is_numeric = isinstance(array, np.ndarray) and array.dtype.kind not in "OUSMm"
            checks.require(is_numeric, f"{name}.{part}", "a NumPy array of numbers", array)
            checks.on_device(name, part, array)
        inputs, classes, attributes = split
        shapes = inputs.shape[:1], classes.shape, attributes.shape
        if not inputs.ndim or len(set(shapes)) > 1 or not len(inputs):
            raise ValueError(
                f"{name} must hold inputs [examples, ...], classes [examples] and attributes "
                f"[examples], at least one, but their shapes are {inputs.shape}, {classes.shape} "
                f"and {attributes.shape}."
            )
        # A group in test that isn't known would be left out of the worst without a word.
        lowest = 0 if name == "test" and self.evaluation is None else -1
        unknown = ", or -1 where it isn't known" if lowest else ""
        self._check_ids(f"{name}.classes", classes, self.class_names, 0, "")
        self._check_ids(f"{name}.attributes", attributes, self.attribute_names, lowest, unknown)
        if inputs.shape[1:] != self.train.inputs.shape[1:]:
            raise ValueError(
                f"{name}.inputs must be [examples, ...] like those of train, "
                f"{self.train.inputs.shape[1:]} each, but they are {inputs.shape[1:]}."
            )

    @staticmethod
    def _check_ids(where, ids, names, lowest, unknown) -> None:
        is_whole = np.issubdtype(ids.dtype, np.integer)
        checks.require(is_whole, where, "integers", ids.dtype)
        if ids.min() < lowest or ids.max() >= len(names):
            raise ValueError(
                f"{where} must be from 0 to {len(names) - 1}, since there are {len(names)} names"
                f"{unknown}, but they are from {ids.min()} to {ids.max()}."
            )

    def _check_evaluation(self, evaluation: EvaluationGroups) -> None:
        example = "EvaluationGroups(names, train, validation, test)"
        checks.instance("evaluation", evaluation, EvaluationGroups, example)
        checks.names("evaluation.names", evaluation.names, "('toxic, black', 'toxic, white')")
        for name in SPLITS:
            members, split = getattr(evaluation, name), getattr(self, name)
            expected = len(evaluation.names), len(split.classes)
            found = np.shape(members), getattr(members, "dtype", type(members))
            if found != (expected, np.dtype(bool)):
                raise ValueError(
                    f"evaluation.{name} must be bool {list(expected)}, [groups, examples], but it "
                    f"is {found[1]} {list(found[0])}."
                )

    @property
    def group_names(self) -> tuple[str, ...]:
        """Names of the groups to train with, G = classes × attributes, class by class."""
        pairs = itertools.product(self.class_names, self.attribute_names)
        return tuple(f"{name}{self.between}{attribute}" for name, attribute in pairs)

    @property
    def evaluation_names(self) -> tuple[str, ...]:
        """Names of the groups to evaluate."""
        return self.group_names if self.evaluation is None else self.evaluation.names

    def groups(self, split: str) -> np.ndarray:
        """The group of each example to train with, int32 ``[E]``; -1 where it isn't known.

        Args:
          split: "train", "validation" or "test".
        """
        checks.one_of("split", split, SPLITS)
        _, classes, attributes = getattr(self, split)
        groups = classes * len(self.attribute_names) + attributes
        return np.where(attributes < 0, -1, groups).astype(np.int32)

    def counts(self, split: str) -> np.ndarray:
        """Examples that are known to be in each group to train with, int64 ``[G]``; may be 0."""
        groups = self.groups(split)
        return np.bincount(groups[groups >= 0], minlength=len(self.group_names))

    @property
    def training_shares(self) -> np.ndarray | None:
        """Shares of the groups in training, float64 ``[G]``; ``None`` where they aren't known."""
        if self.shares is not None:
            return self.shares
        counts, size = self.counts("train"), len(self.train.classes)
        return counts / size if counts.sum() == size else None

    def members(self, split: str) -> np.ndarray:
        """Which examples are in each group to evaluate, bool ``[G, E]``."""
        if self.evaluation is None:
            return self.groups(split) == np.arange(len(self.group_names))[:, None]
        checks.one_of("split", split, SPLITS)
        return getattr(self.evaluation, split)


def draw(groups: np.ndarray, shares: Sequence[float], rng: np.random.Generator) -> list[np.ndarray]:
    """Divides examples so that each part has a share of each group.

    Args:
      groups: the group of each example, ``[E]``.
      shares: of each part but the last, which takes what is left.
      rng: draws which.

    Returns:
      The numbers of the examples of each part, ascending, int64.
    """
    ends, order = np.cumsum(shares), rng.permutation(len(groups))
    members = [order[groups[order] == group] for group in np.unique(groups)]
    parts = [np.split(rows, np.rint(ends * len(rows)).astype(int)) for rows in members]
    return [np.sort(np.concatenate(part)) for part in zip(*parts, strict=True)]
