"""Batches for T5X that hold every task: row r belongs to task ``r mod N``.

A seqio mixture mixes first and packs afterwards, so that one row holds several tasks. Here each
task of the mixture is packed for itself, and the rows are interleaved. They stay interleaved when
the batches of several hosts are put side by side.
"""

import ldro_jax.t5x.installed  # noqa: F401

# isort: split
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
from t5x import utils

from ldro_jax.t5x import checkpoints, tasks
from ldro_jax.t5x.names import MC4_MIXTURE, TEXT_MIXTURE
from ldro_jax.tasks import mc4, text, text_files


def task_names(mixture_or_task_name: Any, module: str | None = None) -> tuple[str, ...]:
    """Names of the tasks of a mixture, in the order that weights and rows have.

    Args:
      mixture_or_task_name: a name in seqio's registry, or a seqio ``Mixture`` or ``Task``.
      module: to import first, which registers it.

    Returns:
      The names: seqio's order, by name, whatever the order they were declared in.

    Raises:
      ValueError: if nothing of that name is registered.
    """
    if module:
        utils.import_module(module)
    return tuple(task.name for task in _tasks(mixture_or_task_name))


def num_tasks(mixture_or_task_name: Any, module: str | None = None) -> int:
    """Number of tasks of a mixture.

    Args:
      mixture_or_task_name: as for :func:`task_names`.
      module: to import first.

    Returns:
      N.
    """
    return len(task_names(mixture_or_task_name, module))


def get_dataset(
    cfg: utils.DatasetConfig,
    shard_id: int,
    num_shards: int,
    feature_converter_cls: Callable[..., seqio.FeatureConverter],
    num_epochs: int | None = None,
    continue_from_last_checkpoint: bool = False,
    *,
    model_dir: str,
    read_checkpoint: bool = True,
) -> tf.data.Dataset:
    """Task-balanced batches; for ``train.get_dataset_fn``.

    T5X calls it before it restores a checkpoint, so that this is where a run that can't go on with
    these tasks in ``model_dir`` is refused.

    Args:
      cfg: T5X's; the rates of the mixture are not used.
      shard_id: which of the shards of the data to read.
      num_shards: number of shards.
      feature_converter_cls: the model's.
      num_epochs: how often to repeat each task; without end if not given.
      continue_from_last_checkpoint: T5X's own functions refuse it too.
      model_dir: the run's.
      read_checkpoint: whether to read its newest checkpoint in full, to say what to do if it is
        damaged. It is then read twice; without, T5X's own errors have to do.

    Returns:
      Batches of ``cfg.batch_size / num_shards`` rows, row r of task ``r mod N``, with the mark of
      each row, int32, besides (:mod:`ldro_jax.t5x.tasks`).

    Raises:
      ValueError: if the batch doesn't hold as many rows of every task in each shard, or the run was
        begun with other tasks or without L-DRO, or its newest checkpoint is damaged.
    """
    if cfg.module:
        utils.import_module(cfg.module)
    parts = _tasks(cfg.mixture_or_task_name)
    names = [task.name for task in parts]
    if cfg.batch_size % (len(parts) * num_shards):
        step = len(parts) * num_shards
        raise ValueError(
            f"Every shard of a batch holds as many rows of each task, so batch_size must be a "
            f"multiple of {len(parts)} tasks × {num_shards} shards of the data = {step}, but it is "
            f"{cfg.batch_size}. The next one is {-(-cfg.batch_size // step) * step}."
        )
    tasks.check_names(model_dir, names)
    checkpoints.check(model_dir, len(parts), read=read_checkpoint)
    own = dataclasses.replace(cfg, batch_size=cfg.batch_size // len(parts))
    datasets = tuple(
        utils.get_dataset(
            dataclasses.replace(own, mixture_or_task_name=task),
            shard_id,
            num_shards,
            feature_converter_cls,
            num_epochs,
            continue_from_last_checkpoint,
        )
        for task in parts
    )
    rows = cfg.batch_size // num_shards

    def interleaved(*batches):
        def join(*features):
            stacked = tf.stack(features, axis=1)
            return tf.reshape(stacked, (rows, *features[0].shape[1:]))

        joined = tf.nest.map_structure(join, *batches)
        return {**joined, tasks.MARK: tf.constant(tasks.marks(names, rows))}

    return tf.data.Dataset.zip(datasets).map(interleaved)


def text_mixture(
    data_dir: str,
    *,
    vocabulary: seqio.Vocabulary,
    languages: Sequence[str] | None = None,
    exponent: float = 0.0,
) -> str:
    """Registers the languages of a text directory as seqio tasks, and a mixture of them.

    Args:
      data_dir: holds ``<language>/{train,validation}.txt[.gz]``, see :mod:`ldro_jax.tasks.text`.
      vocabulary: of the model.
      languages: which ones; by default all of them.
      exponent: α, for static mixing with T5X's own ``get_dataset``: tokens of a language are drawn
        in proportion to the size of its text in bytes to the power of α. Without effect on
        :func:`get_dataset`.

    Returns:
      The name of the mixture, for ``MIXTURE_OR_TASK_NAME``.

    Raises:
      FileNotFoundError: if a language or one of its files is not there.
      ValueError: if a file isn't UTF-8.
    """
    rates = {}
    for language in languages or text_files.languages(data_dir):
        files = [text_files.find(data_dir, language, split) for split in ("validation", "train")]
        _, size = (_size(file, file.stat().st_mtime_ns, file.stat().st_size) for file in files)
        task = _full_rows(text.seqio_task(data_dir, language, vocabulary))
        # seqio draws rows. They are full, so that rates of rows are rates of tokens.
        rates[task] = float(size) ** exponent
    return _register(TEXT_MIXTURE, rates)


def mc4_mixture(*, vocabulary: seqio.Vocabulary, languages: Sequence[str] | None = None) -> str:
    """Registers languages of mC4 as seqio tasks, and a mixture of them with equal rates.

    Args:
      vocabulary: of the model.
      languages: which ones; by default the 39 of XTREME that mC4 has.

    Returns:
      The name of the mixture, for ``MIXTURE_OR_TASK_NAME``.

    Raises:
      FileNotFoundError: if the data set is not there.
      ValueError: if a language is unknown, or absent from mC4.
    """
    names = languages or [name for name in mc4.LANGUAGES if name not in mc4.ABSENT]
    tasks = [_full_rows(mc4.seqio_task(name, vocabulary)) for name in names]
    return _register(MC4_MIXTURE, dict.fromkeys(tasks, 1.0))


def perplexity(targets: Sequence[int], scores: Sequence[float]) -> dict[str, float]:
    """The metric of ``t5x.main --run_mode=eval``.

    Args:
      targets: number of tokens of each row.
      scores: log-likelihood of each row, in nats.

    Returns:
      ``perplexity`` and ``nats_per_token``, over all tokens.
    """
    loss = -float(np.sum(scores, dtype=np.float64)) / sum(targets)
    return {"perplexity": float(np.exp(loss)), "nats_per_token": loss}


@functools.cache
def _size(file: pathlib.Path, *version: int) -> int:
    """Bytes of text in a file; read once, though gin calls anew for each use of a macro."""
    del version
    # Both files are read: TensorFlow would take text that isn't UTF-8.
    return sum(len(line.encode()) for line in text_files.read_lines(file))


def _full_rows(task: seqio.Task) -> seqio.Task:
    """The same task with documents put one after another and cut into full rows."""

    def cut(dataset, sequence_length):
        tokens = dataset.map(lambda example: example["targets"])
        # seqio's evaluation wants a text besides.
        return tokens.rebatch(sequence_length["targets"]).map(
            lambda row: {"targets": row, "targets_pretokenized": ""}
        )

    def count(output, example, is_target=False):
        return example["targets"].size if is_target else output

    return seqio.Task(
        task.name,
        source=task.source,
        preprocessors=[*task.preprocessors, cut],
        output_features=task.output_features,
        postprocess_fn=count,
        metric_fns=[perplexity],
    )


def _register(name: str, rates: dict[seqio.Task, float]) -> str:
    # gin calls anew for each use of a macro; what an earlier call registered is replaced.
    mixture = seqio.Mixture(name, list(rates.items()))
    for registry, provider in [
        *((seqio.TaskRegistry, task) for task in rates),
        (seqio.MixtureRegistry, mixture),
    ]:
        if provider.name in registry.names():
            registry.remove(provider.name)
        registry.add_provider(provider.name, provider)
    return name


def _tasks(mixture_or_task: Any) -> list[seqio.Task]:
    if isinstance(mixture_or_task, str):
        mixture_or_task = seqio.get_mixture_or_task(mixture_or_task)
    return seqio.get_subtasks(mixture_or_task)
