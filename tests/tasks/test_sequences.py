"""Sequences of text come in an order that a few numbers describe, and none is lost or repeated."""

import dataclasses
import logging as python_logging

import numpy as np
import pytest

from ldro_jax.tasks import sequences

LENGTH = 5
# Without a remainder, with one, of one sequence, of a whole one less a token, and of one token.
SIZES = (40, 53, 5, 4, 1)
N = len(SIZES)


def numbered(sizes=SIZES):
    """Text whose tokens say where they are from: task t has 1000 t + 1, 1000 t + 2, …"""
    return [(1000 * t + np.arange(1, size + 1)).astype(np.uint16) for t, size in enumerate(sizes)]


def make(seed=0, sizes=SIZES, length=LENGTH):
    return sequences.ShuffledSequences(numbered(sizes), length, seed)


def epoch(source, task, number):
    """The rows of one epoch of one task."""
    count = max(SIZES[task] // LENGTH, 1)
    indices = np.arange(number * count, (number + 1) * count)
    return source.rows(np.full(count, task), indices)


@pytest.mark.parametrize("task", [0, 1, 2])
def test_every_sequence_of_an_epoch_comes_once(task):
    source = make()
    for number in range(30):
        rows = epoch(source, task, number)
        assert rows.shape == (SIZES[task] // LENGTH, LENGTH) and rows.dtype == np.int32
        # Neighbours in the text are neighbours in a row,
        assert (np.diff(rows, axis=1) == 1).all()
        # and put in order, the rows are one stretch of it from some offset.
        joined = np.sort(rows.ravel()) - 1000 * task - 1
        offset = joined[0]
        np.testing.assert_array_equal(joined, offset + np.arange(rows.size))
        assert 0 <= offset <= SIZES[task] % LENGTH


def test_every_token_is_trained_on_in_some_epoch():
    # 53 tokens are ten sequences and three tokens more, which are not always the last.
    source = make()
    seen = [set(epoch(source, 1, number).ravel()) for number in range(40)]
    assert set.union(*seen) == set(numbered()[1].tolist())
    offsets = [min(tokens) - 1001 for tokens in seen]
    assert set(offsets) == {0, 1, 2, 3}


def test_orders_differ_between_epochs_tasks_and_seeds():
    sizes = (100, 100)
    orders = []
    for seed in (0, 1):
        source = make(seed, sizes)
        for task in (0, 1):
            rows = source.rows(np.full(20 * 50, task), np.arange(20 * 50))
            orders.append((rows[:, 0] - 1000 * task).reshape(50, 20))
    orders = np.concatenate(orders)
    assert len(np.unique(orders, axis=0)) == len(orders) == 200
    # Each sequence is first as often as any other: mean 10, standard deviation 3.1.
    assert np.abs(np.bincount(orders[:, 0] // LENGTH, minlength=20) - 10).max() < 5 * 3.1


def test_a_row_does_not_depend_on_what_was_asked_before():
    tasks, indices = (grid.ravel() for grid in np.meshgrid(np.arange(N), np.arange(40)))
    in_order = make().rows(tasks, indices)
    # As one batch of all, in another order, which jumps between epochs,
    shuffled = np.random.default_rng(0).permutation(len(tasks))
    np.testing.assert_array_equal(
        make().rows(tasks[shuffled], indices[shuffled]), in_order[shuffled]
    )
    # and one at a time, each from a source that has seen nothing, as after a restart.
    for row in (0, 77, 199):
        alone = make().rows(tasks[row : row + 1], indices[row : row + 1])
        np.testing.assert_array_equal(alone[0], in_order[row])


def test_the_order_is_the_same_for_good():
    # A run that is resumed after an update must go on with the same sequences.
    first = make(seed=3).rows(np.zeros(8, int), np.arange(8))[:, 0] // LENGTH
    np.testing.assert_array_equal(first, [6, 7, 2, 1, 4, 5, 3, 0])


def test_text_shorter_than_a_sequence_repeats():
    source = make()
    for index in (0, 1, 99):
        short, one = source.rows(np.array([3, 4]), np.array([index, index]))
        np.testing.assert_array_equal(short, [3001, 3002, 3003, 3004, 3001])
        np.testing.assert_array_equal(one, [4001] * 5)
        assert short.dtype == np.int32


def test_tokens_above_uint16_survive():
    tokens = np.arange(99_990, 100_000, dtype=np.int32)
    rows = sequences.ShuffledSequences([tokens], 5, 0).rows(np.zeros(2, int), np.arange(2))
    np.testing.assert_array_equal(np.sort(rows.ravel()), tokens)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
@pytest.mark.parametrize("max_tokens", [None, 3, 5, 12, 1000])
def test_evaluation_takes_each_token_once(batch_size, max_tokens):
    tokens = numbered()
    batches = list(
        sequences.evaluation_batches(
            tokens, length=LENGTH, batch_size=batch_size, max_tokens=max_tokens
        )
    )
    for batch in batches:
        assert batch.tokens.shape == (batch_size, LENGTH)
        assert batch.lengths.shape == batch.tasks.shape == (batch_size,)
        assert all(field.dtype == np.int32 for field in batch)
    joined = sequences.EvaluationBatch(*map(np.concatenate, zip(*batches, strict=True)))
    real = np.arange(LENGTH)[None, :] < joined.lengths[:, None]
    # Padding is zeros, which no token is here, and at the end.
    np.testing.assert_array_equal(joined.tokens > 0, real)
    for task, text in enumerate(tokens):
        mine = real & (joined.tasks == task)[:, None]
        np.testing.assert_array_equal(joined.tokens[mine], text[:max_tokens])
        # All rows are full but the last of a task.
        lengths = joined.lengths[(joined.tasks == task) & (joined.lengths > 0)]
        assert (lengths[:-1] == LENGTH).all() and lengths[-1] > 0
    # The last batch is filled up, with less than a batch.
    empty = joined.lengths == 0
    assert not empty[: len(empty) - empty.sum()].any() and empty.sum() < batch_size


def corpus(**changes):
    parts = {
        split: [np.arange(1, 4 + i, dtype=np.uint16) * k for i in range(3)]
        for k, split in enumerate(("train", "validation", "test"), start=1)
    }
    names = ("de", "el", "zh")
    return sequences.Corpus(
        **{"task_names": names, "vocab_size": 99, "vocabulary": "v"} | parts | changes
    )


def test_a_corpus_knows_its_sizes():
    assert corpus().num_tasks == 3
    np.testing.assert_array_equal(corpus().sizes, [3, 4, 5])


def test_one_task_of_a_corpus_is_a_corpus():
    whole = corpus()
    one = whole.only(1)
    assert one.task_names == ("el",) and one.num_tasks == 1
    assert (one.vocab_size, one.vocabulary) == (99, "v")
    for split in ("train", "validation", "test"):
        (tokens,) = getattr(one, split)
        # Not a copy: text is mapped from disk.
        assert tokens is getattr(whole, split)[1]


def test_training_text_is_shuffled_unless_it_comes_from_a_stream():
    tasks, indices = np.array([0, 2, 2]), np.array([0, 0, 1])
    arrays = corpus(train=numbered((20, 20, 20)), vocab_size=3000)
    np.testing.assert_array_equal(
        arrays.source(LENGTH, 4).rows(tasks, indices),
        make(4, (20, 20, 20)).rows(tasks, indices),
    )

    class Stream:
        def __init__(self, *names):
            self.names, self.sizes = names, np.arange(len(names))

        def source(self, length, seed):
            return self.names, length, seed

        def only(self, task):
            return Stream(self.names[task])

    streamed = corpus(train=(), stream=Stream("de", "el", "zh"))
    assert streamed.sizes is streamed.stream.sizes
    assert streamed.source(LENGTH, 4) == (("de", "el", "zh"), LENGTH, 4)
    assert streamed.only(1).source(LENGTH, 4) == (("el",), LENGTH, 4)
    assert streamed.only(1).num_tasks == 1 and streamed.only(1).test[0] is streamed.test[1]


@pytest.mark.parametrize("names", [(), ("de", "el", "de")])
def test_tasks_need_names_of_their_own(names):
    with pytest.raises(ValueError, match="task_names must be a list of names"):
        corpus(task_names=names)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_every_task_needs_every_split(split):
    parts = list(getattr(corpus(), split))
    with pytest.raises(ValueError, match=f"{split} has 2 tasks, expected 3"):
        corpus(**{split: parts[:2]})
    nothing = np.zeros(0, np.uint16)
    with pytest.raises(ValueError, match=f"needs {split} text, but these have none: de, zh"):
        corpus(**{split: [nothing, parts[1], nothing]})


def test_a_corpus_is_not_changed_by_accident():
    with pytest.raises(dataclasses.FrozenInstanceError):
        corpus().vocab_size = 1


def test_repeated_text_is_warned_of_once(caplog):
    with caplog.at_level(python_logging.WARNING):
        sequences.warn_of_repeats(corpus(), 2, 1.5)
        assert not caplog.records
        sequences.warn_of_repeats(corpus(), 2, 2.5)
    (record,) = caplog.records
    assert "5 tokens" in record.getMessage()
    assert "de (3 tokens), el (4 tokens)." in record.getMessage()
    # Even where a batch has less than one of each, sequences are of full length.
    caplog.clear()
    with caplog.at_level(python_logging.WARNING):
        sequences.warn_of_repeats(corpus(), 4, 0.1)
    assert "de (3 tokens)" in caplog.text and "el" not in caplog.text
