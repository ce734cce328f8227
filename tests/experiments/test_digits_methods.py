"""The experiment with every method."""

import collections

import gin
import numpy as np
import pytest
from helpers import gin_files

from ldro_jax import configuration, weighting

pytest.importorskip("sklearn")

_FILE = "digits_methods.gin"
_PRODUCTS = "digits_products.gin"
_TINY = [
    "TRAIN_STEPS=6",
    "SEEDS=(0, 1)",
    "Schedule.eval_interval=3",
    "Schedule.checkpoint_interval=6",
    "MLP.features=(4,)",
]


@pytest.fixture(autouse=True)
def _no_gin_bindings_left():
    yield
    gin.clear_config()


def _run(output_dir, *bindings, file=_FILE):
    record = gin_files.run(file, output_dir, *_TINY, *bindings)
    for run in record.runs:
        assert run.stopped is None, run.method
        values = run.weights.values
        assert np.isfinite(values).all(), run.method
        np.testing.assert_allclose(np.abs(values).sum(axis=1), 1, rtol=1e-4, err_msg=run.method)
    return record


@pytest.mark.heavy  # tests/test_main.py runs the digits to their report
def test_some_methods_run_to_the_report(tmp_path):
    scopes = ("average", "smooth_relative", "modo", "fairgrad")
    methods = ", ".join(f"@{scope}/Method()" for scope in scopes)
    record = _run(tmp_path, f"compare.methods=[{methods}]")
    assert len(record.runs) == 8 and (tmp_path / "report.html").exists()
    settings = {run.method: run.hyperparameters for run in record.runs}
    assert settings["Smooth L-DRO, A of batches"]["smoothing"] == 0.99
    assert settings["FairGrad"]["total"] == 1.0


@pytest.mark.heavy
def test_the_search_tries_as_many_settings_of_each_method(tmp_path):
    bindings = ["TRAIN_STEPS=3", "SEEDS=(0,)", "MLP.features=(4,)", "Schedule.eval_interval=3"]
    bindings.append("Schedule.checkpoint_interval=3")
    runs = gin_files.run("digits_sweep.gin", tmp_path, *bindings).runs
    counts = collections.Counter(run.method for run in runs)
    assert counts.pop("Average") == 1 and set(counts.values()) == {16}
    # What digits.gin takes is among what was tried.
    for scope in ("scalarization", "group_dro", "term", "ldro", "smooth_ldro"):
        chosen = gin.query_parameter(f"{scope}/Method.hyperparameters")
        for name, tried in gin.query_parameter(f"{scope}/grid.values").items():
            assert chosen[name] in tried, (scope, name)


@pytest.mark.heavy
def test_all_methods_run_to_the_report(tmp_path):
    record = _run(tmp_path)
    assert len({run.method for run in record.runs}) == 43


def test_its_methods_need_nothing_but_losses_and_gradients():
    configuration.load([f"gin_configs/experiments/{_FILE}"], [])
    text = configuration.text().replace("'", '"')
    named = {name for name in weighting.METHODS if f'"{name}"' in text}
    assert len(named) == 41 and not [n for n in named if callable(weighting.ABOUT[n].usual)]


@pytest.mark.heavy
def test_forms_by_products_run_to_the_report(tmp_path):
    scopes = ("average", "at_once", "quarter", "halves", "smooth_products")
    methods = ", ".join(f"@{scope}/Method()" for scope in scopes)
    record = _run(tmp_path, f"compare.methods=[{methods}]", file=_PRODUCTS)
    assert len(record.runs) == 10 and (tmp_path / "report.html").exists()
    settings = {run.method: run.hyperparameters["interaction"] for run in record.runs[1:5]}
    assert settings["L-DRO by both products"] == "products(apart=False, in_turn=False, share=1.0)"
    assert settings["L-DRO by products, a quarter"] == "products"


@pytest.mark.heavy  # weighting/test_signal.py trains it, tasks/test_corrupted.py has the data
def test_hopeless_tasks_are_not_measured(tmp_path):
    methods = "compare.methods=[@average/Method(), @signal/Method(), @smooth_ldro_signal/Method()]"
    file = "digits_hopeless.gin"
    record = _run(tmp_path, methods, "HOPELESS=1", file=file)
    assert len(record.task_names) == 9 and len(record.trained_names) == 10
    assert record.runs[0].weights.values.shape == (2, 10)
