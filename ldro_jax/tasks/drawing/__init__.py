"""Which rows a step gets: everything that decides it is in this package.

A batch is drawn in two steps. A :class:`Drawer` chooses the tasks of its rows and numbers them, so
that a row is known as "the 17th that the run draws of task 3". A
:class:`~ldro_jax.tasks.source.Source` turns that number into the row: for data in memory by
:class:`Orders`, a fresh random order in each epoch; for a stream by reading on.

:mod:`~ldro_jax.tasks.drawing.drawer` draws on the host, one batch at a time, from a few numbers
that are saved with a checkpoint. :mod:`~ldro_jax.tasks.drawing.on_device` draws the batches of many
steps inside a compiled program, as a function of key and step alone, and looks the orders up there.
:mod:`~ldro_jax.tasks.drawing.shares` makes probabilities of weights.

Grain's mixtures don't serve here. Their proportions are fixed when they are made, which task comes
next is a function of the position and of the proportions, and with others from some position on
``MapDataset.mix`` skips some rows and gives others twice; here the probabilities follow the
weights. What Grain is good at, reading streams and saving where it is in them, is below a
``Source``.
"""

from ldro_jax.tasks.drawing.drawer import Draw, Drawer, numbered, rows_by_task
from ldro_jax.tasks.drawing.on_device import places, stretch
from ldro_jax.tasks.drawing.orders import Orders
from ldro_jax.tasks.drawing.shares import probabilities, probabilities_of_weights

# The samplers of a trainer's batches. By probabilities rows are drawn if a method asks for it.
SAMPLERS = ("balanced", "uniform")

__all__ = [
    "SAMPLERS",
    "Draw",
    "Drawer",
    "Orders",
    "numbered",
    "places",
    "probabilities",
    "probabilities_of_weights",
    "rows_by_task",
    "stretch",
]
