"""What T5X has written of a run into ``MODEL_DIR``, read without T5X."""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from ldro_jax.runtime import paths
from ldro_jax.t5x import gin_text, run_file
from ldro_jax.t5x.names import NATS

WHOLE = "the whole split"


@dataclasses.dataclass(frozen=True)
class Summaries:
    """A run, as it has been written down.

    Attributes:
      model_dir: the run's.
      losses: by the name of what was evaluated and by step, nats a token without z-loss.
      train: scalars of training by tag and step.
      config: the configuration; empty without a ``config.gin``.
      config_text: of the ``config.gin``.
      file: what the run wrote of its evaluation and its machines; None for T5X's own trainer.
      tasks: the names of the tasks in order, if a run with L-DRO has saved them.
    """

    model_dir: str
    losses: Mapping[str, Mapping[int, float]]
    train: Mapping[str, Mapping[int, float]]
    config: gin_text.Config
    config_text: str
    file: run_file.RunFile | None
    tasks: list[str] | None

    @property
    def split(self) -> str:
        """The split that was evaluated, as it is bound."""
        return str(self.config.value("DatasetConfig", "split", "train_eval") or "validation")

    @property
    def coverage(self) -> str:
        """How much of the split was evaluated."""
        if not self.config.bindings:
            return "unknown, without a config.gin"
        steps = self.config.value("train", "eval_steps")
        function = self.config.value("train", "train_eval_get_dataset_fn")
        batch = self.config.value("DatasetConfig", "batch_size", "train_eval")
        size = f"{steps} batches" + (f" of {batch} rows" if batch else "")
        if getattr(function, "name", "").split(".")[-1] != "get_datasets":
            return f"{size} of each task, rows again and again where it has fewer"
        if steps is None or self._is_known_whole(steps):
            return WHOLE
        return f"at most {size} of each task"

    def _is_known_whole(self, steps: int) -> bool:
        if self.file is None:
            return False
        if self.file.whole is not None:
            return self.file.whole
        # An older version did not write it down.
        return max(self.file.batches.values()) < steps

    @property
    def seed(self) -> int | None:
        """The ``random_seed`` of the run; None where it isn't known, or another at every start."""
        seed = self.config.value("train", "random_seed")
        return seed if isinstance(seed, int) else None

    def has_checkpoint(self, step: int) -> bool:
        """Whether the checkpoint of a step is there."""
        return (paths.make(self.model_dir) / f"checkpoint_{step}").exists()

    @property
    def parameters(self) -> int | None:
        """Number of parameters of the model, if T5X has written it down."""
        file = paths.make(self.model_dir) / "model-info.txt"
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        match = re.search(r"Total number of parameters: (\d+)", text)
        return int(match[1]) if match else None


def read(model_dir: str) -> Summaries:
    """Reads a run from its ``MODEL_DIR``.

    Raises:
      FileNotFoundError: if there are no evaluations.
      ImportError: if TensorFlow or gin is not installed.
      ValueError: if a file has something else in it.
    """
    losses = _losses(model_dir)
    text, config = gin_text.read(model_dir)
    train, file = scalars(f"{model_dir}/train"), run_file.read(model_dir)
    tasks = run_file.read_tasks(model_dir)
    return Summaries(model_dir, losses, train, config, text, file, tasks)


def scalars(folder: str) -> Mapping[str, dict[int, float]]:
    """Values by tag and step in the event files of a directory; of two of a step the latest.

    Raises ``ImportError`` if TensorFlow is not installed.
    """
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ImportError(
            "T5X's summaries are read with TensorFlow, which can't be imported "
            f"({error}). Install it with: pip install 'ldro-jax[lm]'."
        ) from error
    events = [
        event
        for file in tf.io.gfile.glob(f"{folder}/events.out.tfevents.*")
        for event in tf.compat.v1.train.summary_iterator(file)
    ]
    written: Any = collections.defaultdict(dict)
    for event in sorted(events, key=lambda event: event.wall_time):
        for value in event.summary.value:
            if value.HasField("tensor"):
                number = tf.make_ndarray(value.tensor)
                if number.dtype.kind in "fiu" and number.ndim == 0:
                    written[value.tag][event.step] = float(number)
    return written


def _losses(model_dir: str) -> dict[str, dict[int, float]]:
    folder = paths.make(model_dir) / "training_eval"
    losses = {}
    for name in sorted(path.name for path in folder.iterdir()) if folder.exists() else []:
        written = scalars(f"{folder}/{name}")
        # T5X's own trainer gives a mean over padding as well.
        per_place = written.get("cross_ent_loss_per_all_target_tokens", {})
        counted = written.get("non_padding_fraction/loss_weights", {})
        own = {
            step: value / counted[step] if counted[step] > 0 else math.nan
            for step, value in per_place.items()
            if step in counted
        }
        losses[name] = {**own, **written.get(NATS, {})}
    if not any(losses.values()):
        raise FileNotFoundError(
            f"Expected the evaluations of a T5X run in {folder}, in a directory for each task; "
            "found none. Set train_eval_dataset_cfg and eval_period in the gin file of the run."
        )
    return losses
