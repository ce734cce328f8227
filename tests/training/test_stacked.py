"""Stretches compiled as one program are a plain loop, and runs together end as one at a time."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from helpers import plain_loop, tiny

from ldro_jax import interaction, transform
from ldro_jax.measuring import Batch, Way
from ldro_jax.records import results
from ldro_jax.tasks import drawing
from ldro_jax.training.engine import Trial
from ldro_jax.training.method import Method, grid

N, STEPS, SEED, LEARNING_RATE = 3, 8, 5, 0.3
LDRO = Method(
    "L-DRO",
    "lookahead_online",
    {"lookahead_lr": 1.0, "weight_lr": 1.0},
    interaction_interval=7,
)
GROUP_DRO = dataclasses.replace(tiny.GROUP_DRO, hyperparameters={"weight_lr": 0.7})
EVERY, EVERY_THIRD = (
    dataclasses.replace(
        LDRO,
        hyperparameters={"lookahead_lr": 0.5, "weight_lr": 0.7},
        interaction_interval=interval,
    )
    for interval in (1, 3)
)
RATES = {"weight_lr": (0.1, 3.0), "lookahead_lr": (0.1, 1.0)}
SCHEDULE = tiny.schedule(50, 25, 25)
# The same, with less to write.
SAVED_AT_THE_END = tiny.schedule(50, 25, 50)


def draws(sampler, batch_size, interval=1, measured_rows=None):
    """What a run trains on, and what it measures the interaction on otherwise: a stretch of each.

    The keys are those of every run so far, and a resumed one goes on with them.
    """
    sizes = np.array([40, 32, 40])
    key = jax.random.fold_in(jax.random.key(SEED), 1)
    drawer = drawing.Drawer(sampler, batch_size, 0 * sizes, sizes=sizes)
    drawn = plain_loop.drawn(drawer, key, STEPS)
    other = jax.random.fold_in(key, 2)
    measured_size = N * (measured_rows or max(batch_size // N, 1))
    count = STEPS // interval + 1
    even = drawing.Drawer("balanced", measured_size, 0 * sizes, sizes=sizes)
    measured = plain_loop.drawn(even, other, count)
    return drawn, measured


def assert_is_a_plain_loop(method, sampler, batch_size, *, measured_rows=None, **options):
    program = tiny.stacked(
        method, size=batch_size, sampler=sampler, learning_rate=LEARNING_RATE, **options
    )
    train, trials = tiny.data().train, [Trial(method, SEED)]
    rows_apart = options.get("interaction_rows")
    drawn, apart = draws(sampler, batch_size, method.interval, rows_apart)

    def rows(draw, step, chosen=slice(None)):
        tasks, indices = draw.tasks[step][chosen], draw.indices[step][chosen]
        where = train.starts[tasks] + indices
        return {"inputs": train.inputs[where], "targets": train.targets[where], "task": tasks}

    steps = []
    for step in range(STEPS):
        tasks, measured = drawn.tasks[step], None
        if sampler == "uniform" or (rows_apart or 0) > batch_size // N:
            due = step // method.interval
            measured = rows(apart, due), apart.tasks[due]
        elif measured_rows is not None:
            first = [np.flatnonzero(tasks == task)[:measured_rows] for task in range(N)]
            chosen = np.concatenate(first)
            measured = rows(drawn, step, chosen), tasks[chosen]
        counts = np.bincount(tasks, None, N)
        if sampler == "uniform":  # so many on average
            counts = batch_size * train.sizes / train.sizes.sum()
        steps.append(plain_loop.Step(rows(drawn, step), tasks, counts, measured))
    session, losses = program.start(trials), []

    def row_loss(params, row):
        return program.problem.row_losses(params, jax.tree.map(lambda x: x[None], row))[0]

    expected = list(
        plain_loop.taken(
            jax.jit(jax.value_and_grad(row_loss)),
            session.state(0).params,
            method,
            steps,
            learning_rate=LEARNING_RATE,
            momentum=0.9,
        )
    )
    for until in (STEPS // 2, STEPS):
        session.advance(until, lambda step: False, tiny.Progress())
        losses.append(session.evaluated()[0])
    state = session.state(0)
    assert state.step == session.step == STEPS
    _, weights, matrix, params = expected[-1]
    # Eight steps in float32, which amplify the first one's rounding a little.
    close = {"rtol": 1e-4, "atol": 1e-5}
    of_steps = np.ma.masked_invalid([step[0] for step in expected])
    means = of_steps.reshape(2, STEPS // 2, N).mean(axis=1).filled(np.nan)
    np.testing.assert_allclose(losses, means, **close)
    found = transform.find_state(state.opt_state)
    np.testing.assert_allclose(found.weights, weights, **close)
    np.testing.assert_allclose(found.interaction, matrix, **close)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), state.params, params)
    assert (np.ptp(weights) > 0.01) == (method is not tiny.AVERAGE)


METHODS = {
    "average": tiny.AVERAGE,
    "group DRO": GROUP_DRO,
    "L-DRO, every step": EVERY,
    "L-DRO, every third": EVERY_THIRD,
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_balanced_steps_are_a_plain_loop(method):
    # Ten rows of three tasks: they take turns in having four.
    assert {int(n) for row in draws("balanced", 10)[0].tasks for n in np.bincount(row)} == {3, 4}
    assert_is_a_plain_loop(method, "balanced", 10)


@pytest.mark.heavy  # as in test_step.py and test_objective.py
def test_batches_in_parts_are_a_plain_loop():
    options = {"microbatches": 2, "interaction_rows": 2}
    assert_is_a_plain_loop(EVERY_THIRD, "balanced", 10, measured_rows=2, **options)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.heavy  # as in test_step.py
def test_plain_random_steps_with_an_absent_task_are_a_plain_loop(method):
    drawn, measured = draws("uniform", 2)
    # Two rows of three tasks: one is always absent, but the interaction is measured on every one,
    assert all(len(set(row)) < N for row in drawn.tasks.tolist())
    assert (measured.tasks == np.arange(N)).all()
    assert_is_a_plain_loop(method, "uniform", 2)


def test_the_interaction_of_plain_random_batches_is_measured_on_other_rows():
    # and not on those that a balanced run of the same seed trains on.
    assert not np.array_equal(draws("uniform", 10)[1].indices, draws("balanced", 10)[0].indices)
    assert_is_a_plain_loop(EVERY_THIRD, "uniform", 10)


@pytest.mark.parametrize("make", [tiny.stacked, tiny.meshed])
@pytest.mark.parametrize("interval", [1, 2])
def test_fewer_rows_can_be_asked_for_and_halved(make, interval):
    method = Method("MoDo", "modo", {"weight_lr": 0.5}, interaction_interval=interval)
    found = {}
    for rows in (None, 4, 3):
        chosen = dataclasses.replace(method, interaction_rows=rows)
        session = make(chosen, size=24).start([Trial(chosen, SEED)])
        session.advance(2, lambda step: False, tiny.Progress())
        state = transform.find_state(session.state(0).opt_state)
        assert not state.unmeasured.any() and (state.noise > 0).all()
        found[rows] = np.asarray(state.interaction)
    assert not np.allclose(found[4], found[None]) and not np.allclose(found[4], found[3])


def test_a_row_of_each_task_can_not_be_halved():
    with pytest.raises(ValueError, match="halves the rows of each task, but MoDo measures.*on 1"):
        tiny.stacked(Method("MoDo", "modo"), size=4).check()


@pytest.mark.parametrize("method", [EVERY, EVERY_THIRD], ids=["every step", "every third"])
def test_the_interaction_is_measured_on_more_rows_than_a_batch_has(method):
    assert_is_a_plain_loop(method, "balanced", 10, interaction_rows=7)


@pytest.fixture(scope="module")
def ldro_program():
    return tiny.stacked(LDRO)


def trials_of(method=LDRO, values=RATES, seeds=(0, 1)):
    return [Trial(setting, seed) for setting in grid(method, values) for seed in seeds]


# Of other rates and seeds.
SOME = trials_of()[::3]


def one_at_a_time(program, folder, trials, schedule):
    return [
        tiny.train_together(program, folder / str(i), [trial], schedule)[0]
        for i, trial in enumerate(trials)
    ]


def assert_same(runs, others):
    for run, other in zip(runs, others, strict=True):
        for field in ("method", "seed", "hyperparameters"):
            assert getattr(run, field) == getattr(other, field)
        np.testing.assert_allclose(run.losses.values, other.losses.values, rtol=1e-4)
        np.testing.assert_allclose(run.weights.values, other.weights.values, rtol=1e-4)


@pytest.fixture(scope="module")
def alone(ldro_program, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return one_at_a_time(ldro_program, folder, SOME, SAVED_AT_THE_END)


@pytest.mark.parametrize("together", ["map", "vmap"])
def test_runs_together_equal_runs_one_at_a_time(together, alone, tmp_path):
    program = tiny.stacked(LDRO, together=together)
    runs = tiny.train_together(program, tmp_path / "all", SOME, SAVED_AT_THE_END)
    assert_same(runs, alone)
    # The settings and the seeds made a difference.
    ends = {tuple(run.weights.values[-1].round(5)) for run in runs}
    assert len(ends) == len(SOME)
    if together == "map":
        assert [r.evaluations for r in runs] == [r.evaluations for r in alone]


# The one above is the default.
@pytest.mark.heavy
@pytest.mark.parametrize(
    ("method", "values"),
    [
        (tiny.GROUP_DRO, {"weight_lr": (0, 0.5)}),
        (Method("PCGrad", "pcgrad", interaction_interval=1), {}),
        (tiny.METHODS[4], {"lookahead_lr": (0.1, 1.0)}),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_every_kind_of_method_runs_together(method, values, tmp_path):
    schedule, trials = tiny.schedule(10, 10, 10), trials_of(method, values)
    program = tiny.stacked(method, together="vmap")
    runs = tiny.train_together(program, tmp_path / "all", trials, schedule)
    assert_same(runs, one_at_a_time(tiny.stacked(method), tmp_path, trials, schedule))


def test_the_interaction_is_still_measured_only_when_it_is_due():
    # With a count of its own for each run, vmap would turn the condition into a selection.
    program, trials = tiny.stacked(LDRO, together="vmap"), trials_of()
    program.run(program.settings(trials), program.start(trials).states, 3)
    (compiled,) = program.compiled()
    assert "conditional(" in compiled.as_text()


@pytest.mark.heavy  # as in experiments/test_together.py
def test_an_interrupted_group_ends_as_if_nothing_had_happened(ldro_program, tmp_path):
    trials = trials_of(seeds=(0,))
    whole = tiny.train_together(ldro_program, tmp_path / "whole", trials, SCHEDULE)
    arguments = (ldro_program, tmp_path / "pieces", trials, SCHEDULE)
    with pytest.raises(KeyboardInterrupt):
        tiny.train_together(*arguments, progress=tiny.Progress(stop_after=2))
    progress = tiny.Progress()
    runs = tiny.train_together(*arguments, progress=progress)
    assert "resumed at step 25" in progress.lines[0] and progress.steps[0] == 100
    assert sum(progress.steps) == 200
    untimed = [
        [results.run_to_record(dataclasses.replace(run, seconds_per_step=None)) for run in found]
        for found in (runs, whole)
    ]
    assert untimed[0] == untimed[1]


@pytest.mark.parametrize("first", [12, 4])
def test_a_run_that_ended_within_a_block_of_a_longer_schedule_goes_on(first, tmp_path):
    program, trials = tiny.stacked(GROUP_DRO), trials_of(GROUP_DRO, {"weight_lr": (0.1, 3.0)}, [0])
    longer = tiny.schedule(16, 8, 8)
    whole = tiny.train_together(program, tmp_path / "whole", trials, longer)
    tiny.train_together(program, tmp_path / "more", trials, tiny.schedule(first, 8, 8))
    runs = tiny.train_together(program, tmp_path / "more", trials, longer)
    for run, other in zip(runs, whole, strict=True):
        assert run.evaluations[-2:] == other.evaluations[-2:]
        assert run.weights.values[-1].tolist() == other.weights.values[-1].tolist()


def test_a_run_that_breaks_leaves_the_others(tmp_path, monkeypatch):
    program = tiny.stacked(tiny.GROUP_DRO)
    init = program.init

    def broken(seed):
        state = init(seed)
        if seed == 1:
            state = state._replace(params=jax.tree.map(lambda p: p * np.nan, state.params))
        return state

    monkeypatch.setattr(program, "init", broken)
    trials = [Trial(tiny.GROUP_DRO, seed) for seed in (0, 1)]
    schedule = tiny.schedule(30, max_nonfinite_steps=5)
    runs = tiny.train_together(program, tmp_path, trials, schedule)
    assert runs[0].stopped is None and runs[0].evaluations[-1].step == 30
    assert runs[1].stopped.startswith("stopped at step 10") and runs[1].losses.steps[-1] == 10


def test_runs_together_have_their_tests_at_the_end(ldro_program, tmp_path):
    trials = trials_of(values={"weight_lr": (0.1, 3.0)})  # four, for which it is compiled
    runs = tiny.train_together(
        ldro_program, tmp_path, trials, dataclasses.replace(SCHEDULE, test="last")
    )
    for run in runs:
        steps = [(e.step, e.split) for e in run.evaluations]
        assert steps == [(25, "validation"), (50, "validation"), (50, "test")]
    assert runs[0].evaluations[-1].per_task != runs[1].evaluations[-1].per_task
    with pytest.raises(ValueError, match="test='best' needs runs that are trained one at a time"):
        tiny.train_together(
            ldro_program, tmp_path, trials, dataclasses.replace(SCHEDULE, test="best")
        )


def test_rows_on_the_device_are_not_drawn_by_weights():
    drawn = dataclasses.replace(tiny.GROUP_DRO, sampling="weights")
    with pytest.raises(ValueError, match=r"sampling must be 'uniform' .*Pass layout=Layout\(\)"):
        tiny.stacked(drawn)


@pytest.mark.parametrize("size", [24, 21])
@pytest.mark.parametrize("geometry", ["euclidean", "optimizer"])
@pytest.mark.heavy  # as in test_step.py
def test_the_gradients_of_halves_serve_for_the_training_gradient(size, geometry):
    # PiKE uses all that is measured: losses, products and noise. An odd row isn't in two halves.
    named = Method("PiKE", "pike", {"weight_lr": 0.5, "noise_penalty": 0.5}, geometry=geometry)
    apart = dataclasses.replace(named, interaction=interaction.split("vmap"))
    states = []
    for method in (named, apart):
        program = tiny.stacked(method, size=size, optimizer=optax.rmsprop(0.1))
        in_one = program.plan.way(Batch(np.zeros(size))) == Way.ONE_PASS
        assert in_one == (method is named and size == 24)
        session = program.start([Trial(method, SEED)])
        session.advance(STEPS, lambda step: False, tiny.Progress())
        states.append(session.state(0))
    close = {"rtol": 1e-4, "atol": 1e-6}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), *states)
    assert np.ptp(transform.find_state(states[0].opt_state).weights) > 1e-3


def test_more_rows_than_can_be_numbered_are_an_error():
    session = tiny.stacked(size=24).start([Trial(tiny.AVERAGE, SEED)])
    with pytest.raises(ValueError, match=r"below 2³¹ .* 24 × 89478486\. Pass layout=Layout\(\)"):
        session.advance(2**31 // 24 + 1, lambda step: False, tiny.Progress())
    assert session.step == 0
    with pytest.raises(ValueError, match="below 2³¹"):  # and not at that step
        tiny.stacked(size=24).start([Trial(tiny.AVERAGE, SEED)], tiny.schedule(2**31 // 24 + 1))
