"""What is trained on is ``Σ_i w_i`` times the mean loss of task i's rows, however rows are drawn.

The loss of row r is the r-th parameter, so a gradient is how much each row counts in the step, and
plain gradient descent from zero adds that up. By hand it is ``w_i / n_i`` in every step, for each
of the n_i rows of task i: exactly over whole epochs, otherwise in expectation.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import tiny

from ldro_jax import problems, transform
from ldro_jax.problems import base as base_problem
from ldro_jax.tasks.drawing import orders
from ldro_jax.tasks.source import Source
from ldro_jax.training.engine import Trial
from ldro_jax.training.method import Method
from ldro_jax.weighting import base as weighting_base

GROUPS, THREE = (980, 20), (5, 7, 12)
BATCH_SIZES = (4, 16, 64, 256)
# The average loss, static mixing and the mean over all rows. A gradient is linear in
# the weights: if it is right for as many of them as there are tasks, it is for all.
TILTS = (0.0, 0.3, 1.0)


def tilted(sizes, tilt):
    """Fixed weights ∝ size^tilt, of which one compiled program takes any number."""
    logs = np.log(sizes)

    def weights(statistics):
        dtype = statistics.losses.dtype
        return jax.nn.softmax(jnp.asarray(tilt, dtype) * logs.astype(dtype))

    return weighting_base.stateless(weights)


class Counted(problems.Problem):
    """Parameters that are the losses of the rows."""

    metrics = (problems.Metric("loss", higher_is_better=False),)

    def __init__(self, sizes):
        self.task_names = tuple(f"task {i}" for i in range(len(sizes)))
        self._sizes = np.array(sizes)
        first = np.cumsum(self._sizes) - self._sizes
        self.first = first.astype(np.int32)
        self.tasks = np.repeat(np.arange(len(sizes)), sizes)
        self.on_device = base_problem.OnDevice(
            self.first, self._sizes, lambda first, key, step, tasks, indices: first[tasks] + indices
        )

    @property
    def sizes(self):
        return self._sizes

    def init(self, key):
        return jnp.zeros(int(self._sizes.sum()))

    def row_losses(self, params, rows):
        return params[rows]

    def source(self, seed):
        return Rows(self, seed)

    def evaluate(self, params, split):
        return {"loss": np.zeros(len(self._sizes))}


class Rows(Source):
    def __init__(self, problem, seed):
        self._first, self._orders = problem.first, orders.Orders(problem.sizes, seed)

    def rows(self, tasks, indices):
        places = [self._orders(int(t), int(i))[1] for t, i in zip(tasks, indices, strict=True)]
        return np.int32(self._first[tasks] + places)


def whole_epochs(sampler, sizes, batch_size):
    """Steps after which every row was drawn as often as the others of its task, if there are."""
    if sampler == "uniform":
        return np.lcm(sum(sizes), batch_size) // batch_size
    share = batch_size // len(sizes)
    return np.lcm.reduce([np.lcm(size, share) // share for size in sizes])


def counted(make, methods, sizes, steps, *, probabilities=None, seed=7, **options):
    """How much each row counted, the sum over the steps, ``[method, row]``; and the last states."""
    program = make(methods[0], Counted(sizes), optimizer=optax.sgd(1.0), **options)
    groups = [[m] for m in methods] if make is tiny.meshed else [methods]
    found, states = [], []
    for group in groups:
        session = program.start([Trial(method, seed) for method in group])
        if probabilities is not None:
            record = session.record()
            record["drawer"] |= {"probabilities": list(probabilities)}
            session.load(session.states, record)
        session.advance(int(steps), lambda step: False, tiny.Progress())
        for index in range(len(group)):
            states.append(session.state(index))
            found.append(-np.asarray(states[-1].params, np.float64))
    return np.array(found), states


def fixed(sizes, **options):
    make = functools.partial(tilted, sizes)
    return [Method(f"tilt {t}", make, {"tilt": t}, **options) for t in TILTS]


def expected(sizes, tilt):
    """``w_i / n_i`` for each row, in float64."""
    weights = np.array(sizes, np.float64) ** tilt
    return np.repeat(weights / weights.sum() / sizes, sizes)


ENGINES = {"stacked": tiny.stacked, "meshed": tiny.meshed}
# A compiled stretch takes a second to make, and what is between the smallest and the largest batch
# differs by a constant in it.
CASES = [
    pytest.param(name, size, marks=[pytest.mark.heavy] * (name == "stacked" and size in (16, 64)))
    for name in ENGINES
    for size in BATCH_SIZES
]


@pytest.mark.parametrize(("engine", "size"), CASES)
@pytest.mark.parametrize("sizes", [GROUPS, THREE], ids=str)
def test_plain_random_batches_train_on_the_weighted_loss(engine, sizes, size):
    steps = whole_epochs("uniform", sizes, size)
    found, _ = counted(ENGINES[engine], fixed(sizes), sizes, steps, size=size, sampler="uniform")
    for ours, tilt in zip(found, TILTS, strict=True):
        # Sums of up to 32 numbers of the same size in float32.
        np.testing.assert_allclose(ours / steps, expected(sizes, tilt), rtol=4e-6)
    # With weights by size every row counts the same, as in the mean of the batch.
    np.testing.assert_allclose(found[TILTS.index(1.0)] / steps, 1 / sum(sizes), rtol=4e-6)


@pytest.mark.parametrize(("engine", "size"), CASES)
def test_balanced_batches_train_on_the_weighted_loss(engine, size):
    steps = whole_epochs("balanced", GROUPS, size)
    found, _ = counted(ENGINES[engine], fixed(GROUPS), GROUPS, steps, size=size)
    for ours, tilt in zip(found, TILTS, strict=True):
        # Up to 3136 numbers, as large as the last ones' sum at most, in float32.
        np.testing.assert_allclose(ours / steps, expected(GROUPS, tilt), rtol=2e-5)


@pytest.mark.parametrize(("engine", "size"), CASES)
def test_tasks_that_take_turns_count_by_their_weights(engine, size):
    # A row counts w / ⌊B / N⌋ or w / ⌈B / N⌉, whichever batch it comes in, and that is random.
    steps, sizes = 1200 // size + 10, np.array(THREE)
    found, _ = counted(ENGINES[engine], fixed(THREE), THREE, steps, size=size)
    tasks = Counted(THREE).tasks
    for ours, tilt in zip(found, TILTS, strict=True):
        wanted = expected(THREE, tilt)
        weights = wanted[Counted(THREE).first] * sizes
        # A task counts by its weight in every single batch,
        np.testing.assert_allclose(np.bincount(tasks, ours) / steps, weights, rtol=2e-5)
        # and a row as the others: within four of the largest possible standard errors, and one row
        # more in the epoch that is not over.
        lower, upper = weights / -(-size // 3), weights / (size // 3)
        error = (upper - lower) / 2 * np.sqrt(steps * size / 3 / sizes)
        assert (np.abs(ours - steps * wanted) <= (4 * error + 1.001 * upper)[tasks]).all()


@pytest.mark.parametrize("sizes", [GROUPS, THREE], ids=str)
@pytest.mark.parametrize("size", BATCH_SIZES)
def test_rows_drawn_by_probabilities_count_by_the_weights(sizes, size):
    # Not those of the weights, which have moved since.
    probabilities = np.array([0.7, 0.2, 0.1] if len(sizes) == 3 else [0.85, 0.15])
    steps = 1200 // size
    methods = fixed(sizes, sampling="weights")
    found, _ = counted(
        tiny.meshed, methods, sizes, steps, size=size, probabilities=probabilities.tolist()
    )
    tasks = Counted(sizes).tasks
    for ours, tilt in zip(found, TILTS, strict=True):
        weights = np.bincount(tasks, expected(sizes, tilt))
        error = weights * np.sqrt((1 - probabilities) / (probabilities * size * steps))
        assert (np.abs(np.bincount(tasks, ours) / steps - weights) < 4 * error).all()
        # The rows of a task in turn: none was drawn twice more than another.
        once = weights / (probabilities * size)
        for task in range(len(sizes)):
            assert np.ptp(ours[tasks == task]) < once[task] * 1.01


EVERY_STEP = {"interaction_interval": 1}
WAYS = {
    "in parts": ({}, {"microbatches": 2}),
    "A every second step": ({"interaction_interval": 2}, {}),
    "A in every step": (EVERY_STEP, {}),
    "A in every step, lagged": (EVERY_STEP | {"lagged": True}, {}),
    "A in every step, halves": (EVERY_STEP | {"interaction": "split"}, {}),
    "A in every step, in parts": (EVERY_STEP, {"microbatches": 2}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sampler", ["balanced", "uniform"])
@pytest.mark.parametrize("engine", [pytest.param("stacked", marks=pytest.mark.heavy), "meshed"])
def test_however_a_step_is_taken_it_trains_on_the_weighted_loss(engine, sampler, way):
    # Of balanced batches the gradients that A is made of serve for the step as well; of plain
    # random ones, which need not hold every task, A is measured on other rows.
    options, batches = WAYS[way]
    sizes, size, tilt = (2, 6), 4, 0.3
    made = tilted(sizes, tilt)._replace(uses_interaction="interaction_interval" in options)
    steps = 2 * whole_epochs(sampler, sizes, size)
    method = Method("fixed", made, **options)
    found, states = counted(
        ENGINES[engine], [method], sizes, steps, size=size, sampler=sampler, **batches
    )
    np.testing.assert_allclose(found[0] / steps, expected(sizes, tilt), rtol=1e-6)
    assert transform.find_state(states[0].opt_state).measured.all() == made.uses_interaction


@pytest.mark.parametrize("sampler", ["balanced", "uniform"])
def test_in_float64_as_well(sampler):
    sizes, size = (2, 6), 4
    steps = whole_epochs(sampler, sizes, size)
    with jax.enable_x64(True):
        found, states = counted(tiny.meshed, fixed(sizes), sizes, steps, size=size, sampler=sampler)
        assert states[0].params.dtype == np.float64
    for ours, tilt in zip(found, TILTS, strict=True):
        # The rates and the numbers of rows are float32.
        np.testing.assert_allclose(ours / steps, expected(sizes, tilt), rtol=3e-7)


def test_a_task_is_drawn_although_it_weighed_nothing_when_the_probabilities_were_set():
    def weights(statistics):
        later = statistics.count >= 5
        return jnp.where(jnp.array([False, True]) == later, jnp.float32(1), jnp.float32(0))

    method = Method("jumps", weighting_base.stateless(weights), sampling="weights")
    program = tiny.meshed(method, Counted((5, 5)), optimizer=optax.sgd(1.0), size=16)
    session, steps = program.start([Trial(method, 7)]), 600
    session.advance(5, lambda step: False, tiny.Progress())
    first = -np.asarray(session.state(0).params)
    session.evaluated()
    session.advance(5 + steps, lambda step: False, tiny.Progress())
    rest = -np.asarray(session.state(0).params) - first
    # One of 101 rows, 95 of 600 × 16, each of which counts 101 / 16.
    draws = steps * 16 / 101
    assert rest[5:].sum() / steps == pytest.approx(1, abs=4 / np.sqrt(draws))
    np.testing.assert_allclose(rest[:5], 0)


@pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
def test_a_task_without_rows_adds_no_gradient_and_is_not_present(make):
    # One row a step: the other task is absent. Its loss stays, and it is unknown at first.
    sizes, method = (1, 3), Method("average", "average")
    program = make(method, Counted(sizes), optimizer=optax.sgd(1.0), size=1, sampler="uniform")
    session, last = program.start([Trial(method, 7)]), np.zeros(4)
    rows = []
    for step in range(1, 5):
        session.advance(step, lambda step: False, tiny.Progress())
        state = session.state(0)
        found, params = transform.find_state(state.opt_state), np.array(state.params)
        (row,) = np.flatnonzero(params != last)
        rows.append(int(row))
        # Half, divided by how many rows of the task there are in a batch on average.
        assert last[row] - params[row] == pytest.approx(0.5 / (0.25 if row == 0 else 0.75))
        seen = [0 in rows, bool(set(rows) & {1, 2, 3})]
        assert found.seen.tolist() == seen and not found.nonfinite.any()
        np.testing.assert_array_equal(found.losses, 0)
        np.testing.assert_allclose(found.weights, 0.5)
        last = params
    assert sorted(rows) == [0, 1, 2, 3]


def squared_error(outputs, rows):
    return (outputs - rows["targets"]) ** 2 / 2


def quadratic():
    """980 rows that want 0 and 20 that want 1: half of the tasks, and 0.02 of the rows."""
    data = {
        "many": (np.zeros(980, np.float32), np.zeros(980, np.float32)),
        "few": (np.zeros(20, np.float32), np.ones(20, np.float32)),
    }
    metrics = {problems.Metric("error", higher_is_better=False): squared_error}
    model = (lambda key, x: {"x": jnp.zeros(())}, lambda p, x: jnp.full(x.shape, p["x"]))
    return problems.from_arrays(
        data, model=model, loss=squared_error, metrics=metrics, validation=data, test=data
    )


@pytest.mark.parametrize(
    "size", [4, *(pytest.param(b, marks=pytest.mark.heavy) for b in (16, 64, 256))]
)
def test_the_baseline_ends_at_the_mean_of_the_tasks_and_erm_at_that_of_the_rows(size):
    problem, ends = quadratic(), []
    for method in (Method("Average", "average"), Method("ERM", "erm", {"sizes": problem.sizes})):
        optimizer = optax.sgd(optax.linear_schedule(0.02, 0.0, 1000))
        program = tiny.stacked(method, problem, optimizer=optimizer, size=size, sampler="uniform")
        session = program.start([Trial(method, 3)])
        session.advance(1000, lambda step: False, tiny.Progress())
        ends.append(float(session.state(0).params["x"]))
    # Four standard deviations over eight seeds with batches of four, the noisiest. With the numbers
    # of rows in each batch as those expected they ended at 0.07 and 0.002.
    assert ends == [pytest.approx(0.5, abs=0.036), pytest.approx(0.02, abs=0.003)]
