"""A compact record is small, keeps what the report shows, and makes the same report."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from ldro_jax import reporting
from ldro_jax.records import results
from ldro_jax.records.compact import compact
from ldro_jax.reporting import __main__ as command

NAMES = [f"task {i}" for i in range(12)]


def _record():
    rng = np.random.default_rng(0)

    def run(rate, seed):
        evaluations = [
            results.summarise_evaluation(step, split, "accuracy", NAMES, values, True)
            for step in range(10, 110, 10)
            for split in ("validation", "test")
            for values in [np.float32(rng.uniform(0.2, 0.8, 12))]
        ]
        steps = range(10, 110, 10)
        return results.Run(
            method="DRO",
            hyperparameters={"rate": rate},
            seed=seed,
            num_steps=100,
            seconds_per_step=0.123456789,
            evaluations=evaluations,
            weights=results.Series(steps, rng.dirichlet(np.ones(12), 10)),
            losses=results.Series(steps, rng.uniform(size=(10, 12))),
            interaction=results.Series([100], rng.normal(size=(1, 12, 12))),
        )

    runs = [run(rate, seed) for rate in (0.1, 0.2) for seed in (0, 1)]
    return results.Results("sweep", NAMES, "accuracy", True, runs)


def test_tasks_are_kept_at_the_end_of_each_run_alone():
    record = _record()
    for run, small in zip(record.runs, compact(record).runs, strict=True):
        for e, kept in zip(run.evaluations, small.evaluations, strict=True):
            assert kept.per_task == (e.per_task if e.step == 100 else {})
            assert (kept.step, kept.split, kept.average, kept.worst, kept.worst_task) == (
                e.step,
                e.split,
                e.average,
                e.worst,
                e.worst_task,
            )
        assert small.weights is run.weights and small.interaction is run.interaction


def test_a_split_that_ends_earlier_keeps_the_tasks_of_its_own_end():
    (run, *_) = _record().runs
    kept = [e for e in run.evaluations if e.split == "validation" or e.step == 40]
    record = results.Results(
        "x", NAMES, "accuracy", True, [dataclasses.replace(run, evaluations=kept)]
    )
    (small,) = compact(record).runs
    found = {(e.split, e.step) for e in small.evaluations if e.per_task}
    assert found == {("validation", 100), ("test", 40)}


def test_a_run_without_anything_stays_empty():
    run = results.Run(method="A", seed=0, num_steps=1)
    (found,) = compact(results.Results("empty", NAMES, "accuracy", True, [run])).runs
    assert found.weights is None and found.seconds_per_step is None and not found.evaluations


@pytest.mark.usefixtures("unpainted")
def test_the_command_makes_the_report_again(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    results.save_results(_record(), tmp_path / "results.json")
    (tmp_path / "config.gin").write_text("TRAIN_STEPS = 100 # as it was")
    command.main([str(tmp_path / "results.json"), str(tmp_path / "again"), "--compact"])
    text = (tmp_path / "again" / "report.html").read_text(encoding="utf-8")
    whole = tmp_path / "whole"
    record = results.load_results(tmp_path / "results.json")
    reporting.write_report(record, whole, config_text="TRAIN_STEPS = 100 # as it was")
    assert text == (whole / "report.html").read_text(encoding="utf-8")
    assert "TRAIN_STEPS = 100 # as it was" in text and "Pareto frontiers" in text
    assert "report.html" in capsys.readouterr().out
    assert results.load_results(tmp_path / "again" / "results.json").experiment == "sweep"


def test_a_missing_record_is_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "ldro_jax.reporting", str(tmp_path / "none.json"), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and done.stderr.startswith("Error: Expected a results file at")
    assert "Traceback" not in done.stderr
