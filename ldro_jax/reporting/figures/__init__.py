"""The figures of a report, and those of one axes as functions of what ``compare`` returns.

Each takes a record, or a ``Comparison``, which may have another baseline or every setting, and the
matplotlib axes to draw on; it returns them. Without axes it makes a figure of its own, with the
legend above: ``step_time(results).figure.savefig("step_time.png")``.
"""

from ldro_jax.reporting.figures.balance import average_vs_worst, ranking, step_time, task_values
from ldro_jax.reporting.figures.training import metric_over_steps

__all__ = ["average_vs_worst", "metric_over_steps", "ranking", "step_time", "task_values"]
