"""Where the parameters and batches of a model lie on a mesh of devices.

Parameters have logical axes (:mod:`ldro_jax.models.decoder`). :class:`Layout` maps them to the two
axes of a mesh: batches are split along ``data``, wide layers along ``model``, and on request
parameters and optimizer state along ``data`` as well (fully sharded data parallel).
"""

# ruff: noqa: E402
from ldro_jax.runtime import extras

# Before what needs it is imported.
extras.need("flax")

import dataclasses
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.core import meta
from flax.linen import spmd
from jax.sharding import Mesh

from ldro_jax.runtime import checks


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a model is spread over the devices.

    Attributes:
      data: number of parts that batches are split into; by default as many as there are devices.
      model: number of parts that attention heads, MLPs and the vocabulary are split into.
      fully_sharded: split parameters and optimizer state over the data axis as well.

    Raises:
      ValueError: if a number of parts isn't a positive integer.
    """

    data: int | None = None
    model: int = 1
    fully_sharded: bool = False

    def __post_init__(self) -> None:
        if self.data is not None:
            checks.integer("data", self.data)
        checks.integer("model", self.model)
        checks.flag("fully_sharded", self.fully_sharded)

    def mesh(self) -> Mesh:
        """The mesh of the first ``data × model`` devices, with these axes.

        Raises:
          ValueError: if there are fewer devices.
        """
        available = jax.device_count()
        data = max(available // self.model, 1) if self.data is None else self.data
        if data * self.model > available:
            raise ValueError(
                f"layout asks for a mesh of {data} × {self.model} devices (data × model), but "
                f"there are {available}. Set Layout.data and Layout.model so that their product "
                "is at most that."
            )
        if jax.process_count() > 1 and data * self.model < available:
            raise ValueError(
                f"layout must hold all {available} devices of several processes, but its mesh has "
                f"{data} × {self.model} (data × model)."
            )
        devices = np.asarray(jax.devices()[: data * self.model]).reshape(data, self.model)
        return Mesh(devices, ("data", "model"))

    def rules(self) -> list[tuple[str, str | None]]:
        """Pairs of a logical axis and the mesh axis it lies on, ``None`` where it isn't split."""
        return [
            ("vocab", "model"),
            ("heads", "model"),
            ("mlp", "model"),
            ("embed", "data" if self.fully_sharded else None),
            ("head_dim", None),
            ("layers", None),
            ("norm", None),
            ("position", None),
        ]


def shardings(boxed: Any, mesh: Mesh, rules: list[tuple[str, str | None]]) -> Any:
    """The ``NamedSharding`` of each array of a training state.

    Args:
      boxed: shapes, boxed by Flax where they have logical axes.
      mesh: the devices.
      rules: see :meth:`Layout.rules`.

    Raises:
      ValueError: if a parameter can't be split evenly.
    """
    split = spmd.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, rules)
    leaves = jax.tree_util.tree_leaves_with_path(meta.unbox(boxed))
    for (path, leaf), sharding in zip(leaves, jax.tree.leaves(split), strict=True):
        for size, axis in zip(leaf.shape, sharding.spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                raise ValueError(
                    f"layout can't be used: the parameter {jax.tree_util.keystr(path)} has the "
                    f"shape {leaf.shape}, whose axis of size {size} can't be split evenly over the "
                    f"{mesh.shape[axis]} devices of the mesh axis {axis!r}. Choose another mesh or "
                    "other model sizes."
                )
    return split
