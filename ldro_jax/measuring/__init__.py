"""How a step measures losses, gradient and interaction.

:class:`Plan` decides which way a step goes and :func:`measure` goes that way, for the
transformation that is chained before an optimizer and for both trainers. A problem enters as a
:class:`Batch` of rows and a function from parameters and rows to their :class:`RowLosses`.
"""

from ldro_jax.measuring.batch import Batch, Grouped, LossesOf, RowLosses
from ldro_jax.measuring.measure import Measurement, measure
from ldro_jax.measuring.plan import Plan, Way

__all__ = ["Batch", "Grouped", "LossesOf", "Measurement", "Plan", "RowLosses", "Way", "measure"]
