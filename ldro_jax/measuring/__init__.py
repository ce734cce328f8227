"""How a step measures losses, gradient and interaction.

:class:`Plan` decides which way a step goes, and :func:`measure` goes it, for the transformation
that is chained before an optimizer and for both trainers. What a problem is to it, is a
:class:`Batch` of rows and a function that says of rows :class:`RowLosses`.
"""

from ldro_jax.measuring.batch import Batch, Grouped, LossesOf, RowLosses
from ldro_jax.measuring.measure import Measurement, measure
from ldro_jax.measuring.plan import Plan, Way

__all__ = ["Batch", "Grouped", "LossesOf", "Measurement", "Plan", "RowLosses", "Way", "measure"]
