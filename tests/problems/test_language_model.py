"""A language model as a problem: what is measured, on how much text, and for which languages."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.core import meta
from helpers import tiny_lm

CORPUS = tiny_lm.corpus()


@pytest.fixture(scope="module")
def params():
    return meta.unbox(jax.jit(tiny_lm.problem().init)(jax.random.key(0)))


def plain_losses(params, tokens, length):
    """Mean loss of all tokens, each row of its own, in float64."""
    embedding, kernel = (np.asarray(params[name], np.float64) for name in ("embedding", "kernel"))
    total = 0.0
    for start in range(0, len(tokens), length):
        before = 0
        for token in tokens[start : start + length]:
            logits = embedding @ np.tanh(embedding[before] @ kernel)
            total += np.log(np.exp(logits).sum()) - logits[token]
            before = token
    return total / len(tokens)


@pytest.mark.parametrize("max_tokens", [None, 20, 1000])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluation_is_the_mean_over_all_tokens(split, max_tokens, params):
    # Of the other split another number, which must not count.
    limits = {"max_validation_tokens": 7, "max_test_tokens": 7, f"max_{split}_tokens": max_tokens}
    problem = tiny_lm.problem(**limits)
    assert problem.eval_length == 2 * tiny_lm.LENGTH
    texts = [text[:max_tokens] for text in getattr(CORPUS, split)]
    expected = [plain_losses(params, text, problem.eval_length) for text in texts]
    found = problem.losses(params, split)
    assert found.dtype == np.float64
    # Single losses are rounded to float32.
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    values = problem.evaluate(params, split)
    np.testing.assert_allclose(values["perplexity"], np.exp(expected), rtol=1e-5)
    assert values.keys() == {metric.name for metric in problem.metrics}
    # A checkpoint is better the lower the average loss, not the perplexity.
    assert problem.score(values) == pytest.approx(-np.mean(expected), rel=1e-6)


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_the_rows_of_an_evaluation_batch_make_no_difference(rows, params):
    expected = tiny_lm.problem().losses(params, "test")
    found = tiny_lm.problem(eval_batch_size=rows, eval_length=16).losses(params, "test")
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_loss_of_a_row_is_the_mean_of_its_tokens(params):
    problem = tiny_lm.problem()
    rows = problem.source(0).rows(np.arange(4), np.zeros(4, np.int64))
    assert (
        rows.shape == (4, *problem.row_shapes().shape) and rows.dtype == problem.row_shapes().dtype
    )
    expected = [plain_losses(params, row, tiny_lm.LENGTH) for row in rows]
    np.testing.assert_allclose(problem.row_losses(params, rows), expected, rtol=1e-5)


def test_the_order_of_the_rows_is_the_seed_s():
    tasks, indices = np.zeros(3, int), np.arange(3)
    first, again, other = (
        tiny_lm.problem().source(seed).rows(tasks, indices) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_one_language_alone_is_measured_as_among_others(params):
    problem = tiny_lm.problem()
    whole = problem.losses(params, "test")
    alone = [problem.with_corpus(problem.corpus.only(task)) for task in range(4)]
    np.testing.assert_allclose([p.losses(params, "test")[0] for p in alone], whole, rtol=1e-6)
    assert [p.task_names for p in alone] == [(name,) for name in CORPUS.task_names]
    assert problem.num_tasks == 4 and alone[0].sizes.tolist() == [len(CORPUS.train[0])]


def test_a_program_serves_another_language_without_compiling():
    whole = tiny_lm.problem()
    alone = [whole.with_corpus(whole.corpus.only(task)) for task in range(2)]
    program = tiny_lm.make_program(tiny_lm.AVERAGE, alone[0])
    params = program.init(0).params
    first = program.evaluate(params, "test")["perplexity"]
    compiled = program.problem._evaluate._cache_size()
    other = program.for_problem(program.problem.with_corpus(alone[1].corpus))
    second = other.evaluate(params, "test")["perplexity"]
    assert first.shape == second.shape == (1,) and first != second
    assert other.problem._evaluate._cache_size() == compiled == 1
    assert (
        other._compiled is program._compiled and program.problem.task_names == whole.task_names[:1]
    )


def test_a_corpus_tells_itself_from_others():
    ours = tiny_lm.problem().identity
    for other in (
        dataclasses.replace(CORPUS, vocabulary="other"),
        dataclasses.replace(CORPUS, task_names=("a", "b", "c", "d")),
        tiny_lm.corpus(2),
        # The same languages and sizes, and another word.
        dataclasses.replace(CORPUS, test=[*CORPUS.test[:-1], CORPUS.test[-1][::-1]]),
    ):
        assert tiny_lm.problem(other).identity != ours


class WithDropout(nn.Module):
    """A bigram model that forgets half of what it sees."""

    vocab_size: int

    @nn.compact
    def __call__(self, tokens):
        forgotten = nn.Dropout(0.5, deterministic=False)(tokens.astype(jnp.float32))
        return tiny_lm.Bigram(self.vocab_size)(tokens) * jnp.mean(forgotten)


class ToldBigram(nn.Module):
    """The same, told when it is trained."""

    vocab_size: int

    @nn.compact
    def __call__(self, tokens, train):
        forgotten = nn.Dropout(0.5, deterministic=not train)(tokens.astype(jnp.float32))
        return tiny_lm.Bigram(self.vocab_size)(tokens) * jnp.mean(forgotten > 0)


def test_dropout_is_for_training_alone():
    with pytest.raises(ValueError, match='WithDropout needs random numbers.*"dropout"'):
        tiny_lm.problem(model=WithDropout)
    problem = tiny_lm.problem(model=ToldBigram)
    params, key = problem.init(jax.random.key(0)), jax.random.key(1)
    rows = jnp.ones((4, tiny_lm.LENGTH), jnp.int32)
    whole = problem.row_losses(params, rows)
    assert problem.draws_at_random
    np.testing.assert_allclose(whole, problem.row_losses(params, rows))
    dropped = problem.training_losses(params, rows, key).sums
    share = np.mean(jax.device_get(dropped / whole))
    assert 0.2 < share < 0.8
