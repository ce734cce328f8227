"""Runs that an experiment trains together: which, and what if memory is short."""

import jax
import pytest
import tiny

from ldro_jax.sharding import Layout
from ldro_jax.training import loop
from ldro_jax.training.method import Method, grid

LDRO = Method(
    "L-DRO",
    "lookahead_online",
    {"lookahead_lr": 1.0, "weight_lr": 1.0},
    interaction_interval=2,
)


def test_a_sweep_is_one_run_for_each_setting_and_seed(tmp_path):
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


def test_a_group_that_does_not_fit_memory_shrinks_and_says_so(tmp_path, monkeypatch, caplog):
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
def test_plain_random_batches_train_too(layout, tmp_path):
    record = tiny.run(
        tmp_path,
        methods=[LDRO, tiny.AVERAGE],
        sampler="uniform",
        schedule=tiny.schedule(train_steps=40, eval_interval=20),
        layout=layout,
    )
    assert all(run.evaluations[-1].average > 0.75 for run in record.runs)
    assert record.runs[0].interaction is not None
