"""Runs trained together end as they do one at a time, are resumed together, and share memory."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from ldro_jax.records import results
from ldro_jax.training import loop
from ldro_jax.training.method import Method, grid
from ldro_jax.training.program import Trial

LDRO = Method(
    "L-DRO",
    "lookahead_online",
    {"lookahead_lr": 1.0, "weight_lr": 1.0},
    interaction_interval=7,
)
RATES = {"weight_lr": (0.1, 3.0), "lookahead_lr": (0.1, 1.0)}
SCHEDULE = {"train_steps": 50, "eval_interval": 25, "checkpoint_interval": 25}


@pytest.fixture(scope="module")
def ldro_program():
    return tiny.program(LDRO, **SCHEDULE)


def _trials(method=LDRO, values=RATES, seeds=(0, 1)):
    return [Trial(setting, seed) for setting in grid(method, values) for seed in seeds]


def _assert_same(runs, others):
    for run, other in zip(runs, others, strict=True):
        assert (run.method, run.seed, run.hyperparameters) == (
            other.method,
            other.seed,
            other.hyperparameters,
        )
        np.testing.assert_allclose(run.losses.values, other.losses.values, rtol=1e-4)
        np.testing.assert_allclose(run.weights.values, other.weights.values, rtol=1e-4)


@pytest.mark.parametrize("together", ["map", "vmap"])
def test_runs_together_equal_runs_one_at_a_time(together, ldro_program, tmp_path):
    trials = _trials()
    program = tiny.program(LDRO, together=together, **SCHEDULE)
    runs = tiny.train_together(program, tmp_path / "all", trials)
    alone = [
        tiny.train_together(ldro_program, tmp_path / str(i), [trial])[0]
        for i, trial in enumerate(trials)
    ]
    _assert_same(runs, alone)
    # The settings and the seeds made a difference.
    ends = {tuple(run.weights.values[-1].round(5)) for run in runs}
    assert len(ends) == len(trials)
    if together == "map":
        assert [r.evaluations for r in runs] == [r.evaluations for r in alone]


@pytest.mark.parametrize(
    ("method", "values"),
    [
        (tiny.GROUP_DRO, {"weight_lr": (0, 0.5)}),
        pytest.param(
            Method("PCGrad", "pcgrad", interaction_interval=1), {}, marks=pytest.mark.heavy
        ),
        pytest.param(tiny.METHODS[4], {"lookahead_lr": (0.1, 1.0)}, marks=pytest.mark.heavy),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_every_kind_of_method_runs_together(method, values, tmp_path):
    options = {"train_steps": 10, "eval_interval": 10, "checkpoint_interval": 10}
    trials = _trials(method, values)
    program = tiny.program(method, together="vmap", **options)
    runs = tiny.train_together(program, tmp_path / "all", trials)
    single = tiny.program(method, **options)
    _assert_same(
        runs,
        [
            tiny.train_together(single, tmp_path / str(i), [trial])[0]
            for i, trial in enumerate(trials)
        ],
    )


def test_the_interaction_is_still_measured_only_when_it_is_due():
    # With a count of its own for each run, vmap would turn the condition into a selection.
    program = tiny.program(LDRO, together="vmap", **SCHEDULE)
    trials = _trials()
    program.train(program.start(trials), 3, trials)
    (compiled,) = program.compiled()
    assert "conditional(" in compiled.as_text()


def test_an_interrupted_group_ends_as_if_nothing_had_happened(ldro_program, tmp_path):
    trials = _trials(seeds=(0,))
    whole = tiny.train_together(ldro_program, tmp_path / "whole", trials)
    with pytest.raises(KeyboardInterrupt):
        stop = tiny.Progress(stop_after=2)
        tiny.train_together(ldro_program, tmp_path / "pieces", trials, stop)
    progress = tiny.Progress()
    runs = tiny.train_together(ldro_program, tmp_path / "pieces", trials, progress)
    assert "resumed at step 25" in progress.lines[0] and progress.steps == [100, 100]
    untimed = [
        [results.run_to_record(dataclasses.replace(run, seconds_per_step=None)) for run in found]
        for found in (runs, whole)
    ]
    assert untimed[0] == untimed[1]


def test_a_run_that_breaks_leaves_the_others(tmp_path, monkeypatch):
    program = tiny.program(tiny.GROUP_DRO, train_steps=30, max_nonfinite_steps=5)
    init = program.init

    def broken(seed):
        state = init(seed)
        if seed == 1:
            state = state._replace(params=jax.tree.map(lambda p: p * np.nan, state.params))
        return state

    monkeypatch.setattr(program, "init", broken)
    runs = tiny.train_together(program, tmp_path, [Trial(tiny.GROUP_DRO, s) for s in (0, 1)])
    assert runs[0].stopped is None and runs[0].evaluations[-1].step == 30
    assert runs[1].stopped.startswith("stopped at step 10") and runs[1].losses.steps[-1] == 10


def test_a_method_of_another_program_is_refused(ldro_program, tmp_path):
    with pytest.raises(ValueError, match="can't be trained by the program of"):
        tiny.train_together(ldro_program, tmp_path, [Trial(tiny.GROUP_DRO, 0)])


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

    def small_memory(program, trials, **options):
        sizes.append(len(trials))
        if len(trials) > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating.")
        return train(program, trials, **options)

    monkeypatch.setattr(loop, "train", small_memory)
    record = tiny.run(tmp_path, seeds=(0, 1, 2, 3, 4), runs_together=5)
    assert sizes == [5, 2, 3, 1, 2]
    assert sorted(r.seed for r in record.runs) == [0, 1, 2, 3, 4]
    assert "5 runs at a time don't fit into memory, so it goes on with 3" in caplog.text


def test_one_run_that_does_not_fit_is_an_error(tmp_path, monkeypatch):
    def no_memory(program, trials, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating.")

    monkeypatch.setattr(loop, "train", no_memory)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Out of memory"):
        tiny.run(tmp_path, seeds=(0,))


@pytest.mark.parametrize("value", [0, 1.5])
def test_runs_together_is_a_positive_integer(value, tmp_path):
    with pytest.raises(ValueError, match="runs_together must be a positive integer"):
        tiny.run(tmp_path, runs_together=value)


def test_plain_random_batches_train_too(tmp_path):
    record = tiny.run(
        tmp_path,
        methods=[dataclasses.replace(LDRO, interaction_interval=2), tiny.AVERAGE],
        sampler="uniform",
        schedule=tiny.schedule(train_steps=40, eval_interval=20),
    )
    assert all(run.evaluations[-1].average > 0.75 for run in record.runs)
    assert record.runs[0].interaction is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "random"}, "sampler must be one of 'balanced', 'uniform', .* 'random'"),
        ({"batch_size": 2}, "batch_size must be at least 3, .* but it is 2"),
    ],
)
def test_batches_that_cannot_be_drawn_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        tiny.run(tmp_path, **options)
