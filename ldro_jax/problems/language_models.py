"""Language models of many languages: each language is a task, and a row a sequence of its text."""

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec
from typing_extensions import override

from ldro_jax.measuring import RowLosses
from ldro_jax.problems import base, models
from ldro_jax.records import traced
from ldro_jax.records.perplexity import perplexity
from ldro_jax.runtime import checks
from ldro_jax.tasks import sequences
from ldro_jax.tasks.source import Source

PERPLEXITY = base.Metric("perplexity", higher_is_better=False)
# Vocabularies are filled up to a multiple of this, so that they can be split over devices.
VOCAB_MULTIPLE = 128


class LanguageModel(base.Problem):
    """A language model and its text.

    Args:
      corpus: the text.
      model: ``(vocab_size=...) -> flax.linen.Module`` from tokens ``[R, L]`` to the loss of each,
        ``[R, L]``, such as :class:`~ldro_jax.models.decoder.Decoder`. On several devices it gets
        ``constrain`` besides, a function to apply to its activations.
      length: tokens of a training row, L.
      eval_length: tokens of an evaluation row; by default twice L, as in the paper.
      eval_batch_size: rows of an evaluation batch; by default as many tokens as a training batch.
      max_validation_tokens: take only so many tokens of each language for validation.
      max_test_tokens: the same for the test.

    Raises:
      ValueError: if an argument isn't what it must be.
    """

    metrics: tuple[base.Metric, ...] = (PERPLEXITY,)
    corpus: sequences.Corpus
    length: int
    eval_length: int

    def __init__(
        self,
        corpus: sequences.Corpus,
        model: Callable[..., nn.Module],
        *,
        length: int,
        eval_length: int | None = None,
        eval_batch_size: int | None = None,
        max_validation_tokens: int | None = None,
        max_test_tokens: int | None = 5_000_000,
    ):
        checks.instance("corpus", corpus, sequences.Corpus, "what text.load gives")
        checks.function("model", model, "vocab_size", example="@Decoder")
        checks.integer("length", length)
        optional = {
            "eval_length": eval_length,
            "eval_batch_size": eval_batch_size,
            "max_validation_tokens": max_validation_tokens,
            "max_test_tokens": max_test_tokens,
        }
        for name, value in optional.items():
            if value is not None:
                checks.integer(name, value)
        self.corpus, self.length, self.eval_length = corpus, length, eval_length or 2 * length
        self.task_names: tuple[str, ...] = corpus.task_names
        self._limits = {"validation": max_validation_tokens, "test": max_test_tokens}
        self._eval_batch_size, self._make_model = eval_batch_size, model
        self._arrange(None, eval_batch_size or 1)

    @override
    def on(self, mesh: jax.sharding.Mesh, batch_size: int) -> "LanguageModel":
        rows = self._eval_batch_size or max(batch_size * self.length // self.eval_length, 1)
        data_size = mesh.shape["data"]
        other = copy.copy(self)
        other._arrange(mesh, -(-rows // data_size) * data_size)
        if self.corpus.stream is None:
            sequences.warn_of_repeats(self.corpus, self.length, batch_size / self.num_tasks)
        return other

    def _arrange(self, mesh: jax.sharding.Mesh | None, eval_rows: int) -> None:
        """Makes the model and its evaluation anew, for devices and rows of an evaluation batch."""
        constrain: dict[str, Any] = {}
        options: dict[str, Any] = {}
        self._eval_rows, self._where = eval_rows, None
        if mesh is not None:
            where = self._where = NamedSharding(mesh, PartitionSpec("data"))
            options = {"out_shardings": NamedSharding(mesh, PartitionSpec())}
            if mesh.size > 1:
                constrain = {"constrain": lambda x: jax.lax.with_sharding_constraint(x, where)}
        vocab_size = -(-self.corpus.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
        self._model = self._make_model(vocab_size=vocab_size, **constrain)
        self._functions = models.as_functions(
            self._model, jax.ShapeDtypeStruct((eval_rows, self.length), jnp.int32)
        )
        self.draws_at_random: bool = self._functions.draws
        self._evaluate = jax.jit(_task_sums(self._functions), static_argnums=2, **options)

    def with_corpus(self, corpus: sequences.Corpus) -> "LanguageModel":
        """The same model of other text in its vocabulary, which shares what is compiled."""
        other = copy.copy(self)
        other.corpus, other.task_names = corpus, corpus.task_names
        return other

    @override
    def init(self, key: jax.Array) -> Any:
        return self._functions.init(key, jnp.zeros((1, self.length), jnp.int32))

    def row_losses(self, params: Any, rows: jax.Array) -> jax.Array:
        """Mean loss of the tokens of each row, in nats."""
        return self._functions.apply(params, rows).mean(axis=1)

    @override
    def training_losses(
        self, params: Any, rows: jax.Array, key: jax.Array | None = None
    ) -> RowLosses:
        if self._functions.train is None:
            return super().training_losses(params, rows, key)
        losses, new = self._functions.train(params, rows, key)
        return RowLosses(losses.mean(axis=1), auxiliary=new)

    @override
    def replaced(self, params: Any) -> Any:
        return None if self._functions.replaced is None else self._functions.replaced(params)

    @override
    def row_excess(self, params: Any, reference: Any, rows: jax.Array) -> jax.Array:
        losses, theirs = (self._functions.apply(p, rows) for p in (params, reference))
        return jnp.maximum(losses - theirs, 0).mean(axis=1)

    @override
    def source(self, seed: int) -> Source:
        return self.corpus.source(self.length, seed)

    @override
    def row_shapes(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.length,), jnp.int32)

    @property
    @override
    def identity(self) -> dict[str, Any]:
        return {**self.corpus.identity, **self.reference_identity}

    @property
    def sizes(self) -> np.ndarray:
        """Training tokens of each language, or the sizes that a stream gives, ``[N]``."""
        return self.corpus.sizes

    def evaluate(self, params: Any, split: str) -> dict[str, np.ndarray]:
        """Perplexity of each language on held-out text, each token once."""
        return {PERPLEXITY.name: perplexity(self.losses(params, split))}

    @override
    def check_evaluation(self, params: Any) -> bool:
        batch = self._batch_shapes(self._eval_rows, self._where)
        jax.eval_shape(lambda p, b: self._evaluate(p, b, self.num_tasks), params, batch)
        return True

    @override
    def evaluation_digests(self, params: Any) -> dict[str, str]:
        task_sums = functools.partial(_task_sums(self._functions), num_tasks=1)
        # One row, since on another mesh there are other numbers of them.
        sums = traced.of(task_sums, params, self._batch_shapes(1))
        return {PERPLEXITY.name: sums + traced.of_values(sorted(self._limits.items()))}

    def _batch_shapes(self, rows: int, where: NamedSharding | None = None) -> Any:
        row = jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=where)
        tokens = jax.ShapeDtypeStruct((rows, self.eval_length), jnp.int32, sharding=where)
        return sequences.EvaluationBatch(tokens, row, row)  # pyright: ignore[reportArgumentType]

    def score(self, values: Mapping[str, np.ndarray]) -> float:
        """The average loss, negative, in nats a token."""
        return -float(np.mean(np.log(values[PERPLEXITY.name])))

    def losses(self, params: Any, split: str) -> np.ndarray:
        """Mean loss of each language on "validation" or "test", each token once.

        Returns:
          ``[N]`` in nats a token, float64.
        """
        sums, counts = np.zeros((2, self.num_tasks))
        batches = sequences.evaluation_batches(
            getattr(self.corpus, split),
            length=self.eval_length,
            batch_size=self._eval_rows,
            max_tokens=self._limits[split],
        )
        for batch in batches:
            placed = jax.tree.map(self._place, batch)
            sums += np.asarray(self._evaluate(params, placed, self.num_tasks), np.float64)
            counts += np.bincount(batch.tasks, batch.lengths, self.num_tasks)
        return sums / counts

    def _place(self, array: np.ndarray) -> jax.Array:
        if self._where is None:
            return jnp.asarray(array)
        return jax.make_array_from_callback(array.shape, self._where, lambda index: array[index])


def _task_sums(model: models.Functions):
    """Makes the function that sums the losses of each task in a batch."""

    def task_sums(params, batch, num_tasks):
        losses = model.apply(params, batch.tokens)
        positions = jnp.arange(batch.tokens.shape[1])[None, :]
        sums = jnp.sum(jnp.where(positions < batch.lengths[:, None], losses, 0), axis=1)
        return jax.ops.segment_sum(sums, batch.tasks, num_tasks)

    return task_sums


def language_model(
    *,
    data_dir: str | None = None,
    load_data: Callable[..., sequences.Corpus],
    model: Callable[..., nn.Module],
    length: int,
    eval_length: int | None = None,
    eval_batch_size: int | None = None,
    max_validation_tokens: int | None = None,
    max_test_tokens: int | None = 5_000_000,
) -> LanguageModel:
    """Loads text in many languages with ``load_data(data_dir=...)``, and makes a problem of it.

    The other arguments are those of :class:`LanguageModel`.

    Raises:
      ValueError: if an argument isn't what it must be.
    """
    checks.function("load_data", load_data, "data_dir", example="@text.load")
    corpus = load_data(data_dir=data_dir)
    expected = "a function that gives a Corpus, such as @text.load"
    checks.require(isinstance(corpus, sequences.Corpus), "load_data", expected, load_data)
    return LanguageModel(
        corpus,
        model,
        length=length,
        eval_length=eval_length,
        eval_batch_size=eval_batch_size,
        max_validation_tokens=max_validation_tokens,
        max_test_tokens=max_test_tokens,
    )
