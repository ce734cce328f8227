"""One input, many labels, statistics and dropout: training is a loop written by hand in Flax."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import labelled, plain_loop, tiny

from ldro_jax import problems, transform
from ldro_jax.records import results
from ldro_jax.sharding import Layout
from ldro_jax.tasks import drawing
from ldro_jax.training import fingerprint
from ldro_jax.training.batches import Batches
from ldro_jax.training.engine import Trial
from ldro_jax.training.meshed import MeshedEngine
from ldro_jax.training.method import Method
from ldro_jax.training.stacked import StackedEngine

N, STEPS, SIZE, SEED, RATE = 3, 20, 8, 5, 0.05
AVERAGE = Method("average", "average")
LDRO = Method(
    "L-DRO",
    "lookahead_online",
    {"lookahead_lr": 0.5, "weight_lr": 0.5},
    interaction_interval=1,
)
METHODS = {
    "average": AVERAGE,
    "every step": LDRO,
    "every tenth": dataclasses.replace(LDRO, interaction_interval=10),
}
LAYOUTS = {"stacked": None, "one": tiny.ONE, "4 x 2": Layout(data=4, model=2)}


def program(problem, method, layout, optimizer=None, **options):
    engine = StackedEngine if layout is None else MeshedEngine
    batches = Batches(SIZE, layout=layout, **options)
    return engine(problem, optimizer or optax.sgd(RATE, momentum=0.9), batches).program(method)


def rows_of(a_program):
    """The rows of each step, without what finds them."""
    problem = a_program.problem
    if isinstance(a_program.engine, StackedEngine):
        sizes = np.array([labelled.ROWS])
        drawer = drawing.Drawer("balanced", SIZE, 0 * sizes, sizes=sizes)
        key = jax.random.fold_in(jax.random.key(SEED), 1)
        drawn = plain_loop.drawn(drawer, key, STEPS)
        for tasks, indices in zip(drawn.tasks, drawn.indices, strict=True):
            yield problem.on_device.take(problem.on_device.arrays, key, 0, tasks, indices)
        return
    source, drawer = problem.source(SEED), a_program.feed.drawer(a_program.method, SEED)
    for _ in range(STEPS):
        batch, drawer = a_program.feed.batch(source, drawer)
        yield jax.tree.map(np.asarray, batch.rows)


@functools.cache
def step_by_hand(method, frequencies):
    """A transformation, and a step of Flax, Optax and a ``jax.grad`` a task."""
    model, frequencies = labelled.Network(), np.array(frequencies, np.float32)
    tx = optax.chain(METHODS[method].transform(N), optax.sgd(RATE, momentum=0.9))

    @jax.jit
    def step(params, stats, opt_state, inputs, targets, mask, key):
        def passed(params):
            outputs, new = model.apply(
                {"params": params, "batch_stats": stats},
                inputs,
                train=True,
                mutable=["batch_stats"],
                rngs={"params": key},
            )
            return jnp.sum(jnp.where(mask, (outputs - targets) ** 2, 0), axis=0), new

        counts = mask.sum(axis=0).astype(jnp.float32)
        sums, new = passed(params)
        gradients = [jax.grad(lambda p, i=i: passed(p)[0][i])(params) for i in range(N)]

        def pullback(weights):
            shares = weights / (SIZE * frequencies)
            return jax.tree.map(
                lambda *g: sum(w * x for w, x in zip(shares, g, strict=True)), *gradients
            )

        def interaction():
            flat = [
                jax.flatten_util.ravel_pytree(g)[0] / n
                for g, n in zip(gradients, counts, strict=True)
            ]
            return jnp.array([[x @ y for y in flat] for x in flat])

        losses = sums / counts
        updates, opt_state = tx.update(
            None, opt_state, params, losses=losses, pullback=pullback, interaction_fn=interaction
        )
        return optax.apply_updates(params, updates), new["batch_stats"], opt_state, losses

    return tx, step


def by_hand(variables, method, all_rows, frequencies):
    """Parameters, statistics, losses and state after these steps."""
    tx, taken = step_by_hand(method, tuple(frequencies))
    params, stats = variables["params"], variables["batch_stats"]
    opt_state, seen = tx.init(params), []
    for step, rows in enumerate(all_rows):
        rows = rows["table"]
        mask = np.ones((SIZE, N), bool) if rows["labelled"] is None else rows["labelled"]
        key = jax.random.fold_in(labelled.run_key(SEED), step)
        given = rows["inputs"], rows["targets"], mask, key
        params, stats, opt_state, losses = taken(params, stats, opt_state, *given)
        seen.append(losses)
    return {"params": params, "batch_stats": stats}, np.mean(seen, axis=0), opt_state


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", METHODS)
def test_training_is_a_loop_written_by_hand(method, layout):
    a_program = program(labelled.problem(), METHODS[method], LAYOUTS[layout])
    session = a_program.start([Trial(METHODS[method], SEED)])
    variables = jax.tree.map(np.array, session.state(0).params)
    expected, losses, opt_state = by_hand(
        variables, method, rows_of(a_program), a_program.problem.labels[0].tolist()
    )
    session.advance(STEPS, lambda step: False, tiny.Progress())
    np.testing.assert_allclose(session.evaluated()[0], losses, rtol=1e-5)
    found = session.state(0)
    # Float32, in another order, over twenty steps.
    close = {"rtol": 1e-4, "atol": 1e-5}
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **close), found.params, expected)
    weights, by_hands = (transform.find_state(s).weights for s in (found.opt_state, opt_state))
    np.testing.assert_allclose(weights, by_hands, rtol=1e-4)
    assert method == "average" or np.ptp(weights) > 0.05


def test_statistics_are_no_parameters_that_the_optimizer_knows():
    engine = StackedEngine(labelled.problem(), optax.adamw(0.1), Batches(SIZE))
    assert engine.frozen == [] and engine.is_whole
    state = engine.program(AVERAGE).init(0)
    (moments,) = (x for x in jax.tree.leaves(state.opt_state, is_leaf=_is_adam) if _is_adam(x))
    shapes = [
        sorted(x.shape for x in jax.tree.leaves(t)) for t in (moments.mu, state.params["params"])
    ]
    assert shapes[0] == shapes[1]


def _is_adam(state):
    return isinstance(state, optax.ScaleByAdamState)


def test_a_step_whose_losses_are_not_finite_leaves_the_statistics_alone():
    problem = labelled.problem()
    a_program = program(problem, AVERAGE, None)
    session = a_program.start([Trial(AVERAGE, 0)])
    arrays, reference = a_program.engine.arrays
    bad = jax.tree.map(lambda x: x, arrays)
    bad["table"]["inputs"] = jnp.full_like(arrays["table"]["inputs"], jnp.nan)
    a_program.engine.arrays = bad, reference
    before = jax.tree.map(np.array, session.state(0).params)
    session.advance(2, lambda step: False, tiny.Progress())
    jax.tree.map(np.testing.assert_array_equal, session.state(0).params, before)


@pytest.mark.parametrize("layout", ["stacked", "one"])
def test_microbatches_move_the_statistics_once_a_step(layout):
    found = {}
    for parts in (1, 2):
        model = labelled.Network(rate=0.0)
        a_program = program(labelled.problem(model), AVERAGE, LAYOUTS[layout], microbatches=parts)
        session = a_program.start([Trial(AVERAGE, SEED)])
        session.advance(1, lambda step: False, tiny.Progress())
        found[parts] = session.state(0).params["batch_stats"]["BatchNorm_0"]
    # The mean over halves is that of the whole; variances within them are smaller.
    np.testing.assert_allclose(found[1]["mean"], found[2]["mean"], rtol=1e-5, atol=1e-7)
    assert (found[2]["var"] < found[1]["var"] + 1e-6).all()


@pytest.mark.parametrize("layout", ["stacked", "one", "4 x 2"])
def test_tables_that_differ_are_trained_together(layout):
    a_program = program(labelled.two_tables(), LDRO, LAYOUTS[layout], optax.sgd(0.02))
    a_program.check()
    a_program.check_evaluation()
    session = a_program.start([Trial(LDRO, SEED)])
    first = a_program.evaluate(session.state(0).params, "validation")["error"]
    session.advance(200, lambda step: False, tiny.Progress())
    last = a_program.evaluate(session.state(0).params, "validation")["error"]
    assert (last < first).all()


def results_of(run):
    return results.run_to_record(dataclasses.replace(run, seconds_per_step=None))


@pytest.mark.parametrize("layout", ["stacked", "one"])
@pytest.mark.parametrize("make", [labelled.problem, labelled.two_tables])
def test_an_interrupted_run_ends_with_the_same_bits(make, layout, tmp_path):
    method = dataclasses.replace(LDRO, interaction_interval=3)
    a_program, schedule = program(make(), method, LAYOUTS[layout]), tiny.schedule(20, 5, 5)
    whole = tiny.train(a_program, tmp_path / "whole", schedule)
    with pytest.raises(KeyboardInterrupt):
        tiny.train(a_program, tmp_path / "pieces", schedule, progress=tiny.Progress(stop_after=2))
    progress = tiny.Progress()
    run = tiny.train(a_program, tmp_path / "pieces", schedule, progress=progress)
    assert "resumed at step" in progress.lines[0]
    assert results_of(run) == results_of(whole)


@pytest.mark.heavy  # as do those of test_stacked.py
def test_runs_together_end_as_one_at_a_time(tmp_path):
    engine = StackedEngine(
        labelled.problem(), optax.sgd(RATE, momentum=0.9), Batches(SIZE), together="vmap"
    )
    together, alone = engine.program(LDRO), program(labelled.problem(), LDRO, None)
    trials, schedule = [Trial(LDRO, seed) for seed in (0, 1)], tiny.schedule(10, 10, 10)
    runs = tiny.train_together(together, tmp_path / "all", trials, schedule)
    for trial, run in zip(trials, runs, strict=True):
        (expected,) = tiny.train_together(alone, tmp_path / str(trial.seed), [trial], schedule)
        np.testing.assert_allclose(run.losses.values, expected.losses.values, rtol=1e-4)
        np.testing.assert_allclose(run.weights.values, expected.weights.values, rtol=1e-4)


@pytest.mark.parametrize("layout", ["stacked", "one"])
def test_rows_of_one_task_each_train_models_with_statistics(layout):
    # The whole batch is normalised, whatever the tasks of its rows.
    rng = np.random.default_rng(0)
    data = {
        task: tuple(rng.normal(size=(12, width)).astype(np.float32) for width in (4, 1))
        for task in labelled.TASKS
    }
    model = labelled.Network(rate=0.0, outputs=1)
    problem = problems.from_arrays(
        data,
        model=model,
        loss=lambda outputs, rows: jnp.sum((outputs - rows["targets"]) ** 2, axis=1),
        metrics={labelled.LOSS_ERROR: lambda o, rows: jnp.sum((o - rows["targets"]) ** 2, axis=1)},
        validation=data,
        test=data,
    )
    options = {"size": 9} if layout == "stacked" else {"size": 9, "layout": tiny.ONE}
    engine = StackedEngine if layout == "stacked" else MeshedEngine
    a_program = engine(problem, optax.sgd(RATE), Batches(**options)).program(LDRO)
    session = a_program.start([Trial(LDRO, SEED)])
    variables = jax.tree.map(np.array, session.state(0).params)
    if layout == "stacked":
        sizes, key = np.array([12] * 3), jax.random.fold_in(jax.random.key(SEED), 1)
        drawn = plain_loop.drawn(drawing.Drawer("balanced", 9, 0 * sizes, sizes=sizes), key, 1)
        rows = problem.on_device.take(
            problem.on_device.arrays, key, 0, drawn.tasks[0], drawn.indices[0]
        )
    else:
        batch, _ = a_program.feed.batch(problem.source(SEED), a_program.feed.drawer(LDRO, SEED))
        rows = batch.rows
    belongs = jnp.asarray(rows["task"])[None, :] == jnp.arange(3)[:, None]

    def losses(params):
        outputs, new = model.apply(
            {"params": params, "batch_stats": variables["batch_stats"]},
            rows["inputs"],
            train=True,
            mutable=["batch_stats"],
        )
        each = jnp.sum((outputs - rows["targets"]) ** 2, axis=1)
        return jnp.sum(jnp.where(belongs, each[None, :], 0), axis=1) / 3, new["batch_stats"]

    expected, statistics = jax.jit(losses)(variables["params"])
    jacobian, _ = jax.jit(jax.jacrev(losses, has_aux=True))(variables["params"])
    flat = np.concatenate([np.reshape(x, (3, -1)) for x in jax.tree.leaves(jacobian)], axis=1)
    session.advance(1, lambda step: False, tiny.Progress())
    state = session.state(0)
    weighted = transform.find_state(state.opt_state)
    np.testing.assert_allclose(weighted.losses, expected, rtol=1e-5)
    np.testing.assert_allclose(weighted.interaction, flat @ flat.T, rtol=1e-4, atol=1e-5)
    close = {"rtol": 1e-5, "atol": 1e-6}
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, **close),
        state.params["batch_stats"],
        statistics,
    )


@pytest.mark.parametrize("layout", ["stacked", "one"])
def test_a_penalty_is_a_loss_of_no_task(layout):
    def penalty(params):
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(params["params"]))

    states = {}
    for given in (None, penalty):
        a_program = program(labelled.problem(penalty=given), LDRO, LAYOUTS[layout], optax.sgd(RATE))
        session = a_program.start([Trial(LDRO, SEED)])
        before = jax.tree.map(np.array, session.state(0).params)
        session.advance(1, lambda step: False, tiny.Progress())
        states[given] = session.state(0)
    # The weights know nothing of it, and the statistics have no gradient of it.
    without, with_it = states[None].params, states[penalty].params
    jax.tree.map(
        lambda x, y, z: np.testing.assert_allclose(x, y - RATE * 2 * z, rtol=1e-5, atol=1e-6),
        *(with_it["params"], without["params"], before["params"]),
    )
    jax.tree.map(np.testing.assert_array_equal, with_it["batch_stats"], without["batch_stats"])
    weights = [transform.find_state(state.opt_state).weights for state in states.values()]
    np.testing.assert_array_equal(*weights)


@pytest.mark.parametrize("layout", ["stacked", "one"])
def test_runs_begin_with_the_parameters_that_are_given(layout):
    problem = labelled.problem()
    first = program(problem, LDRO, LAYOUTS[layout]).init(3).params
    kernel = np.asarray(first["params"]["Dense_0"]["kernel"]) + 1
    part = {"params": {"Dense_0": {"kernel": kernel}}, "batch_stats": first["batch_stats"]}
    begun = program(problem.with_parameters(part), LDRO, LAYOUTS[layout])
    for seed in (3, 4):
        state = begun.init(seed)
        np.testing.assert_array_equal(state.params["params"]["Dense_0"]["kernel"], kernel)
        same = np.array_equal(
            state.params["params"]["Dense_1"]["kernel"], first["params"]["Dense_1"]["kernel"]
        )
        assert same == (seed == 3)
    schedule = tiny.schedule(5, 5, 5)
    digests = [
        fingerprint.of(x, schedule, [])["programs"]["initial parameters"]
        for x in (begun, program(problem, LDRO, LAYOUTS[layout]))
    ]
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"params": {"Dense_0": {"kernel": np.ones((2, 2))}}},
            r"must have the shape \[4, 6\].* \[2, 2\]",
        ),
        ({"params": {"Dense_7": {"kernel": np.ones((2, 2))}}}, "but it has params/Dense_7/kernel"),
        ({}, "params must be a pytree of some of the model's parameters"),
    ],
)
def test_parameters_of_another_model_are_refused(params, message):
    with pytest.raises(ValueError, match=message):
        labelled.problem().with_parameters(params)
