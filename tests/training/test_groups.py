"""Some tasks of a problem are trained as by a plain loop, all groups of a size by one program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import labelled, plain_loop, tiny

from ldro_jax import problems
from ldro_jax.models import mlp
from ldro_jax.problems.subset import Subset
from ldro_jax.tasks import drawing
from ldro_jax.training.engine import Trial
from ldro_jax.training.method import Method
from ldro_jax.training.stretches import Means, Stretch

N, STEPS, EACH, RATE = 3, 6, 4, 0.3
PAIRS = [(0, 1), (0, 2), (1, 2)]


def group_dro_of(problem, tasks, seed, together=None):
    """Parameters and weights after some steps with each of some groups."""
    some = Subset(problem, range(len(tasks[0])))
    program = tiny.stacked(
        tiny.GROUP_DRO,
        some,
        size=EACH * len(tasks[0]) if problem.labels is None else 8,
        optimizer=optax.sgd(RATE),
        together=together,
    )
    program.check()
    trials = [Trial(tiny.GROUP_DRO, seed, group) for group in tasks]
    session = program.start(trials)
    session.advance(STEPS, lambda step: False, tiny.Progress())
    return program, session


@pytest.mark.parametrize("together", ["map", "vmap"])
def test_rows_of_one_task_each_are_those_of_the_whole_problem(together):
    """Group DRO on pairs, in a loop over rows; each task has the rows that it has among all."""
    problem, seed = tiny.problem(), 5
    program, session = group_dro_of(problem, PAIRS, seed, together)
    sizes = np.asarray(problem.sizes)
    key = jax.random.fold_in(jax.random.key(seed), 1)
    drawer = drawing.Drawer("balanced", N * EACH, 0 * sizes, sizes=sizes)
    drawn = plain_loop.drawn(drawer, key, STEPS)
    arrays = problem.on_device.arrays

    @jax.jit
    def gradient_of_row(params, row):
        def loss(params):
            return problem.row_losses(params, jax.tree.map(lambda x: x[None], row))[0]

        return jax.value_and_grad(loss)(params)

    for place, group in enumerate(PAIRS):
        steps = []
        for tasks, indices in zip(*drawn, strict=True):
            mine = np.isin(tasks, group)
            rows = problem.on_device.take(arrays, key, 0, tasks[mine], indices[mine])
            slots = np.searchsorted(group, tasks[mine])
            steps.append(plain_loop.Step(rows, slots, np.full(2, EACH)))
        start = program.init(seed).params
        *_, (losses, weights, _, params) = plain_loop.taken(
            gradient_of_row, start, tiny.GROUP_DRO, steps, learning_rate=RATE
        )
        state = session.state(place)
        for ours, theirs in zip(*map(jax.tree.leaves, (state.params, params)), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=1e-5)
        found = state.opt_state[0]
        np.testing.assert_allclose(found.weights, weights, rtol=1e-3)
        np.testing.assert_allclose(found.losses, losses, rtol=1e-3)


@pytest.mark.parametrize("sizes", [(40, 33, 60), (40, 33, 2000)])
def test_rows_of_some_tasks_are_those_of_all(sizes):
    """Whether those of all are drawn or not: over several epochs of tasks of other sizes."""
    drawer = drawing.Drawer("balanced", 2 * EACH, np.zeros(2, np.int64), sizes=np.array(sizes))
    every = drawing.Drawer("balanced", N * EACH, np.zeros(N, np.int64), sizes=np.array(sizes))
    key, steps = jax.random.key(3), 40
    _, all_indices = plain_loop.drawn(every, key, steps)
    draw = jax.jit(lambda chosen: drawing.stretch(drawer, key, 0, steps, chosen))
    for pair in PAIRS:
        tasks, indices = draw(jnp.array(pair))
        expected = all_indices.reshape(steps, N, EACH)[:, pair].reshape(steps, -1)
        np.testing.assert_array_equal(indices, expected)
        np.testing.assert_array_equal(tasks, np.tile(np.repeat([0, 1], EACH), (steps, 1)))


def test_a_pair_takes_its_share_of_the_arithmetic():
    """In the compiler's count of a step, of pairs against all tasks: 2 of 3, with a margin."""

    def flops(program, trial):
        run = jax.tree.map(lambda x: x[0], program.settings([trial]))
        state = jax.tree.map(lambda x: x[0], program.start([trial]).states)
        means = Means.none((program.problem.num_tasks,))
        step = jax.jit(program.stretch(Stretch(1, 1)))
        compiled = step.lower(run, state, means, 1, program.engine.arrays).compile()
        return compiled.cost_analysis()["flops"]

    problem = problems.classification(
        load_data=lambda data_dir: tiny.data(), model=functools.partial(mlp.MLP, features=(256, 64))
    )
    whole = flops(tiny.stacked(size=N * 32, a_problem=problem), Trial(tiny.AVERAGE, 0))
    some = tiny.stacked(a_problem=Subset(problem, (0, 1)), size=2 * 32)
    assert 0.5 < flops(some, Trial(tiny.AVERAGE, 0, (0, 2))) / whole < 1.2 * 2 / 3


def test_a_reference_is_compared_with_in_these_tasks_alone():
    problem = labelled.problem(labelled.Network(rate=0.0))
    problem = problem.with_reference(problem.init(jax.random.key(0)))
    method = Method("DoReMi", "doremi", {"reference_losses": None, "weight_lr": 0.5})
    program = tiny.stacked(method, Subset(problem, (0, 1)), size=8)
    trials = [Trial(method, 0, (0, 2)), Trial(method, 0, (1, 2))]
    states, *_ = program.run(program.settings(trials), program.start(trials).states, 3)
    assert np.isfinite(states.opt_state[0].weights).all()


def test_tasks_of_several_tables_can_be_some():
    """Pairs of which both are in one table, or each in one of its own; as a block of all."""
    problem, method = labelled.two_tables(), tiny.METHODS[3]
    matrices = {}
    for group in [(0, 1, 2), (0, 1), (0, 2)]:
        program = tiny.stacked(method, Subset(problem, range(len(group))), size=24)
        trials = [Trial(method, 0, group)]
        states, *_ = program.run(program.settings(trials), program.start(trials).states, 1)
        matrices[group] = np.asarray(states.opt_state[0].interaction[0])
    for group in [(0, 1), (0, 2)]:
        block = matrices[0, 1, 2][np.ix_(group, group)]
        np.testing.assert_allclose(matrices[group], block, rtol=1e-3, atol=1e-6)


def test_all_tasks_are_the_whole_problem():
    problem, trial = tiny.problem(), Trial(tiny.GROUP_DRO, 3)
    programs = [tiny.stacked(tiny.GROUP_DRO, x) for x in (problem, Subset(problem, range(N)))]
    trials = trial, trial._replace(tasks=(0, 1, 2))
    ours, theirs = (
        program.run(program.settings([t]), program.start([t]).states, 5)[0]
        for program, t in zip(programs, trials, strict=True)
    )
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)


def test_groups_of_a_size_are_one_compilation():
    problem = tiny.problem()
    program, _ = group_dro_of(problem, PAIRS[:1], 0)
    for pair in PAIRS[1:]:
        trials = [Trial(tiny.GROUP_DRO, 1, pair)]
        states = program.start(trials).states
        program.run(program.settings(trials), states, STEPS, size=Stretch(STEPS, 1))
    assert len(program.compiled()) == 1


def test_labels_of_other_tasks_are_not_counted():
    """One input with three labels, some missing: plain steps on the two columns."""
    problem, group, seed = labelled.problem(labelled.Network(rate=0.0)), (0, 2), 1
    program, session = group_dro_of(problem, [group, (1, 2)], seed)
    sizes = np.array([labelled.ROWS])
    key = jax.random.fold_in(jax.random.key(seed), 1)
    drawer = drawing.Drawer("balanced", 8, 0 * sizes, sizes=sizes)
    _, indices = plain_loop.drawn(drawer, key, STEPS)
    inputs, targets = labelled.arrays()
    params, weights = program.init(seed).params, np.full(2, 0.5)
    state = jax.tree.map(np.asarray, params)
    network = labelled.Network(rate=0.0)

    @jax.jit
    def losses_and_gradients(params, rows, targets):
        def losses(trained):
            variables = {"params": trained, "batch_stats": params["batch_stats"]}
            outputs, new = network.apply(variables, rows, train=True, mutable=["batch_stats"])
            misses = jnp.where(jnp.isnan(targets), 0, outputs - jnp.nan_to_num(targets)) ** 2
            counts = (~jnp.isnan(targets)).sum(axis=0)
            return misses.sum(axis=0) / jnp.maximum(counts, 1).astype(jnp.float32), new

        found, new = losses(params["params"])
        return found, jax.jacrev(lambda p: losses(p)[0])(params["params"]), new

    shares = (~np.isnan(targets)).mean(axis=0)
    for rows in indices:
        found, gradients, new = losses_and_gradients(state, inputs[rows], targets[rows])
        found, chosen = np.asarray(found), np.array(group)
        counts = (~np.isnan(targets[rows])).sum(axis=0)[chosen]
        moved = weights * np.exp(0.5 * found[chosen])
        weights = moved / moved.sum()
        # The mean over as many labels as a batch has on average.
        scale = weights * counts / (8 * shares[chosen])

        def step(p, g, scale=scale, chosen=chosen):
            return p - RATE * np.tensordot(scale, np.asarray(g)[chosen], 1)

        state = {"params": jax.tree.map(step, state["params"], gradients), **new}
    mine = session.state(0)
    np.testing.assert_allclose(mine.opt_state[0].weights, weights, rtol=1e-4)
    for ours, theirs in zip(*map(jax.tree.leaves, (mine.params, state)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
    # The head of the task that is left out stays as it was.
    head = lambda tree: np.asarray(tree["params"]["Dense_1"]["kernel"])  # noqa: E731
    np.testing.assert_array_equal(head(mine.params)[:, 1], head(params)[:, 1])


def test_an_interaction_is_that_of_the_tasks_that_are_trained():
    """The matrix of a pair is a block of that of all, on the same rows."""
    problem = labelled.problem(labelled.Network(rate=0.0))
    method = tiny.METHODS[3]
    whole = tiny.stacked(method, problem, size=8)
    trials = [Trial(method, 0)]
    states, *_ = whole.run(whole.settings(trials), whole.start(trials).states, 1)
    expected = np.asarray(whole.start(trials).state(0, states).opt_state[0].interaction)
    program = tiny.stacked(method, Subset(problem, (0, 1)), size=8)
    trials = [Trial(method, 0, (0, 2))]
    states, *_ = program.run(program.settings(trials), program.start(trials).states, 1)
    found = program.start(trials).state(0, states).opt_state[0].interaction
    np.testing.assert_allclose(found, expected[np.ix_((0, 2), (0, 2))], rtol=1e-4)


def test_what_is_measured_and_recorded_is_of_these_tasks(tmp_path):
    problem = tiny.problem()
    program = tiny.stacked(tiny.AVERAGE, Subset(problem, (0, 1)), size=8)
    trials = [Trial(tiny.AVERAGE, 0, pair) for pair in PAIRS]
    runs = tiny.train_together(program, tmp_path, trials, tiny.schedule(10, 5, 10))
    session = program.start(trials)
    assert session.problems[1].task_names == ("left", "right")
    for run, pair in zip(runs, PAIRS, strict=True):
        names = [problem.task_names[task] for task in pair]
        assert all(list(e.per_task) == names for e in run.evaluations)
        assert run.losses.values.shape == (2, 2)


def test_checkpoints_tell_groups_apart(tmp_path):
    program = tiny.stacked(tiny.AVERAGE, Subset(tiny.problem(), (0, 1)), size=8)
    tiny.train_together(program, tmp_path, [Trial(tiny.AVERAGE, 0, (0, 1))])
    with pytest.raises(ValueError, match=r"tasks was \[0, 1\], now it is \[0, 2\]"):
        tiny.train_together(program, tmp_path, [Trial(tiny.AVERAGE, 0, (0, 2))])
