"""Whole experiments: what is refused, what is written, and what is kept when something breaks."""

import dataclasses
import errno
import functools
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import tiny

from ldro_jax.experiments import compare, runs
from ldro_jax.records import results
from ldro_jax.runtime import preemption
from ldro_jax.sharding import Layout
from ldro_jax.training.engine import Program
from ldro_jax.training.meshed import MeshedProgram
from ldro_jax.training.method import Method
from ldro_jax.training.stacked import StackedProgram

LDRO = Method("L", "lookahead_online", {"lookahead_lr": 1})
BASELINED = Method("B", "baselined_dro", {"weight_lr": 0.5})
MIXING = Method("S", "static_mixing", {"exponent": 1.0})


@pytest.fixture(params=[None, tiny.ONE], ids=["stacked", "meshed"])
def layout(request):
    """For the engine of one device, and that of a mesh."""
    return request.param


def _no_data(data_dir):
    raise AssertionError("The data must not be loaded for an experiment that can't run.")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": []}, "methods must be a list of methods and grids"),
        ({"methods": ["average"]}, "methods must be a list of methods and grids.*'average'"),
        ({"methods": [tiny.AVERAGE, tiny.AVERAGE]}, "their own name.*'Average', 'Average'"),
        ({"methods": [LDRO]}, "methods: 'L' lacks weight_lr in its hyperp.* {'lookahead_lr': 1}"),
        ({"seeds": ()}, "seeds must be a list of seeds"),
        ({"seeds": (0, 1, 0)}, r"all different, but it is \(0, 1, 0\)"),
        ({"seeds": (0.5,)}, "seeds must be an integer"),
        ({"seeds": 3}, "seeds must be a list of seeds"),
        ({"schedule": 10}, "schedule must be a Schedule"),
        ({"batch_size": 24.0}, "size must be a positive integer, but it is 24.0"),
        ({"sampler": "even"}, "sampler must be one of 'balanced', 'uniform', but it is 'even'"),
        ({"select_by": "best"}, "select_by must be one of 'average', 'worst', but it is 'best'"),
        ({"name": ""}, "name must be a text"),
        ({"description": None}, "description must be a text"),
        ({"references": 3}, "references must be a text in quotes"),
        ({"references": lambda: 3}, "references must be a function of output_dir"),
        ({"methods": [BASELINED]}, "references must be a references.json, or @monolingual"),
    ],
)
def test_experiments_that_cannot_run_are_refused_before_there_is_data(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        tiny.run(tmp_path, problem=_no_data, **options)
    assert list(tmp_path.iterdir()) == []


def _no_references(output_dir):
    raise AssertionError("Nothing must be trained for an experiment that can't run.")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"problem": "tiny"}, "problem must be a Problem or a function of data_dir"),
        ({"problem": lambda data_dir: tiny.data()}, "problem must be a Problem or a function"),
        ({"optimizer": optax.sgd}, "optimizer must be a GradientTransformation.*the function sgd"),
        ({"batch_size": 2}, "Batches.size must be at least 3, a row of each task, but it is 2"),
        ({"microbatches": 5}, "Batches.size must be a multiple of microbatches"),
        (
            {"methods": [dataclasses.replace(MIXING, hyperparameters={"sizes": (1.0, 2.0)})]},
            "methods: 'S' can't be trained. sizes must hold one number for each of the 3 tasks",
        ),
        ({"references": "a.json"}, "references must be None for a problem that isn't a language"),
        ({"references": _no_references}, "references must be None for a problem that isn't a l"),
    ],
)
def test_everything_is_checked_before_anything_is_written(options, message, layout, tmp_path):
    def ready():
        raise AssertionError("It isn't.")

    with pytest.raises(ValueError, match=message):
        tiny.run(tmp_path, ready=ready, layout=layout, **options)
    assert list(tmp_path.iterdir()) == []


def test_what_needs_a_mesh_says_so(tmp_path):
    drawn = dataclasses.replace(MIXING, sampling="weights")
    with pytest.raises(ValueError, match="'S' can't be trained. sampling must be 'uniform' .*layo"):
        tiny.run(tmp_path, methods=[drawn])
    with pytest.raises(ValueError, match="layout must be a Layout"):
        tiny.run(tmp_path, layout="data")
    with pytest.raises(ValueError, match="layout asks for a mesh of 64 × 1 devices"):
        tiny.run(tmp_path, layout=Layout(data=64))
    assert list(tmp_path.iterdir()) == []


def test_several_processes_train_on_a_mesh(monkeypatch):
    # The other engine holds all data on the device of one process.
    make = functools.partial(
        compare.make_program, tiny.problem(), optax.sgd(0.1), tiny.batches(), tiny.AVERAGE
    )
    assert isinstance(make(), StackedProgram)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert isinstance(make(), MeshedProgram)


def test_ready_is_called_once_before_anything_is_written(layout, tmp_path, no_report):
    seen = []
    tiny.run(tmp_path, layout=layout, ready=lambda: seen.append(list(tmp_path.iterdir())))
    assert seen == [[]] and (tmp_path / "results.json").exists()


def test_a_call_from_python_looks_after_its_directory(tmp_path, no_report, trained):
    record = tiny.run(tmp_path / "new")
    (tmp_path / "new" / "report.html").write_text("report")
    text = (tmp_path / "new" / "config.gin").read_text()
    assert "'Average'" in text and "seeds = [0, 1]" in text and "train_steps=10" in text
    trained.trials.clear()
    again = tiny.run(tmp_path / "new")
    assert trained.trials == [] and everything(again) == everything(record)
    before = files_of(tmp_path)
    assert tiny.run(tmp_path / "new", seeds=(0,)).runs[0].seed == 0 and trained.trials == []
    before = files_of(tmp_path)
    with pytest.raises(ValueError, match="made with another batch_size: it was 24, now it is 12"):
        tiny.run(tmp_path / "new", batch_size=12)
    with pytest.raises(FileExistsError, match="holds files, but no experiment"):
        tiny.run(tmp_path)
    assert files_of(tmp_path) == before
    tiny.run(tmp_path / "new", batch_size=12, seeds=(1,), overwrite=True)
    assert [path.stem for path in (tmp_path / "new" / "runs").iterdir()] == ["Average-seed1"]


def files_of(directory):
    """The content of all files but the lock, which says who had it last."""
    return {
        path: path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and "lock" not in path.name
    }


def everything(record):
    """All of an experiment's runs but what the clock says, as records are rounded."""
    found = [dataclasses.replace(run, seconds_per_step=None) for run in record.runs]
    return json.loads(json.dumps([results.run_to_record(run) for run in found]))


def test_methods_get_the_sizes_of_the_tasks(layout, tmp_path, no_report, trained):
    record = tiny.run(tmp_path, methods=[MIXING], seeds=(0,), layout=layout)
    sizes = np.array([40, 32, 40])
    np.testing.assert_allclose(trained.trials[0].method.hyperparameters["sizes"], sizes / 112)
    np.testing.assert_allclose(record.runs[0].weights.values[-1], sizes / 112, rtol=1e-5)
    # The record holds what was set.
    assert record.runs[0].hyperparameters == MIXING.hyperparameters
    assert record.task_sizes == dict(zip(tiny.NAMES, sizes.tolist(), strict=True))


def break_seed_1(monkeypatch):
    for engine in (StackedProgram, MeshedProgram):

        def init(self, seed, init=engine.init):
            state = init(self, seed)
            if seed == 1:
                state = state._replace(params=jax.tree.map(lambda p: p * jnp.nan, state.params))
            return state

        monkeypatch.setattr(engine, "init", init)


@pytest.mark.usefixtures("unpainted")
@pytest.mark.parametrize("test", ["always", "best"])
def test_a_run_that_never_recovers_does_not_stop_the_others(test, layout, tmp_path, monkeypatch):
    break_seed_1(monkeypatch)
    schedule = tiny.schedule(10, 5, max_nonfinite_steps=5, test=test)
    with pytest.raises(runs.RunsStoppedError, match="Average, seed 1: stopped at step 5") as e:
        tiny.run(tmp_path, seeds=(1, 0), schedule=schedule, layout=layout)
    assert "seed 0" not in str(e.value)
    record = results.load_results(tmp_path / "results.json")
    found = [(r.seed, bool(r.stopped), r.evaluations[-1].step) for r in record.runs]
    assert [(seed, stopped) for seed, stopped, _ in found] == [(1, True), (0, False)]
    assert found[0][2] == 5 and "test" in {e.split for e in record.runs[1].evaluations}
    assert record.runs[0].nonfinite_losses == dict.fromkeys(tiny.NAMES, 5)
    assert "stopped at step 5" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("test", ["always", "best"])
def test_an_experiment_that_is_asked_to_stop_begins_no_other_run(
    test, layout, tmp_path, trained, no_report, monkeypatch
):
    evaluate, asked = Program.evaluate, []

    def evaluate_and_ask(self, params, split, *rest):
        asked.append(split)
        # In the last evaluation of the first run.
        if asked.count("test") == (2 if test == "always" else 1) and split == "test":
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, params, split, *rest)

    options = {"schedule": tiny.schedule(10, 5, test=test), "layout": layout}
    with monkeypatch.context() as patch:
        patch.setattr(Program, "evaluate", evaluate_and_ask)
        with pytest.raises(preemption.PreemptedError, match="Average, seed 0: stopped, saved at"):
            tiny.run(tmp_path, **options)
    assert trained.names == [("Average", 0)]
    record = tiny.run(tmp_path, **options)
    # Nothing but its record was missing.
    assert trained.steps[1] == [10] and sum(trained.steps[2]) == 10
    assert trained.names[1:] == [("Average", 0), ("Average", 1)]
    assert record.runs[0].evaluations[-1].split == "test"


def test_a_full_disk_leaves_earlier_work(layout, tmp_path, trained, no_report, monkeypatch):
    save = results.save_results

    def full(record, path, *more):
        if path.name == "Average-seed1.json":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return save(record, path, *more)

    with monkeypatch.context() as context:
        context.setattr(results, "save_results", full)
        with pytest.raises(OSError, match="No space left"):
            tiny.run(tmp_path, layout=layout)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"Average-seed0.json"}
    assert not (tmp_path / "results.json").exists()
    # With room again, the finished run is kept and the other one is where it was.
    (tmp_path / "runs" / ".Average-seed1.json.tmp").write_text("what a killed process may leave")
    record = tiny.run(tmp_path, layout=layout)
    assert [seed for _, seed in trained.names] == [0, 1, 1]
    assert [r.seed for r in record.runs] == [0, 1]
    # A record that was damaged later is made again.
    text = (tmp_path / "runs" / "Average-seed0.json").read_text()
    (tmp_path / "runs" / "Average-seed0.json").write_text(text[:100])
    (tmp_path / "results.json").unlink()
    again = tiny.run(tmp_path, layout=layout)
    assert [seed for _, seed in trained.names] == [0, 1, 1, 0]
    assert again.runs[0].evaluations == record.runs[0].evaluations


def test_versions_and_device_are_those_of_this_machine(tmp_path, no_report):
    record = tiny.run(tmp_path, seeds=(0,))
    assert record.versions["jax"] == jax.__version__
    assert {"flax", "jaxlib", "numpy", "optax"} <= set(record.versions)
    assert record.device["platform"] == "cpu" and record.device["count"] == jax.device_count()
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["versions"] == record.versions and saved["device"] == record.device
