"""Where numbers were made: the packages and the devices."""

import importlib.metadata
import os
from typing import Any

import jax


def versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on.

    Returns:
      Versions by package name; packages that aren't installed are left out.
    """
    found = {}
    for package in ("ldro-jax", "jax", "jaxlib", "flax", "optax", "numpy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def device() -> dict[str, Any]:
    """What the numbers were computed on.

    Returns:
      Platform, kind and count of the devices, and the number of processor cores.
    """
    first = jax.devices()[0]
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": jax.device_count(),
        "cpu_cores": os.cpu_count(),
    }
