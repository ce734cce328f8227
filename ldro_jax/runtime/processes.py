"""Several processes that train together; the first of them writes records and reports."""

import os

import jax
import numpy as np
from jax.experimental import multihost_utils


def join() -> None:
    """Joins the other processes; before anything is computed.

    On a TPU pod slice and under Slurm JAX finds them. Elsewhere ``JAX_COORDINATOR_ADDRESS`` (host
    and port of the first one), ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID`` (from 0) tell.

    Raises:
      ValueError: if the processes aren't known.
      RuntimeError: if they don't come.
    """
    try:
        # JAX itself reads the address alone.
        jax.distributed.initialize(
            num_processes=_number("JAX_NUM_PROCESSES"), process_id=_number("JAX_PROCESS_ID")
        )
    except ValueError as error:
        raise ValueError(
            f"The processes that train together aren't known ({str(error).rstrip('.')}). Set "
            "JAX_COORDINATOR_ADDRESS=HOST:PORT, where the first one is, JAX_NUM_PROCESSES, and "
            "JAX_PROCESS_ID, from 0, in each."
        ) from error


def _number(variable: str) -> int | None:
    value = os.environ.get(variable)
    try:
        return int(value) if value else None
    except ValueError as error:
        raise ValueError(f"{variable} is {value!r}, not a number") from error


def is_first() -> bool:
    """Whether this process writes records and reports; the only one of an ordinary run does."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Waits until all processes are at the place of this name; not at all if there is one."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def all_agree(condition: bool) -> bool:
    """Whether a condition holds in all processes; each of them gets the same answer."""
    if jax.process_count() == 1:
        return condition
    return bool(multihost_utils.process_allgather(np.array(condition)).all())
