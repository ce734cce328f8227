"""Several processes that train together: one of them writes what there is one of."""

import jax
from jax.experimental import multihost_utils


def is_first() -> bool:
    """Whether this process writes records and reports; the only one of an ordinary run does."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Waits until all processes are here; returns at once in an ordinary run.

    Args:
      name: of the place, the same in all processes.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
