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
from t5x import utils

from ldro_jax import transform
from ldro_jax.t5x import checkpoints, drawing, macros, objectives, tasks
from ldro_jax.t5x.names import MC4_MIXTURE, TEXT_MIXTURE
from ldro_jax.tasks import mc4, text, text_files

# Rows of a task that are read at a time, whatever the batch size: a run may go on with another.
_READ = 32


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
    return tuple(task.name for task in _tasks(mixture_or_task_name, module))


def num_tasks(mixture_or_task_name: Any, module: str | None = None) -> int:
    """Number of tasks of a mixture, N; see :func:`task_names`."""
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
    sampling: str = "uniform",
    temperature: float = 1.0,
    weighting: transform.Weighted | None = None,
) -> drawing.DrawnRows:
    """Task-balanced batches; for ``train.get_dataset_fn``.

    T5X calls it before it restores a checkpoint, so that this is where a run that can't go on with
    these tasks in ``model_dir`` is refused. The arguments before ``model_dir`` are those of T5X's
    ``utils.GetDatasetCallable``; gin binds the others.

    Args:
      cfg: T5X's.
      shard_id: which of the shards of the data to read.
      num_shards: number of shards.
      feature_converter_cls: the model's.
      num_epochs: how often to repeat each task; without end if not given.
      continue_from_last_checkpoint: T5X's own functions refuse it too.
      model_dir: the run's.
      read_checkpoint: whether to read its newest checkpoint in full, to say what to do if it is
        damaged. It is then read twice; without, T5X's own errors have to do.
      sampling: which rows a batch has. "uniform": the tasks in turn. "rates": random tasks, with
        the rates of the mixture. "weights": random tasks, with the task weights; these are looked
        up whenever T5X writes a summary, so that ``stats_period`` is part of what a run computes.
        A task counts in the gradient by its weight whatever its rate, since its rows are counted
        relative to those expected.
      temperature: T, tasks are drawn with ``rate ** (1 / T)``, relative to their sum, for "rates".
      weighting: the run's, for "rates" and "weights": a static method has its weights from the
        first batch on, and one that uses the interaction has it measured on as many rows again,
        drawn for it when it is due, all tasks in turn.

    Returns:
      Batches of ``cfg.batch_size / num_shards`` rows, row r of task ``r mod N`` if N divides them
      and sampling is "uniform", with the mark of each row, int32, besides
      (:mod:`ldro_jax.t5x.tasks`).

    Raises:
      ValueError: if the batch can't be drawn so, or the run was begun with other tasks or without
        L-DRO, or its newest checkpoint is damaged, or a macro in gin looks mistyped.
    """
    macros.refuse_mistyped()
    parts = _tasks(cfg.mixture_or_task_name, cfg.module)
    names = [task.name for task in parts]
    drawer = drawing.first_drawer(
        cfg, parts, num_shards, sampling=sampling, temperature=temperature, weighting=weighting
    )
    tasks.check_names(model_dir, names)
    checkpoints.check_newest(model_dir, len(parts), read=read_checkpoint)

    def of_task(task):
        # What doesn't fill a last read of a finite number of rows is left out.
        size = num_shards * (_READ if num_epochs is None else 1)
        own = dataclasses.replace(cfg, batch_size=size, mixture_or_task_name=task)
        options = (feature_converter_cls, num_epochs, continue_from_last_checkpoint)
        return utils.get_dataset(own, shard_id, num_shards, *options)

    return drawing.DrawnRows(
        [of_task(task) for task in parts],
        names,
        drawer,
        shard=shard_id,
        num_shards=num_shards,
        follows_weights=sampling == "weights",
        interval=None if sampling == "uniform" else weighting.interval,
    )


def text_mixture(
    data_dir: str,
    *,
    vocabulary: seqio.Vocabulary,
    languages: Sequence[str] | None = None,
    objective: str = "lm",
    exponent: float = 0.0,
) -> str:
    """Registers the languages of a text directory as seqio tasks, and a mixture of them.

    Args:
      data_dir: holds ``<language>/{train,validation}.txt[.gz]``, see :mod:`ldro_jax.tasks.text`.
      vocabulary: of the model.
      languages: which ones; by default all of them.
      objective: ``"lm"``, ``"prefix_lm"`` or ``"span_corruption"``, see
        :mod:`ldro_jax.t5x.objectives`.
      exponent: α, for static mixing with T5X's own ``get_dataset``: tokens of a language are drawn
        in proportion to the size of its text in bytes to the power of α. Without effect on
        :func:`get_dataset`.

    Returns:
      The name of the mixture, for ``MIXTURE_OR_TASK_NAME``.

    Raises:
      FileNotFoundError: if a language or one of its files is not there.
      ValueError: if a file isn't UTF-8, or the objective is unknown.
    """
    rates = {}
    for language in languages or text_files.languages(data_dir):
        files = [text_files.find(data_dir, language, split) for split in ("validation", "train")]
        _, size = (_size(file, file.stat().st_mtime_ns, file.stat().st_size) for file in files)
        lines = text.seqio_task(data_dir, language, vocabulary)
        # seqio draws rows. They are full, so that rates of rows are rates of tokens.
        rates[objectives.task(lines, objective, [perplexity])] = float(size) ** exponent
    return _register(TEXT_MIXTURE, rates)


def mc4_mixture(
    *,
    vocabulary: seqio.Vocabulary,
    languages: Sequence[str] | None = None,
    objective: str = "lm",
) -> str:
    """Registers languages of mC4 as seqio tasks, and a mixture of them with equal rates.

    Args:
      vocabulary: of the model.
      languages: which ones; by default the 39 of XTREME that mC4 has.
      objective: as for :func:`text_mixture`.

    Returns:
      The name of the mixture, for ``MIXTURE_OR_TASK_NAME``.

    Raises:
      FileNotFoundError: if the data set is not there.
      ValueError: if a language is unknown, or absent from mC4, or the objective is unknown.
    """
    names = languages or [name for name in mc4.LANGUAGES if name not in mc4.ABSENT]
    of_lines = [mc4.seqio_task(name, vocabulary) for name in names]
    rates = {objectives.task(lines, objective, [perplexity]): 1.0 for lines in of_lines}
    return _register(MC4_MIXTURE, rates)


def perplexity(targets: Sequence[int], scores: Sequence[float]) -> dict[str, float]:
    """The metric of ``t5x.main --run_mode=eval``.

    Args:
      targets: number of tokens of each row.
      scores: log-likelihood of each row, in nats.

    Returns:
      ``perplexity`` and ``nats_per_token``, over all tokens.

    Raises:
      ValueError: if there are none.
    """
    tokens = sum(targets)
    if tokens < 1:
        raise ValueError(
            f"Expected rows with tokens to predict, but the {len(targets)} rows have {tokens}. "
            "Evaluate another split, or leave the task out."
        )
    loss = -float(np.sum(scores, dtype=np.float64)) / tokens
    return {"perplexity": float(np.exp(loss)), "nats_per_token": loss}


@functools.cache
def _size(file: pathlib.Path, *version: int) -> int:
    """Bytes of text in a file; read once, though gin calls anew for each use of a macro."""
    del version
    # Both files are read: TensorFlow would take text that isn't UTF-8.
    return sum(len(line.encode()) for line in text_files.read_lines(file))


def _register(mixture_name: str, rates: dict[seqio.Task, float]) -> str:
    # gin calls anew for each use of a macro; what an earlier call registered is replaced.
    mixture = seqio.Mixture(mixture_name, list(rates.items()))
    providers = [(seqio.TaskRegistry, task) for task in rates]
    for registry, provider in [*providers, (seqio.MixtureRegistry, mixture)]:
        if provider.name in registry.names():
            registry.remove(provider.name)
        registry.add_provider(provider.name, provider)
    return mixture_name


def _tasks(mixture_or_task: Any, module: str | None) -> list[seqio.Task]:
    if module:
        utils.import_module(module)
    if isinstance(mixture_or_task, str):
        mixture_or_task = seqio.get_mixture_or_task(mixture_or_task)
    return seqio.get_subtasks(mixture_or_task)
