"""A language model, its text and a method as compiled programs: start, train, evaluate."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.core import meta
from jax.sharding import NamedSharding, PartitionSpec

from ldro_jax import checks, interaction, transform, weighting
from ldro_jax.interaction.scan import scan
from ldro_jax.tasks import sequences
from ldro_jax.training import lm_step, sharding
from ldro_jax.training.method import Method
from ldro_jax.training.step import TrainState

# Vocabularies are filled up to a multiple of this, so that they can be split over devices.
VOCAB_MULTIPLE = 128


class LanguageModelProgram:
    """A language model, its text and a method, compiled once for all rates and seeds.

    Args:
      method: how to weigh the tasks.
      corpus: the text.
      make_model: ``(vocab_size=...) -> flax.linen.Module`` from tokens ``[B, L]`` to the loss of
        each, ``[B, L]``, such as :class:`~ldro_jax.models.decoder.Decoder`.
      optimizer: the Optax optimizer to chain after the weighting.
      batch_size: rows of a batch, B.
      length: tokens of a training row, L.
      eval_length: tokens of an evaluation row; twice L if not given, as in the paper.
      eval_batch_size: rows of an evaluation batch; as many tokens as in a training batch if not
        given.
      layout: how to use several devices.
      microbatches: in how many parts to take a batch.
      interaction_rows: measure the interaction on so many rows of each task; by default on all.

    Raises:
      ValueError: if the batch doesn't fit the tasks or the mesh, or a setting is out of range.
    """

    def __init__(
        self,
        method: Method,
        corpus: sequences.Corpus,
        make_model: Callable[..., nn.Module],
        optimizer: optax.GradientTransformation,
        *,
        batch_size: int,
        length: int,
        eval_length: int | None = None,
        eval_batch_size: int | None = None,
        layout: sharding.Layout = sharding.Layout(),  # noqa: B008
        microbatches: int = 1,
        interaction_rows: int | None = None,
    ):
        self.corpus, self.method = corpus, method
        self.batch_size, self.length = batch_size, length
        self._optimizer, self._microbatches = optimizer, microbatches
        self._interaction_rows = interaction_rows
        checks.function("make_model", make_model, "vocab_size", example="@Decoder")
        checks.instance("optimizer", optimizer, optax.GradientTransformation, "@lm.adam()")
        checks.instance("layout", layout, sharding.Layout, "@Layout()")
        checks.integer("length", length)
        optional = {
            "eval_length": eval_length,
            "eval_batch_size": eval_batch_size,
            "interaction_rows": interaction_rows,
        }
        for name, value in optional.items():
            if value is not None:
                checks.integer(name, value)
        self.mesh = layout.mesh()
        data_size = self.mesh.shape["data"]
        _check_batch(batch_size, microbatches, corpus.num_tasks, data_size)
        self.eval_length = eval_length or 2 * length
        rows = eval_batch_size or max(batch_size * length // self.eval_length, 1)
        self._eval_batch_size = -(-rows // data_size) * data_size
        self._rows = NamedSharding(self.mesh, PartitionSpec("data"))
        self._replicated = NamedSharding(self.mesh, PartitionSpec())
        vocab_size = -(-corpus.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
        constrain = {}
        if self.mesh.size > 1:
            constrain = {"constrain": lambda x: jax.lax.with_sharding_constraint(x, self._rows)}
        self._model = make_model(vocab_size=vocab_size, **constrain)
        self._rules = layout.rules()
        self._evaluate = jax.jit(self._task_sums, out_shardings=self._replicated)
        self._set_method(method)

    def for_method(self, method: Method) -> "LanguageModelProgram":
        """The program of another method for the same model and text.

        Args:
          method: how to weigh the tasks.

        Returns:
          The program; it shares with this one what doesn't depend on the method.

        Raises:
          ValueError: if a setting of the method is out of range.
        """
        other = copy.copy(self)
        other._set_method(method)
        return other

    def for_corpus(self, corpus: sequences.Corpus) -> "LanguageModelProgram":
        """The program of the same method and model for other text with as many tasks.

        Args:
          corpus: the text.

        Returns:
          The program, which compiles nothing anew.

        Raises:
          ValueError: if the number of tasks or the vocabulary is another one.
        """
        same = ("num_tasks", "vocabulary")
        if any(getattr(corpus, name) != getattr(self.corpus, name) for name in same):
            raise ValueError("A program serves text with one number of tasks and one vocabulary.")
        other = copy.copy(self)
        other.corpus = corpus
        return other

    def _set_method(self, method: Method) -> None:
        self.method = method
        self._tx({})
        boxed = jax.eval_shape(self._boxed_state, jax.random.key(0))
        self._shapes = meta.unbox(boxed)
        self.shardings = sharding.shardings(boxed, self.mesh, self._rules)
        self._init = jax.jit(
            lambda key: meta.unbox(self._boxed_state(key)), out_shardings=self.shardings
        )
        data_size = self.mesh.shape["data"]
        step = lm_step.train_step(
            self.row_losses,
            self._tx,
            self.corpus.num_tasks,
            self._strategy(),
            fused=self._fused,
            microbatches=self._microbatches,
            interaction_rows=self._interaction_rows,
            multiple=data_size,
        )
        self._step = jax.jit(
            step, donate_argnums=1, out_shardings=(self.shardings, self._replicated)
        )

    @property
    def _fused(self) -> bool:
        return (
            self.method.measures_every_step
            and self.method.sampling == "uniform"
            and self._microbatches == 1
        )

    def _strategy(self):
        if self.mesh.size == 1:
            return interaction.get(self.method.interaction)
        split = jax.tree.map(sharding.over_data, self._shapes.params, self.shardings.params)
        return scan(constrain=lambda g: jax.lax.with_sharding_constraint(g, split))

    def _tx(self, rates: Mapping[str, Any]) -> optax.GradientTransformationExtraArgs:
        return optax.chain(self.method.transform(self.corpus.num_tasks, rates), self._optimizer)

    def _boxed_state(self, key):
        params = self._model.init(key, jnp.zeros((1, self.length), jnp.int32))["params"]
        return TrainState(jnp.zeros([], jnp.int32), params, self._tx({}).init(params))

    def init(self, seed: int) -> TrainState:
        """The state before the first step; the same parameters for every method.

        Args:
          seed: of the run.

        Returns:
          The state, on the mesh.
        """
        return self._init(jax.random.key(seed))

    def weights(self, state: TrainState) -> np.ndarray:
        """The task weights in a training state.

        Args:
          state: of a run.

        Returns:
          ``[N]``.
        """
        return np.asarray(transform.find_state(state.opt_state).weights)

    def first_probabilities(self, method: Method) -> np.ndarray:
        """The probabilities of the tasks in the first batches.

        Args:
          method: how to weigh the tasks.

        Returns:
          ``[N]``; uniform where rows are not drawn by weights.
        """
        num_tasks = self.corpus.num_tasks
        if method.sampling == "uniform":
            return np.full(num_tasks, 1 / num_tasks, np.float32)
        # Before any loss is known the static methods have their weights, the others uniform ones.
        found = weighting.with_floor(
            weighting.create(method.weighting, method.hyperparameters), method.floor
        )
        zeros = jnp.zeros(num_tasks)
        unknown = weighting.Statistics(
            jnp.zeros([], jnp.int32), zeros, jnp.zeros((num_tasks, num_tasks))
        )
        weights, _ = found.update(unknown, found.init(num_tasks, zeros.dtype))
        return np.asarray(weights)

    def row_losses(self, params: Any, tokens_RxL: jax.Array) -> jax.Array:
        """Mean loss of the tokens of each row.

        Args:
          params: the model's parameters.
          tokens_RxL: int32.

        Returns:
          ``[R]`` in nats.
        """
        losses = self._model.apply({"params": params}, tokens_RxL)
        assert isinstance(losses, jax.Array)
        return losses.mean(axis=1)

    def source(self, seed: int) -> sequences.Source:
        """Where the training rows of a run come from.

        Args:
          seed: of the run.

        Returns:
          The source.
        """
        return self.corpus.source(self.length, seed)

    def draw(self, drawn: np.ndarray, probabilities: np.ndarray, seed: int, step: int):
        """Which rows the batch of one step is made of.

        Args:
          drawn: sequences of each task drawn before, ``[N]``.
          probabilities: of each task, ``[N]``, if rows are drawn at random.
          seed: of the run.
          step: number of steps taken.

        Returns:
          The :class:`~ldro_jax.tasks.sequences.Draw`.
        """
        if self.method.sampling == "uniform":
            return sequences.draw_balanced(drawn, self.batch_size)
        return sequences.draw_mixed(drawn, self.batch_size, probabilities, [seed, step])

    def batch(self, source: sequences.Source, draw: sequences.Draw, probabilities: np.ndarray):
        """The rows of a draw on the devices.

        Args:
          source: of the rows.
          draw: which rows.
          probabilities: of each task in the draw, ``[N]``.

        Returns:
          A :class:`~ldro_jax.training.lm_step.Batch`. Each process reads the rows of its devices
          alone.
        """
        num_tasks = self.corpus.num_tasks
        extra = by_task = None
        if self.method.sampling == "uniform":
            # A row counts for its task as one of those that the batch has.
            probabilities = np.bincount(draw.tasks, None, num_tasks) / self.batch_size
            if self.batch_size % num_tasks and self.method.uses_interaction:
                by_task = sequences.rows_by_task(draw.tasks, num_tasks)
                by_task = _put(by_task, self._replicated)
        elif self.method.uses_interaction:
            # Random rows need not hold every task. These don't count as drawn.
            balanced = sequences.draw_balanced(np.zeros_like(draw.drawn), self._measured_rows)
            balanced = balanced._replace(indices=balanced.indices + draw.drawn[balanced.tasks])
            extra = self._place(source, balanced, self._replicated)
        return lm_step.Batch(
            tokens=self._place(source, draw, self._rows),
            tasks=_put(draw.tasks, self._rows),
            probabilities=_put(probabilities.astype(np.float32), self._replicated),
            interaction_tokens=extra,
            by_task=by_task,
        )

    @property
    def _measured_rows(self) -> int:
        """Rows to measure the interaction on, where those of the batch don't serve for it."""
        return self.batch_size // self.corpus.num_tasks * self.corpus.num_tasks

    def _place(self, source, draw, where):
        parts: dict[tuple, np.ndarray] = {}

        def rows(index):
            # Devices that hold the same rows must get the same rows.
            key = (index[0].start, index[0].stop)
            if key not in parts:
                parts[key] = source.rows(draw.tasks[index[0]], draw.indices[index[0]])
            return parts[key]

        return jax.make_array_from_callback((draw.tasks.size, self.length), where, rows)

    def step(self, state: TrainState, batch: lm_step.Batch, method: Method):
        """Takes one step.

        Args:
          state: where to start; its buffers are reused.
          batch: from :meth:`batch`.
          method: whose rates to use; one that :meth:`Method.program` says this program can train.

        Returns:
          The new state and the losses of the tasks, ``[N]``, not waited for.
        """
        rates = {k: np.asarray(v, np.float32) for k, v in method.rates().items()}
        return self._step(rates, state, batch)

    def abstract_state(self) -> TrainState:
        """The shapes, dtypes and shardings of a training state; no memory is taken.

        Returns:
          A ``jax.ShapeDtypeStruct`` for each array.
        """
        return jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            self._shapes,
            self.shardings,
        )

    def lower(self) -> Any:
        """The training step for its shapes alone, to look at its memory and its cost.

        Returns:
          A ``jax.stages.Lowered``; nothing is computed and no parameters are made.
        """
        return self._step.lower(*self._abstract_arguments())

    def check(self) -> None:
        """Traces a step and an evaluation, so that what doesn't fit is found before training.

        Raises:
          ValueError: if something doesn't.
        """
        jax.eval_shape(self._step, *self._abstract_arguments())
        row = jax.ShapeDtypeStruct((self._eval_batch_size,), jnp.int32, sharding=self._rows)
        tokens = jax.ShapeDtypeStruct((row.size, self.eval_length), jnp.int32, sharding=self._rows)
        batch = sequences.EvaluationBatch(tokens, row, row)  # pyright: ignore[reportArgumentType]
        jax.eval_shape(self._evaluate, self.abstract_state().params, batch)

    def _abstract_arguments(self) -> tuple[Any, ...]:
        """Shapes of the rates, the state and the batch of a step."""
        num_tasks, rows = self.corpus.num_tasks, (self.batch_size, self.length)

        def shaped(shape, dtype, where) -> Any:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

        def replicated(*shape) -> Any:
            return shaped(shape, jnp.int32, self._replicated)

        extra = by_task = None
        if self.method.uses_interaction and self.method.sampling != "uniform":
            extra = replicated(self._measured_rows, self.length)
        elif self.method.uses_interaction and self.batch_size % num_tasks:
            by_task = replicated(num_tasks, -(-self.batch_size // num_tasks))
        batch = lm_step.Batch(
            tokens=shaped(rows, jnp.int32, self._rows),
            tasks=shaped(rows[:1], jnp.int32, self._rows),
            probabilities=shaped((num_tasks,), jnp.float32, self._replicated),
            interaction_tokens=extra,
            by_task=by_task,
        )
        rates = {k: jax.ShapeDtypeStruct((), jnp.float32) for k in self.method.rates()}
        return rates, self.abstract_state(), batch

    def evaluate(self, params: Any, split: str, max_tokens: int | None = None) -> np.ndarray:
        """Mean loss of every task on held-out text, each token once.

        Args:
          params: the model's parameters.
          split: "validation" or "test".
          max_tokens: take only so many tokens of each task.

        Returns:
          ``[N]`` in nats, float64.
        """
        sums, counts = np.zeros((2, self.corpus.num_tasks))
        batches = sequences.evaluation_batches(
            getattr(self.corpus, split),
            length=self.eval_length,
            batch_size=self._eval_batch_size,
            max_tokens=max_tokens,
        )
        for batch in batches:
            placed = jax.tree.map(lambda array: _put(array, self._rows), batch)
            sums += np.asarray(self._evaluate(params, placed), np.float64)
            counts += np.bincount(batch.tasks, batch.lengths, self.corpus.num_tasks)
        return sums / counts

    def _task_sums(self, params, batch):
        losses = self._model.apply({"params": params}, batch.tokens)
        assert isinstance(losses, jax.Array)
        positions = jnp.arange(batch.tokens.shape[1])[None, :]
        sums = jnp.sum(jnp.where(positions < batch.lengths[:, None], losses, 0), axis=1)
        return jax.ops.segment_sum(sums, batch.tasks, self.corpus.num_tasks)


def _put(array: np.ndarray, where: NamedSharding) -> jax.Array:
    """What all processes have, on the devices.

    ``jax.device_put`` would first compare it between the processes. Batches are made in a thread,
    and these messages would come between those of the training step, elsewhere in each process.
    """
    return jax.make_array_from_callback(array.shape, where, lambda index: array[index])


def _check_batch(batch_size: int, microbatches: int, num_tasks: int, data_size: int) -> None:
    checks.integer("batch_size", batch_size)
    checks.integer("microbatches", microbatches)
    if batch_size < num_tasks:
        raise ValueError(
            f"batch_size must be at least {num_tasks}, a row of each task, but it is {batch_size}."
        )
    if batch_size % (microbatches * data_size):
        raise ValueError(
            f"batch_size must be a multiple of microbatches × the mesh's data axis, "
            f"{microbatches} × {data_size}, but it is {batch_size}."
        )
