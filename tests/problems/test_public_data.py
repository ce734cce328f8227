"""The public data: what is read of the files, and linear models beside scikit-learn's."""

import functools
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from helpers import public_files

import ldro_jax
from ldro_jax import reporting
from ldro_jax.models import mlp
from ldro_jax.problems import public_data
from ldro_jax.training import Batches, Method, Schedule

linear_model = pytest.importorskip("sklearn.linear_model")
metrics = pytest.importorskip("sklearn.metrics")

_LINEAR = functools.partial(mlp.MLP, features=())
_GIVEN = "LDRO_JAX_PUBLIC_DATA"


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    folder = tmp_path_factory.mktemp("public")
    public_files.write(folder)
    return folder


@pytest.fixture
def no_report(monkeypatch):
    monkeypatch.setattr(reporting, "write_report", lambda *args, **options: None)


def _load(name, folder, **options):
    return getattr(public_data, name)(data_dir=folder, model=_LINEAR, **options)


def _rows(problem, split, number):
    """Inputs and targets of one task, float64, as scikit-learn takes them."""
    held = problem._splits[split]
    if problem.labels is None:
        found = held.of(number)
    else:
        (rows,) = held.values()
        found = rows.inputs, rows.targets[:, number]
    return tuple(np.float64(x) for x in found)


def _logistic(x, y, x_test, y_test, ridge):
    # scikit-learn has C Σ loss + |w|²/2.
    model = linear_model.LogisticRegression(C=1 / (2 * ridge * len(x)), tol=1e-8, max_iter=9999)
    logits = model.fit(x, y).decision_function(x_test)
    return {
        "AUROC": metrics.roc_auc_score(y_test, logits),
        "average precision": metrics.average_precision_score(y_test, logits),
        "accuracy": metrics.accuracy_score(y_test, logits > 0),
    }


def _ridge(x, y, x_test, y_test, ridge):
    # scikit-learn has Σ error² + α |w|².
    model = linear_model.Ridge(alpha=ridge * len(x)).fit(x, (y - y.mean()) / y.std())
    predicted = model.predict(x_test) * y.std() + y.mean()
    return {
        "R²": metrics.r2_score(y_test, predicted),
        "RMSE": metrics.root_mean_squared_error(y_test, predicted),
    }


def _agrees_with_scikit_learn(name, folder, output_dir, *, ridge, steps, **options):
    """Trains linear models of all tasks together, on all rows at a time; gives the differences."""

    def penalty(params):
        # Of the mean over the tasks.
        weights = params["Dense_0"]["kernel"]
        return ridge / weights.shape[1] * jnp.sum(weights**2)

    problem = _load(name, folder, penalty=penalty, **options)
    is_shared = problem.labels is not None
    record = ldro_jax.compare(
        problem,
        [Method("Average", "average")],
        seeds=(0,),
        optimizer=optax.lbfgs(1.0, linesearch=None),
        schedule=Schedule(steps, eval_interval=steps, checkpoint_interval=steps, test="last"),
        batches=Batches(
            int(problem.sizes.max() if is_shared else problem.sizes.sum()),
            sampler="balanced" if is_shared else "uniform",
        ),
        output_dir=output_dir,
    )
    oracle = _logistic if name == "yeast" else _ridge
    found = {x.metric: x.per_task for x in record.runs[0].evaluations if x.split == "test"}
    largest = dict.fromkeys(found, 0.0)
    for number, task in enumerate(problem.task_names):
        rows = (*_rows(problem, "train", number), *_rows(problem, "test", number))
        expected = oracle(*rows, ridge)
        assert set(expected) == set(found)
        for metric, value in expected.items():
            difference = abs(found[metric][task] - value)
            assert difference < 1e-3, (metric, task)
            largest[metric] = max(largest[metric], difference)
    return largest


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("name", ["yeast", "chicago", "moleculeace"])
def test_linear_models_are_scikit_learns(name, made_up, tmp_path):
    options = {"targets": public_files.PROTEINS, "num_features": 16}
    options = options if name == "moleculeace" else {}
    # Optax's L-BFGS isn't made for strict promotion.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        _agrees_with_scikit_learn(name, made_up, tmp_path, ridge=0.3, steps=60, **options)


@pytest.mark.heavy
@pytest.mark.skipif(
    _GIVEN not in os.environ,
    reason=f"{_GIVEN} doesn't name a directory that scripts/public_data.py made",
)
@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(
    ("name", "ridge", "steps"),
    [("yeast", 0.01, 100), ("chicago", 0.01, 250), ("moleculeace", 1.0, 300)],
)
def test_linear_models_of_the_real_data_are_scikit_learns(name, ridge, steps, tmp_path):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found = _agrees_with_scikit_learn(
            name, os.environ[_GIVEN], tmp_path, ridge=ridge, steps=steps
        )
    print(name, found)


def test_genes_are_divided_at_random(made_up):
    problem = _load("yeast", made_up)
    table = pd.read_csv(made_up / "yeast.csv.gz")
    assert problem.task_names == tuple(f"Class{i}" for i in range(1, 15))
    parts = [_rows(problem, split, 0) for split in ("train", "validation", "test")]
    assert [len(x) for x, _ in parts] == [54, 18, 18]
    inputs, first = (np.concatenate(x) for x in zip(*parts, strict=True))
    # Scaled by the rows that are trained on; a column tells which row is which.
    np.testing.assert_allclose(parts[0][0].mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(parts[0][0].std(axis=0), 1, rtol=1e-5)
    order = np.argsort(np.argsort(inputs[:, 0]))
    by_value = table.sort_values("Att1")
    np.testing.assert_array_equal(first, by_value["Class1"].to_numpy()[order])
    assert (np.diff(order) < 0).any()
    other = _rows(_load("yeast", made_up, seed=1), "test", 0)[0]
    assert not np.array_equal(other, parts[2][0])


def test_riders_of_a_day_are_known_two_weeks_later(made_up):
    problem = _load("chicago", made_up)
    table = pd.read_csv(made_up / "chicago.csv")
    parts = [_rows(problem, split, 6) for split in ("train", "validation", "test")]
    assert [len(x) for x, _ in parts] == [54, 18, 18]
    inputs, riders = (np.concatenate(x) for x in zip(*parts, strict=True))
    assert problem.task_names[6] == "Clark_Lake"
    # The row of a day has the riders of two weeks before.
    np.testing.assert_allclose(riders[:-14], table["Clark_Lake"][14:90], rtol=1e-6)
    np.testing.assert_allclose(np.corrcoef(inputs[14:, 6], riders[:-14])[0, 1], 1, rtol=1e-6)
    weekday = np.argmax(inputs[:, -7:], axis=1)
    np.testing.assert_array_equal(weekday, pd.to_datetime(table["date"]).dt.day_of_week[:90])


def test_a_molecule_that_is_tested_is_not_trained_on(made_up):
    options = {"targets": public_files.PROTEINS, "num_features": 64}
    problem = _load("moleculeace", made_up, **options)
    # Of 50 and 70 rows the first ten are alike, and tested for the first protein alone; of the
    # others a fifth is tested.
    sizes = {
        split: np.array([len(_rows(problem, split, i)[1]) for i in range(2)])
        for split in ("train", "validation", "test")
    }
    assert sizes["test"].tolist() == [10 + 8, 12]
    left = sizes["train"] + sizes["validation"]
    assert left.tolist() == [32, 48]
    assert sizes["validation"].sum() == 16
    trained = np.concatenate([_rows(problem, "train", i)[0] for i in range(2)])
    np.testing.assert_allclose(trained.mean(axis=0), 0, atol=1e-4)


def test_what_cannot_be_read_is_one_line(made_up, tmp_path):
    def refused(kind, message):
        with pytest.raises(kind, match=message) as caught:
            _load("chicago", tmp_path)
        assert "python scripts/public_data.py --data_dir=DIRECTORY makes it" in str(caught.value)
        assert "\n" not in str(caught.value)

    whole = (made_up / "chicago.csv").read_text()
    head, *days = whole.splitlines()
    path = pathlib.Path(tmp_path) / "chicago.csv"
    refused(FileNotFoundError, "There is no file .*chicago.csv")
    with pytest.raises(FileNotFoundError, match="--data_dir must name .* holds chicago.csv"):
        _load("chicago", None)
    for text, message in (
        ("", "can't be read"),
        (whole.replace("Monroe", "Munroe"), "must have the columns .*, but it lacks Monroe"),
        ("\n".join([head, *days[:9], *days[10:]]), "must have a row for each day"),
        ("\n".join([head, *days[:14]]), "must have a row for each day, and more than 14"),
        (whole.replace("2001-01-23", "a day"), "must have dates such as"),
        (whole.replace(days[3].partition(",")[0], "many"), "must be numbers"),
        (whole.replace(days[3].partition(",")[0], ""), "must be finite numbers"),
    ):
        path.write_text(text)
        refused(ValueError, message)
    path = tmp_path / "yeast.csv.gz"
    path.write_bytes((made_up / "yeast.csv.gz").read_bytes()[:500])
    with pytest.raises(ValueError, match="yeast.csv.gz can't be read"):
        _load("yeast", tmp_path)


@pytest.mark.parametrize("name", ["yeast", "chicago", "moleculeace"])
def test_a_model_that_is_none_is_refused(name, made_up):
    with pytest.raises(ValueError, match="model must be a function of num_classes"):
        getattr(public_data, name)(data_dir=made_up, model="MLP")
