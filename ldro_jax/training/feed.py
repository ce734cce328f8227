"""The batches of a run: rows from the host, put on a mesh of devices."""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ldro_jax import weighting
from ldro_jax.measuring import Batch
from ldro_jax.runtime import checks
from ldro_jax.tasks import drawing
from ldro_jax.tasks.source import Source
from ldro_jax.training.method import Method

if TYPE_CHECKING:
    from ldro_jax.training.meshed import MeshedEngine


class Feed:
    """Draws and places the batches of one method.

    The interaction is measured on ``rows_apart`` rows of each task, if they are drawn apart. Raises
    ``ValueError`` if such batches can't be drawn.
    """

    def __init__(self, engine: "MeshedEngine", method: Method, rows_apart: int | None) -> None:
        problem, batches, mesh = engine.problem, engine.batches, engine.mesh
        self._problem, self._batches, self._method = problem, batches, method
        self._owned = problem.labels is None
        # Filled up, so that every device holds as many and each process reads its own.
        multiple = mesh.shape["data"] * len(problem.tables or [0])
        self._measured_rows = -(-problem.num_tables * (rows_apart or 0) // multiple) * multiple
        self._measured: Any = None
        self._devices: np.ndarray = mesh.devices
        self._over_data = NamedSharding(mesh, PartitionSpec("data"))
        self._everywhere = NamedSharding(mesh, PartitionSpec())
        self._row_shapes = engine.row
        on_device = problem.on_device
        self._drawer = drawing.Drawer(
            batches.sampler,
            batches.size,
            np.zeros(problem.num_tables, np.int64),
            sizes=None if on_device is None else np.asarray(on_device.sizes),
        )

    def drawer(self, method: Method, seed: int) -> drawing.Drawer:
        """What draws the first batch of a run, by its first weights if the method asks for that."""
        drawer = dataclasses.replace(self._drawer, seed=seed)
        if method.sampling != "weights":
            return drawer
        first = weighting.first_weights(method.wrapped(), self._problem.num_tasks)
        return dataclasses.replace(drawer, sampler="probabilities").following(first)

    def batch(self, source: Source, drawer: drawing.Drawer) -> tuple[Batch, drawing.Drawer]:
        """The next batch on the devices, and what draws the one after it.

        Each process reads the rows of its devices alone.
        """
        draw, after = drawer.next()
        measured = by_task = None
        if self._measured_rows:
            # These don't count as drawn.
            if drawer.step % self._method.interval == 0:
                ahead = after.ahead(self._measured_rows)
                self._measured = self._place(source, ahead)
            elif self._measured is None:
                # Not looked at, and a stream that was resumed must give no rows for it.
                self._measured = jax.tree.map(
                    lambda x: _put(np.zeros(x.shape, x.dtype), x.sharding),
                    self.abstract_batch().measured,
                )
            measured = self._measured
        elif self._has_turns:
            by_task = drawing.rows_by_task(draw.tasks, self._problem.num_tasks)
            by_task = _put(by_task, self._everywhere)
        batch = Batch(
            rows=self._place(source, draw),
            tasks=_put(draw.tasks, self._over_data),
            expected=self._expected(drawer, draw),
            measured=measured,
            by_task=by_task,
        )
        return batch, after

    def _expected(self, drawer: drawing.Drawer, draw: drawing.Draw) -> Any:
        expected = self._problem.labelled(drawer.expected(draw.tasks))
        return None if expected is None else _put(expected, self._everywhere)

    @property
    def _has_turns(self) -> bool:
        """Whether some tasks have a row more than others in a batch that serves for the matrix."""
        uneven = self._batches.size % self._problem.num_tasks > 0
        serves = self._method.uses_interaction and not self._measured_rows
        return self._owned and uneven and serves

    @property
    def spans_processes(self) -> bool:
        """Whether devices of several processes need the same rows."""
        return any(len({d.process_index for d in row}) > 1 for row in self._devices)

    def check_source(self, source: Source) -> None:
        """Refuses a stream where devices of several processes need the same rows."""
        if source.has_state and self.spans_processes:
            raise ValueError(
                "Layout.model must divide the number of devices of each process, "
                f"{jax.local_device_count()}, where rows come from a stream, since each process "
                f"reads other rows, but it is {self._devices.shape[1]}."
            )

    def _place(self, source, draw):
        parts: dict[tuple, list[np.ndarray]] = {}
        size = self._problem.in_each_table(draw.tasks.size)

        def leaves(index):
            # Devices that hold the same rows must get the same rows.
            start, stop, _ = index[0].indices(size)
            if (start, stop) not in parts:
                of_all = slice(*(x * draw.tasks.size // size for x in (start, stop)))
                rows = source.rows(draw.tasks[of_all], draw.indices[of_all])
                parts[start, stop] = _leaves(rows, self._row_shapes, stop - start)
            return parts[start, stop]

        shapes, structure = jax.tree.flatten(self._row_shapes)
        placed = [
            jax.make_array_from_callback(
                (size, *shape.shape), self._over_data, lambda index, i=i: leaves(index)[i]
            )
            for i, shape in enumerate(shapes)
        ]
        return jax.tree.unflatten(structure, placed)

    def abstract_batch(self) -> Batch:
        """A batch of ``jax.ShapeDtypeStruct``."""
        num_tasks, size = self._problem.num_tasks, self._batches.size

        def shaped(shape, dtype, where) -> Any:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

        def rows(count):
            count = self._problem.in_each_table(count)
            return jax.tree.map(
                lambda x: shaped((count, *x.shape), x.dtype, self._over_data), self._row_shapes
            )

        measured = by_task = expected = None
        if self._problem.labelled(np.zeros(self._problem.num_tables)) is not None:
            expected = shaped((num_tasks,), jnp.float32, self._everywhere)
        if self._measured_rows:
            measured = rows(self._measured_rows)
        elif self._has_turns:
            by_task = shaped((num_tasks, -(-size // num_tasks)), jnp.int32, self._everywhere)
        return Batch(
            rows=rows(size),
            tasks=shaped((size,), jnp.int32, self._over_data),
            expected=expected,
            measured=measured,
            by_task=by_task,
        )


def _leaves(rows: Any, expected: Any, size: int) -> list[np.ndarray]:
    """The arrays of ``size`` rows, checked, since they are told apart by their order alone."""
    named, structure = jax.tree_util.tree_flatten_with_path(rows)
    if structure != jax.tree.structure(expected):
        ours, theirs = (
            [f"rows{jax.tree_util.keystr(path)}" for path, _ in leaves]
            for leaves in (jax.tree_util.tree_leaves_with_path(expected), named)
        )
        raise ValueError(
            f"source must give rows of the same parts each time, {', '.join(ours)}, but it gave "
            f"{', '.join(theirs) or checks.shown(rows)}."
        )
    for (path, array), like in zip(named, jax.tree.leaves(expected), strict=True):
        name = f"rows{jax.tree_util.keystr(path)}"
        checks.on_device("source", name, array)
        shape, dtype = np.shape(array), getattr(array, "dtype", type(array).__name__)
        if (shape, dtype) != ((size, *like.shape), like.dtype):
            raise ValueError(
                f"source must give {name} as an array {[size, *like.shape]} of {like.dtype} for "
                f"{size} rows, but it gave {list(shape)} of {dtype}."
            )
    return [array for _, array in named]


def _put(array: np.ndarray, where: NamedSharding) -> jax.Array:
    """What all processes have, on the devices.

    ``jax.device_put`` would first compare it between the processes. Batches are made in a thread,
    and these messages would come between those of the training step, elsewhere in each process.
    """
    return jax.make_array_from_callback(array.shape, where, lambda index: array[index])
