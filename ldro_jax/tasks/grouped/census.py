"""Who earns more than 50,000 dollars a year, of the census of 1994: groups by sex and race.

References:
  Becker and Kohavi, *Adult*, UCI Machine Learning Repository, 1996.
  Kohavi, *Scaling Up the Accuracy of Naive-Bayes Classifiers: a Decision-Tree Hybrid*, KDD 1996.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ldro_jax.runtime import checks
from ldro_jax.tasks import csv_files
from ldro_jax.tasks.grouped.base import SPLITS, GroupedData, GroupedSplit, draw

_FILE = "adult.csv.zip"
_INCOME = {"≤50K": "salary_<=50K", ">50K": "salary_>50K"}
_PROTECTED = {
    "sex": {"female": "sex_Female", "male": "sex_Male"},
    "race": {
        "American Indian": "race_Amer-Indian-Eskimo",
        "Asian": "race_Asian-Pac-Islander",
        "Black": "race_Black",
        "other": "race_Other",
        "White": "race_White",
    },
}
# How many people a row stands for.
_WEIGHT = "fnlwgt"
_CONTINUOUS = ("age", "education-num", "capital-gain", "capital-loss", "hours-per-week")
_OTHERS = ("workclass", "education", "marital-status", "occupation", "relationship")
_CATEGORIES = (*_OTHERS, "native-country")


def adult(
    *,
    data_dir: str | os.PathLike[str] | None = None,
    by: Sequence[str] = ("sex", "race"),
    keep_protected: bool = False,
    seed: int = 0,
) -> GroupedData:
    """45,222 adults with ages, schools and jobs; whether they earn more than 50,000 dollars.

    Of each group 60 % are trained on and 20 % chosen by, so that every group is in every split. Of
    women of race "other" who earn more there are nine in all, and two in test. Sex can be guessed
    from what is left even without the protected columns, since two of the relationships are husband
    and wife.

    Args:
      data_dir: holds ``adult.csv.zip``, which ``python scripts/public_data.py`` puts there.
      by: what the attribute is, "sex", "race", or both, which gives ten values.
      keep_protected: whether the columns of sex and race, seven, are inputs too.
      seed: of the division into splits.

    Returns:
      The :class:`GroupedData`, with inputs float32 ``[E, 96]``, or 103: five numbers, with mean 0
      and variance 1 in train, and columns of 0 and 1. The weight of a row in the census is left
      out.

    Raises:
      FileNotFoundError: if the file isn't there.
      ValueError: if it holds something else, or an argument isn't what it must be.
    """
    checks.names("by", by, "('sex', 'race')")
    for name in by:
        checks.one_of("by", name, tuple(_PROTECTED))
    checks.flag("keep_protected", keep_protected)
    checks.seed("seed", seed)
    protected = [column for columns in _PROTECTED.values() for column in columns.values()]
    needed = (*_CONTINUOUS, *_INCOME.values(), *protected)
    table = csv_files.read(data_dir, _FILE, needed)
    kept = [column for column in table if column.startswith(tuple(f"{x}_" for x in _CATEGORIES))]
    kept += protected if keep_protected else []

    classes = _category(table, _INCOME)
    attributes, names = np.zeros(len(table), np.int32), [""]
    for category in by:
        values = _PROTECTED[category]
        attributes = attributes * len(values) + _category(table, values)
        names = [f"{name} {value}".strip() for name in names for value in values]
    groups = classes * len(names) + attributes
    rows = draw(groups, (0.6, 0.2), np.random.default_rng(seed))

    numbers = csv_files.numbers(table, _CONTINUOUS)
    trained = numbers[rows[0]].astype(np.float64)
    std = trained.std(axis=0)
    numbers = ((numbers - trained.mean(axis=0)) / np.where(std > 0, std, 1)).astype(np.float32)
    inputs = np.concatenate([numbers, csv_files.numbers(table, kept)], axis=1)
    splits: dict[str, Any] = {
        name: GroupedSplit(inputs[where], classes[where], attributes[where])
        for name, where in zip(SPLITS, rows, strict=True)
    }
    return GroupedData(**splits, class_names=tuple(_INCOME), attribute_names=tuple(names))


def _category(table, columns: dict[str, str]) -> np.ndarray:
    """Which of these columns of 0 and 1 is 1, int32 ``[row]``."""
    values = csv_files.numbers(table, list(columns.values()))
    if not (np.isin(values, (0, 1)).all() and (values.sum(axis=1) == 1).all()):
        raise ValueError(
            f"Each row of {_FILE} must have a 1 in one of {', '.join(columns.values())} and a 0 in "
            f"the others, but some don't. {csv_files.PUBLIC}"
        )
    return values.argmax(axis=1).astype(np.int32)
