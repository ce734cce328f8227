"""TensorBoard scalars, where clu and TensorFlow are installed."""

import functools
import os
import pathlib
from collections.abc import Mapping

from absl import logging


class NullWriter:
    """Writes nothing; stands in where TensorBoard events can't be written."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Drops the scalars."""
        del step, scalars

    def flush(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def tensorboard_writer(directory: pathlib.Path):
    """A writer of TensorBoard events.

    Args:
      directory: where the event files go.

    Returns:
      A ``clu.metric_writers.SummaryWriter``, or a :class:`NullWriter` if clu or TensorFlow, which
      it writes with, is not installed; the log says so once.
    """
    summary_writer = _summary_writer()
    return summary_writer(str(directory)) if summary_writer else NullWriter()


@functools.cache
def _summary_writer():
    # TensorFlow reports on its search for GPUs; jaxlib has read this variable by now.
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    try:
        import tensorflow as tf
        from clu.metric_writers.summary_writer import SummaryWriter
    except ImportError as error:
        logging.warning(
            "No TensorBoard events are written (%s). To have them: pip install 'ldro-jax[vision]'.",
            error,
        )
        return None
    # Otherwise TensorFlow takes all memory of a GPU, or complains that it finds none.
    tf.config.set_visible_devices([], "GPU")
    return SummaryWriter
