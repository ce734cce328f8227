"""Runs that an experiment trains together: which, and what if memory is short."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from faults import harness
from helpers import tiny
from helpers import trained as trained_lib

from ldro_jax.records import results
from ldro_jax.sharding import Layout
from ldro_jax.training import loop
from ldro_jax.training.method import Method, grid

LDRO = Method(
    "L-DRO",
    "lookahead_online",
    {"lookahead_lr": 1.0, "weight_lr": 1.0},
    interaction_interval=2,
)


def test_a_sweep_is_one_run_for_each_setting_and_seed(tmp_path, no_report):
    methods = [tiny.AVERAGE, grid(tiny.GROUP_DRO, {"weight_lr": (0.1, 0.5)})]
    record = tiny.run(tmp_path, methods=methods, runs_together=3)
    assert [(r.method, r.seed) for r in record.runs] == [
        (name, seed) for seed in (0, 1) for name in ("Average", "Group DRO", "Group DRO")
    ]
    assert {path.stem for path in (tmp_path / "runs").iterdir()} == {
        *(f"Average-seed{seed}" for seed in (0, 1)),
        *(f"Group_DRO-weight_lr={eta}-seed{seed}" for eta in (0.1, 0.5) for seed in (0, 1)),
    }
    # Four runs of group DRO: three together and one.
    folders = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert sum(name.startswith("group-") for name in folders) == 2


def test_a_group_that_does_not_fit_memory_shrinks_and_says_so(
    tmp_path, no_report, monkeypatch, caplog
):
    train, sizes = loop.train, []

    def small_memory(program, trials, schedule, **options):
        sizes.append(len(trials))
        if len(trials) > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating.")
        return train(program, trials, schedule, **options)

    monkeypatch.setattr(loop, "train", small_memory)
    record = tiny.run(tmp_path, seeds=(0, 1, 2, 3, 4), runs_together=5)
    assert sizes == [5, 2, 3, 1, 2]
    assert sorted(r.seed for r in record.runs) == [0, 1, 2, 3, 4]
    assert "5 runs at a time don't fit into memory, so it goes on with 3" in caplog.text


def test_one_run_that_does_not_fit_is_an_error(tmp_path, monkeypatch):
    def no_memory(*arguments, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating.")

    monkeypatch.setattr(loop, "train", no_memory)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Out of memory"):
        tiny.run(tmp_path, seeds=(0,))


SWEEP = {
    "methods": grid(tiny.GROUP_DRO, {"weight_lr": (0.1, 0.5)}),
    "seeds": (0, 1),
    "schedule": tiny.schedule(10, 5, 100),
}


def killed_before_record(directory, number, monkeypatch):
    """Trains four runs together, and ends before the record of one of them is written."""
    save, names = results.save_results, []

    def killed(record, path, *more):
        names.append(path.stem)
        if len(names) == number:
            raise KeyboardInterrupt
        return save(record, path, *more)

    with monkeypatch.context() as patch:
        patch.setattr(results, "save_results", killed)
        with pytest.raises(KeyboardInterrupt):
            tiny.run(directory, runs_together=4, **SWEEP)
    assert len(list((directory / "runs").iterdir())) == number - 1


@pytest.mark.parametrize(
    ("together", "groups"), [(4, [3]), pytest.param(1, [1, 1, 1], marks=pytest.mark.heavy)]
)
def test_a_group_that_is_killed_between_two_records_loses_nothing(
    together, groups, tmp_path, trained, no_report, monkeypatch
):
    tiny.run(tmp_path / "whole", runs_together=4, **SWEEP)
    killed_before_record(tmp_path / "killed", 2, monkeypatch)
    trained.steps.clear()
    tiny.run(tmp_path / "killed", runs_together=together, **SWEEP)
    # Three are left, which are at their end, and take no step.
    assert trained.steps == [[10 * size] for size in groups]
    assert harness.record(tmp_path / "killed") == harness.record(tmp_path / "whole")


@pytest.mark.parametrize(
    ("first", "then", "steps"),
    [
        pytest.param(4, 1, [[10, 5]] * 4, marks=pytest.mark.heavy),
        pytest.param(1, 3, [[10, 5], [15, 15, 15]], marks=pytest.mark.heavy),
        pytest.param(4, 3, [[30, 15], [10, 5]], marks=pytest.mark.heavy),
    ],
)
def test_runs_go_on_in_other_groups(first, then, steps, tmp_path, trained, no_report):
    options = SWEEP | {"schedule": tiny.schedule(15, 5, 5)}
    whole = tiny.run(tmp_path / "whole", runs_together=first, **options)
    trained.trials.clear()
    trained.interrupt = (first, 15 * first)
    with pytest.raises(KeyboardInterrupt):
        tiny.run(tmp_path / "pieces", runs_together=first, **options)
    trained.interrupt = None
    trained.steps.clear()
    found = tiny.run(tmp_path / "pieces", runs_together=then, **options)
    # Those with a checkpoint go on from it, and the others begin.
    assert trained.steps == steps
    for run, other in zip(found.runs, whole.runs, strict=True):
        assert (run.seed, run.hyperparameters) == (other.seed, other.hyperparameters)
        np.testing.assert_allclose(run.losses.values, other.losses.values, rtol=1e-4)
        np.testing.assert_allclose(run.weights.values, other.weights.values, rtol=1e-4)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A directory of two seeds of one setting, trained together up to step 10 of 15."""
    directory = tmp_path_factory.mktemp("interrupted")
    with pytest.MonkeyPatch.context() as patch:
        watched = trained_lib.Trained(patch)
        watched.interrupt = (2, 30)
        with pytest.raises(KeyboardInterrupt):
            tiny.run(directory, runs_together=2, **ONE_SETTING)
    return directory


ONE_SETTING = {
    "methods": [tiny.GROUP_DRO],
    "seeds": (0, 1),
    "schedule": tiny.schedule(15, 5, 5),
}
OTHER = dataclasses.replace(tiny.GROUP_DRO, hyperparameters={"weight_lr": 0.1})


@pytest.mark.parametrize(
    ("changed", "steps"),
    [
        pytest.param({"seeds": (1,)}, [[10, 5]], marks=pytest.mark.heavy),
        pytest.param({"seeds": (1, 0)}, [[20, 10]], marks=pytest.mark.heavy),
        # It gives those that are there another name.
        ({"methods": [tiny.GROUP_DRO, OTHER]}, [[20, 10], [10, 10, 10]]),
    ],
    ids=["fewer seeds", "another order", "another setting"],
)
def test_an_interrupted_group_goes_on_where_other_runs_come_and_go(
    changed, steps, tmp_path, trained, no_report, interrupted
):
    there = shutil.copytree(interrupted, tmp_path / "there")
    options = {**ONE_SETTING, "runs_together": 2, **changed}
    found = tiny.run(there, **options)
    assert trained.steps == steps
    names = "".join(path.name for path in (there / "runs").iterdir())
    whole = tiny.run(tmp_path / "whole", **options)
    for run, other in zip(found.runs, whole.runs, strict=True):
        assert (run.seed, run.hyperparameters) == (other.seed, other.hyperparameters)
        np.testing.assert_allclose(run.losses.values, other.losses.values, rtol=1e-6)
    # What is finished has its name of before again, and what was left out is still there.
    trained.steps.clear()
    assert len(tiny.run(there, **ONE_SETTING).runs) == 2
    assert trained.steps == ([[10, 5]] if "seed0" not in names else [])


def test_another_setting_of_the_only_one_of_an_interrupted_group_is_refused(tmp_path, interrupted):
    there = shutil.copytree(interrupted, tmp_path / "there")
    before = {path: path.read_bytes() for path in there.rglob("*.gin")}
    with pytest.raises(ValueError, match="is that of another run: weight_lr was 0.5, now it is"):
        tiny.run(there, runs_together=2, **{**ONE_SETTING, "methods": [OTHER]})
    assert {path: path.read_bytes() for path in there.rglob("*.gin")} == before


@pytest.mark.parametrize(
    "options",
    [{"layout": Layout(data=1)}, {"schedule": tiny.schedule(10, 5, test="best")}],
    ids=str,
)
def test_runs_that_are_trained_one_at_a_time_are_not_trained_together(options, tmp_path):
    with pytest.raises(ValueError, match="runs_together must be 1 for runs on a mesh or .* is 2"):
        tiny.run(tmp_path, runs_together=2, **options)


@pytest.mark.parametrize("value", [0, 1.5])
def test_runs_together_is_a_positive_integer(value, tmp_path):
    with pytest.raises(ValueError, match="runs_together must be a positive integer"):
        tiny.run(tmp_path, runs_together=value)


@pytest.mark.parametrize("layout", [None, Layout(data=1)], ids=["stacked", "meshed"])
@pytest.mark.heavy  # as in training/test_stacked.py
def test_plain_random_batches_train_too(layout, tmp_path, no_report):
    record = tiny.run(
        tmp_path,
        methods=[LDRO],
        seeds=(0,),
        sampler="uniform",
        schedule=tiny.schedule(train_steps=40, eval_interval=20),
        layout=layout,
    )
    (run,) = record.runs
    assert run.evaluations[-1].average > 0.75 and run.interaction is not None
