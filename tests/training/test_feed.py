"""The rows of a batch are those of the source, and every device gets its own."""

import copy
import dataclasses
import types

import jax
import numpy as np
import pytest
from helpers import tiny, tiny_lm
from jax.sharding import PartitionSpec

from ldro_jax.sharding import Layout
from ldro_jax.training.method import Method

EIGHT = Layout(data=8)
MIXING = Method(
    "Mixing",
    "static_mixing",
    {"sizes": (8.0, 4.0, 2.0, 1.0), "exponent": 1.0},
    sampling="weights",
)
UNIFORM, MIXED = np.full(4, 0.25, np.float32), np.array([8, 4, 2, 1], np.float32) / 15
MEASURED = dataclasses.replace(tiny_lm.LDRO, sampling="weights")


def images(layout, **options):
    return tiny.meshed(tiny.METHODS[3], size=8, sampler="uniform", layout=layout, **options)


def text(method):
    return lambda layout: tiny_lm.program(method, layout)


def batch(program, probabilities=UNIFORM):
    """The batch after a few others, its draw, and what draws the next one."""
    num_tasks = program.problem.num_tasks
    drawer = dataclasses.replace(
        program.feed.drawer(program.method, 0),
        counts=np.arange(num_tasks),
        probabilities=probabilities[:num_tasks],
    )
    draw, _ = drawer.next()
    found, after = program.feed.batch(program.problem.source(0), drawer)
    return found, draw, after


@pytest.mark.parametrize(
    "make",
    [text(tiny_lm.LDRO), text(MEASURED), images],
    ids=["balanced", "by weights", "plain random"],
)
def test_every_device_gets_its_rows_of_the_same_batch(make):
    programs = [make(layout) for layout in (EIGHT, tiny.ONE)]
    (found, draw, _), (one, *_) = map(batch, programs)
    # More rows may be measured than on one device, to fill all of them up; see below.
    both = (drawn._replace(measured=None) for drawn in (found, one))
    jax.tree.map(np.testing.assert_array_equal, *both)
    for array in jax.tree.leaves(found.rows):
        assert array.sharding.spec == PartitionSpec("data")
        shapes = {shard.data.shape for shard in array.addressable_shards}
        assert shapes == {(len(array) // 8, *array.shape[1:])}
    # They are what the source gives by itself.
    source = programs[0].problem.source(0)
    rows = source.rows(draw.tasks, draw.indices)
    jax.tree.map(np.testing.assert_array_equal, found.rows, rows)
    np.testing.assert_array_equal(found.tasks, draw.tasks)
    shapes = programs[0].feed.abstract_batch()
    jax.tree.map(
        lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)), found, shapes
    )


@pytest.mark.parametrize("make", [text(MEASURED), images], ids=["by weights", "plain random"])
def test_random_batches_measure_every_task_on_rows_that_are_not_drawn_yet(make):
    program = make(tiny.ONE)
    found, _, after = batch(program)
    num_tasks = program.problem.num_tasks
    tasks = np.arange(program.batches.size // num_tasks * num_tasks) % num_tasks
    indices = after.counts[tasks] + np.arange(len(tasks)) // num_tasks
    rows = program.problem.source(0).rows(tasks, indices)
    jax.tree.map(np.testing.assert_array_equal, found.measured, rows)
    # Each is read for one device: another process, whose stream has other text, has others.
    split = batch(make(EIGHT))[0].measured
    for array, whole in zip(jax.tree.leaves(split), jax.tree.leaves(rows), strict=True):
        assert array.sharding.spec == PartitionSpec("data")
        np.testing.assert_array_equal(array[: len(whole)], whole)
        assert len(array) == -(-len(whole) // 8) * 8


def test_a_stream_is_refused_where_processes_need_the_same_rows():
    program, stream = tiny_lm.program(), tiny_lm.streamed().stream.source(8, 0)
    program.feed.check_source(stream)
    feed, devices = copy.copy(program.feed), np.empty((4, 2), object)
    for i in range(8):
        devices.flat[i] = types.SimpleNamespace(process_index=i // 4)
    feed._devices = devices
    feed.check_source(stream)
    feed._devices = devices.reshape(1, 8)
    with pytest.raises(ValueError, match="Layout.model must divide .* a stream, .* it is 8"):
        feed.check_source(stream)
    feed.check_source(program.problem.source(0))


def test_a_device_has_rows_of_several_tasks():
    # One row of each task comes before the second of any, so a device has two tasks.
    found, *_ = batch(tiny_lm.program(tiny_lm.LDRO, EIGHT))
    tasks = [shard.data.tolist() for shard in found.tasks.addressable_shards]
    assert all(len(set(mine)) == 2 for mine in tasks)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (text(tiny_lm.AVERAGE), [4, 4, 4, 4]),
        # As many as there are on average.
        (text(tiny_lm.DRAWN), 16 * MIXED),
        (images, [8 * 40 / 112, 8 * 32 / 112, 8 * 40 / 112]),
    ],
    ids=["balanced", "by weights", "plain random"],
)
def test_how_many_rows_are_expected_of_each_task(make, expected):
    program = make(tiny.ONE)
    found, *_ = batch(program, MIXED)
    np.testing.assert_allclose(found.expected, expected, rtol=1e-6)
    assert found.expected.sum() == pytest.approx(program.batches.size)


@pytest.mark.parametrize(
    ("method", "expected"),
    [(tiny_lm.DRAWN, UNIFORM), (MIXING, MIXED), (MEASURED, UNIFORM)],
    ids=lambda x: getattr(x, "name", ""),
)
@pytest.mark.parametrize("floor", [0.0, 0.2])
def test_the_first_rows_are_drawn_by_the_first_weights(method, expected, floor):
    method = dataclasses.replace(method, floor=floor)
    found = tiny_lm.program().feed.drawer(method, 0).probabilities
    np.testing.assert_allclose(found, (1 - floor) * expected + floor / 4, rtol=1e-6)


def test_making_a_batch_compares_nothing_between_processes(monkeypatch):
    # It is made in a thread, and the messages would come between those of the training step.
    def put(*args, **options):
        raise AssertionError("jax.device_put compares what all processes hold.")

    three = dataclasses.replace(tiny_lm.corpus(3), task_names=("a", "b", "c"))
    programs = [
        tiny_lm.program(tiny_lm.LDRO),
        tiny_lm.program(tiny_lm.DRAWN),
        tiny_lm.make_program(tiny_lm.LDRO, tiny_lm.problem(three)),
        images(tiny.ONE),
    ]
    monkeypatch.setattr(jax, "device_put", put)
    for program in programs:
        found, draw, _ = batch(program)
        np.testing.assert_array_equal(found.tasks, draw.tasks)


class Asked:
    """A source that notes how many rows it was asked for."""

    def __init__(self, source):
        self.source, self.asked = source, []

    def rows(self, tasks, indices):
        self.asked.append(len(tasks))
        return self.source.rows(tasks, indices)


@pytest.mark.parametrize("first", [0, 1])
def test_more_rows_to_measure_on_are_read_when_they_are_needed(first):
    method = dataclasses.replace(tiny_lm.LDRO, interaction_interval=3)
    program = tiny_lm.make_program(method, interaction_rows=7)
    source, measured = Asked(program.problem.source(0)), {}
    drawer = dataclasses.replace(program.feed.drawer(method, 0), step=first)
    for step in range(first, 5):
        batch, drawer = program.feed.batch(source, drawer)
        measured[step] = np.asarray(batch.measured)
    size = tiny_lm.BATCH_SIZE
    # Four times seven rows, row r of task r mod 4; a run that goes on in between reads none.
    asked = {0: [28, size, size, size, 28, size, size], 1: [size, size, 28, size, size]}
    assert source.asked == asked[first]
    assert not measured[1].any() if first else (measured[1] == measured[0]).all()
    assert measured[3].shape == (28, tiny_lm.LENGTH)
    tasks = np.arange(28) % 4
    # Those that come next, after three batches and the fourth.
    places = np.arange(28) // 4 + (4 - first) * size // 4
    expected = program.problem.source(0).rows(tasks, places)
    np.testing.assert_array_equal(measured[3], expected)
    np.testing.assert_array_equal(measured[4], measured[3])
