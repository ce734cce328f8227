"""Training rows from iterators: the same rows whatever the batches, killed and resumed or not."""

import itertools
import logging

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import tiny

from ldro_jax import problems
from ldro_jax.problems import Table
from ldro_jax.records import results
from ldro_jax.sharding import Layout
from ldro_jax.training.method import Method

ROWS, FEATURES, TASKS = 24, 2, ("a", "b")
ERROR = problems.Metric("error", higher_is_better=False)
RATE, STEPS = 0.1, 6


def squared(outputs, rows):
    return (outputs - rows["targets"]) ** 2


def init(key, inputs):
    del key
    return jnp.zeros(inputs.shape[-1])


def apply(params, inputs):
    return inputs @ params


def data(seed, rows=ROWS):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(rows, FEATURES)).astype(np.float32)
    return inputs, inputs @ np.array([seed + 1.0, -1.0], np.float32)


DATA = {task: data(seed) for seed, task in enumerate(TASKS)}
HELD_OUT = {task: data(seed + 10) for seed, task in enumerate(TASKS)}


def batched(arrays, size):
    """All rows in batches, the last of which may be smaller."""
    return [tuple(x[i : i + size] for x in arrays) for i in range(0, len(arrays[0]), size)]


def shuffled(arrays, size=5):
    """A function of a seed that makes one epoch, in an order of its own."""

    def made(seed):
        order = np.random.default_rng(seed).permutation(len(arrays[0]))
        yield from batched([x[order] for x in arrays], size)

    return made


class Counted:
    """An iterable whose iterators know their place, in ``form``."""

    def __init__(self, batches, form):
        self._batches, self._form = batches, form

    def __iter__(self):
        return CountedIterator(self._batches, self._form)


class CountedIterator:
    def __init__(self, batches, form):
        self._batches, self._form, self._place = batches, form, 0

    def __next__(self):
        if self._place == len(self._batches):
            raise StopIteration
        self._place += 1
        return self._batches[self._place - 1]

    def get_state(self):
        return self._form(self._place)

    def set_state(self, state):
        # Made anew in the form in which it was given.
        self._place = next(i for i in range(99) if self._form(i) == state)


def of_grain(arrays):
    grain = pytest.importorskip("grain")

    def made(seed):
        rows = grain.MapDataset.range(len(arrays[0])).seed(seed).shuffle()
        return rows.map(lambda i: tuple(x[i] for x in arrays)).batch(5)

    return made


def of_tensorflow(arrays):
    tf = pytest.importorskip("tensorflow")
    rows = tf.data.Dataset.from_tensor_slices(tuple(arrays))
    return rows.shuffle(10, seed=0, reshuffle_each_iteration=False).batch(5)


def of_tensorflow_with_python(arrays):
    tf = pytest.importorskip("tensorflow")
    return of_tensorflow(arrays).map(
        lambda x, y: (tf.ensure_shape(tf.numpy_function(np.copy, [x], tf.float32), (None, 2)), y)
    )


def of_torch(arrays):
    data = pytest.importorskip("torch.utils.data")
    import torch

    rows = data.TensorDataset(*map(torch.from_numpy, arrays))
    return lambda seed: data.DataLoader(
        rows, batch_size=5, shuffle=True, generator=torch.Generator().manual_seed(seed)
    )


KINDS = {
    "function": shuffled,
    "list": lambda arrays: batched(arrays, 7),
    "state": lambda arrays: Counted(batched(arrays, 5), lambda place: {"next": place}),
    "bytes": lambda arrays: Counted(batched(arrays, 5), lambda place: bytes([place])),
    "Grain": of_grain,
    "tf.data": of_tensorflow,
    "tf.data with Python": of_tensorflow_with_python,
    "PyTorch": of_torch,
}


def problem(kind="function", **options):
    streams = {task: KINDS[kind](arrays) for task, arrays in DATA.items()}
    return from_iterator(streams, **options)


def from_iterator(train, validation=HELD_OUT, **options):
    options = {"loss": squared, "metrics": {ERROR: squared}, "model": (init, apply)} | options
    return problems.from_iterator(train, validation=validation, test=validation, **options)


def taken(source, tasks):
    tasks = np.array(tasks, np.int32)
    return source.rows(tasks, np.zeros(len(tasks), np.int64))


@pytest.mark.parametrize("kind", KINDS)
def test_the_rows_after_a_saved_place_are_the_same(kind, tmp_path):
    made = problem(kind)
    rng = np.random.default_rng(0)
    # Places within a batch and at its end, before the first, and after some epochs.
    for number, counts in enumerate([[], [5, 5], [3, 9, 40], [1, 60, 13]]):
        source, again = made.source(3), made.source(3)
        for count in counts:
            taken(source, rng.integers(2, size=count))
        folder = tmp_path / str(number)
        folder.mkdir()
        source.save(folder)
        again.restore(folder)
        for count in (4, 1, 50):
            tasks = rng.integers(2, size=count)
            expected, found = taken(source, tasks), taken(again, tasks)
            for name, rows in expected.items():
                np.testing.assert_array_equal(found[name], rows)
            np.testing.assert_array_equal(expected["task"], tasks)


def test_each_row_comes_once_in_an_epoch_and_each_epoch_and_seed_has_its_order():
    def epochs(seed):
        source = problem().source(seed)
        rows = [taken(source, [1] * ROWS)["inputs"] for _ in range(3)]
        for epoch in rows:
            found, expected = (x[np.argsort(x[:, 0])] for x in (epoch, DATA["b"][0]))
            np.testing.assert_array_equal(found, expected)
        return rows

    orders = [*epochs(0), *epochs(1)]
    for one, other in itertools.combinations(orders, 2):
        assert (one != other).any()


def test_training_on_streams_is_a_loop_by_hand(tmp_path):
    # The batches of 4 rows of each task, cut from batches of 7 and 24 rows, by NumPy.
    params = np.zeros(FEATURES, np.float32)
    expected = []
    for step in range(STEPS):
        where = np.arange(4 * step, 4 * step + 4) % ROWS
        gradient = np.zeros_like(params)
        losses = []
        for x, y in DATA.values():
            errors = x[where] @ params - y[where]
            losses.append(np.mean(errors**2))
            gradient += np.mean(2 * errors[:, None] * x[where], axis=0) / len(TASKS)
        expected.append(losses)
        params -= RATE * gradient
    made = problem("list")
    for layout in (tiny.ONE, Layout(data=4)):
        program = tiny.meshed(a_problem=made, size=8, layout=layout, optimizer=optax.sgd(RATE))
        run = tiny.train(program, tmp_path / str(layout.data), tiny.schedule(STEPS, 1, 1))
        np.testing.assert_allclose(run.losses.values, expected, rtol=1e-5)


def record(run):
    return {**results.run_to_record(run), "seconds_per_step": None}


def tables(seed=0, rows=ROWS):
    """Rows with two labels, some of them missing, and a mask."""
    (inputs, a), (_, b) = data(seed, rows), data(seed + 1, rows)
    rng = np.random.default_rng(seed)
    has_b = rng.random(rows) < 0.7
    return Table(inputs, {"a": np.where(rng.random(rows) < 0.7, a, np.nan), "b": b}, {"b": has_b})


def cut(table, size=5):
    """A function of a seed that makes batches of a table."""

    def made(seed):
        del seed
        for i in range(0, len(table.inputs), size):
            where = slice(i, i + size)
            targets, labelled = (
                {task: x[where] for task, x in given.items()} for given in table[1:]
            )
            yield table.inputs[where], targets, labelled

    return made


def heads(key, inputs):
    del key
    return jnp.zeros((inputs.shape[-1], len(TASKS)))


def of_tables():
    return from_iterator(cut(tables()), tables(5), model=(heads, apply))


def of_two_tables():
    """Two modalities: other inputs, of another structure, and a task of its own."""
    other = Table({"x": data(3)[0][:, :1], "y": np.arange(ROWS)}, {"c": data(3)[1]})

    def batches(seed):
        del seed
        for i in range(0, ROWS, 6):
            where = slice(i, i + 6)
            inputs = {name: x[where] for name, x in other.inputs.items()}
            yield Table(inputs, {"c": other.targets["c"][where]})

    def begin(key, inputs):
        del key
        return {"first": jnp.zeros((inputs["first"].shape[-1], 2)), "second": jnp.zeros(1)}

    def outputs(params, inputs, table):
        return (inputs["x"] if table == "second" else inputs) @ params[table]

    return from_iterator(
        {"second": batches, "first": cut(tables())},
        {"first": tables(5), "second": other},
        model=(begin, outputs),
    )


PROBLEMS = {"rows": problem, "a table": of_tables, "two tables": of_two_tables}
LDRO = Method(
    "L-DRO", "lookahead_online", {"lookahead_lr": 0.1, "weight_lr": 0.5}, interaction_interval=2
)


@pytest.mark.parametrize("kind", PROBLEMS)
def test_a_run_that_was_interrupted_ends_the_same(kind, tmp_path):
    # The checkpoints are within batches of the streams, and beyond their ends.
    options = {"size": 12, "learning_rate": 0.05}
    program = tiny.meshed(LDRO, PROBLEMS[kind](), **options)
    schedule = tiny.schedule(12, 3, 3)
    whole = tiny.train(program, tmp_path / "whole", schedule)
    with pytest.raises(KeyboardInterrupt):
        tiny.train(program, tmp_path / "cut", schedule, progress=tiny.Progress(stop_after=3))
    progress = tiny.Progress()
    resumed = tiny.train(program, tmp_path / "cut", schedule, progress=progress)
    assert any("resumed at step" in line for line in progress.lines)
    assert record(resumed) == record(whole)
    assert np.isfinite(whole.losses.values).all()


def test_missing_labels_of_a_stream_count_in_no_loss(tmp_path):
    made = of_tables()
    assert made.labels.shape == (1, 2) and np.isnan(made.labels).all()
    program = tiny.meshed(a_problem=made, size=8, optimizer=optax.sgd(0.0))
    run = tiny.train(program, tmp_path, tiny.schedule(3, 1, 1))
    given = tables()
    for step, losses in enumerate(run.losses.values):
        where = slice(8 * step, 8 * step + 8)
        a, b = (given.targets[task][where] for task in TASKS)
        expected = [np.nanmean(a**2), np.mean(b[given.labelled["b"][where]] ** 2)]
        np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_a_replayed_stream_that_gives_other_rows_says_so(tmp_path, caplog):
    orders = itertools.count()

    def unlike(seed):
        del seed
        yield from shuffled(DATA["a"])(next(orders))

    made = from_iterator({"a": unlike, "b": shuffled(DATA["b"])})
    source = made.source(0)
    taken(source, [0, 1] * 8)
    source.save(tmp_path)
    with caplog.at_level(logging.WARNING):
        made.source(0).restore(tmp_path)
    (warning,) = [r.getMessage() for r in caplog.records]
    assert warning.startswith("train['a'] gives other rows than before the interruption")


def test_a_replayed_stream_that_has_become_shorter_is_refused(tmp_path):
    batches = {task: batched(arrays, 5) for task, arrays in DATA.items()}
    source = from_iterator(batches).source(0)
    taken(source, [0, 1] * 8)
    source.save(tmp_path)
    shorter = from_iterator({**batches, "a": batches["a"][:1]}).source(0)
    with pytest.raises(ValueError, match=r"train\['a'\] must give 2 batches again.*it gives 1\."):
        shorter.restore(tmp_path)


def test_a_place_of_another_kind_is_refused(tmp_path):
    source = problem("state").source(0)
    taken(source, [0, 1])
    source.save(tmp_path)
    message = r"place in train\['a'\] is a state, but now it is a number of batches"
    with pytest.raises(ValueError, match=message):
        problem("list").source(0).restore(tmp_path)


GOOD = batched(DATA["a"], 5)
NOT_STREAMS = {
    "a generator": (iter(GOOD), r"iterable of batches that can begin anew.*it is <list_iterator"),
    "a number": (3, "iterable of batches that can begin anew"),
}
NOT_BATCHES = {
    "none": ([], r"train\['a'\] must give batches, but it gives none"),
    "rows": ([(x, y) for x, y in zip(*DATA["a"], strict=True)], r"inputs.*\['R', 2\].*\[2\]"),
    "rows of one number": ([(np.float32(1), np.float32(2))], r"\['inputs'\].*gave \[\]"),
    "no rows": ([tuple(x[:0] for x in DATA["a"])], "batches of at least one row"),
    "inputs alone": ([DATA["a"][0]], r"a batch of train\['a'\] must be a pair \(inputs, targets\)"),
    "other numbers": ([(x.astype(int), y) for x, y in GOOD], "of float32, but .* of int32"),
    "fewer targets": ([(x, y[:2]) for x, y in GOOD], r"\['targets'\]"),
    "not finite": ([(x * np.nan, y) for x, y in GOOD], "finite"),
    "an error": (lambda seed: 1 / 0, r"train\['a'\] fails: ZeroDivisionError"),
}


@pytest.mark.parametrize("what", NOT_STREAMS)
def test_what_is_no_stream_is_refused(what):
    stream, message = NOT_STREAMS[what]
    with pytest.raises(ValueError, match=message):
        from_iterator({"a": stream, "b": GOOD})


@pytest.mark.parametrize("what", NOT_BATCHES)
def test_what_is_no_batch_is_refused_before_training(what):
    stream, message = NOT_BATCHES[what]
    with pytest.raises(ValueError, match=message):
        from_iterator({"a": stream, "b": GOOD}).check_rows()
    with pytest.raises(ValueError, match=message.replace("'a'", "'b'")):
        from_iterator({"a": GOOD, "b": stream}).check_rows()


@pytest.mark.parametrize("train", [{"a": GOOD}, {"a": GOOD, "c": GOOD}, GOOD, None])
def test_streams_of_other_tasks_are_refused(train):
    with pytest.raises(ValueError, match=r"a stream for each of \['a', 'b'\], as in validation"):
        from_iterator(train)


def test_batches_of_tables_with_other_tasks_are_refused():
    made = from_iterator([(np.ones((3, 2)), {"a": np.ones(3)})], tables(5), model=(heads, apply))
    with pytest.raises(ValueError, match=r"those of \['a', 'b'\], by task"):
        made.row_shapes()


class Once:
    """An iterable that always gives the same iterator."""

    def __init__(self, seed=0):
        self._iterator = iter(GOOD)

    def __iter__(self):
        return self._iterator


def test_a_stream_that_cannot_begin_anew_says_so():
    source = from_iterator({"a": Once(), "b": GOOD}).source(0)
    with pytest.raises(ValueError, match=r"gives none when it is begun anew; give a function"):
        taken(source, [0] * 30)
    # A class is a function of a seed.
    taken(from_iterator({"a": Once, "b": GOOD}).source(0), [0] * 30)


def test_a_state_that_json_cannot_hold_is_found_before_training(tmp_path):
    made = from_iterator({"a": Counted(GOOD, lambda place: {"next": np.int64(place)}), "b": GOOD})
    program = tiny.meshed(a_problem=made, size=8)
    progress = tiny.Progress()
    with pytest.raises(ValueError, match=r"train\['a'\] must have iterators whose get_state\(\)"):
        tiny.train(program, tmp_path, tiny.schedule(4, 1, 1), progress=progress)
    assert not progress.steps


@pytest.mark.parametrize("sizes", [{"a": 1}, {"a": 1, "b": -1}, {"a": 1, "b": np.nan}, [1, 2]])
def test_sizes_that_do_not_fit_are_refused(sizes):
    with pytest.raises(ValueError, match="sizes must be"):
        problem(sizes=sizes).check_rows()


@pytest.mark.parametrize("validation", [{"a": (1,), "b": (2,)}, {"a": 5, "b": 5}])
def test_held_out_data_that_is_none_is_told_by_its_name(validation):
    with pytest.raises(ValueError, match=r"validation\['a'\] must"):
        from_iterator({"a": GOOD, "b": GOOD}, validation)


def test_sizes_and_identity_are_what_the_user_says():
    made = problem(sizes={"b": 3, "a": 1}, identity="version 2")
    assert made.sizes.tolist() == [1, 3]
    assert made.identity != problem(sizes={"b": 3, "a": 1}, identity="version 3").identity
    assert problem().sizes is None
