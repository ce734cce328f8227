"""Figures of a saved record; each function returns a matplotlib figure and leaves none open."""

from ldro_jax.reporting.plots.balance import average_vs_worst, step_time, task_values
from ldro_jax.reporting.plots.interaction import interaction_matrix
from ldro_jax.reporting.plots.pareto import pareto_frontiers, worst_over_time
from ldro_jax.reporting.plots.relative import relative_by_task
from ldro_jax.reporting.plots.style import available
from ldro_jax.reporting.plots.toy import trajectories
from ldro_jax.reporting.plots.training import metric_over_steps, weights_over_time

__all__ = [
    "available",
    "average_vs_worst",
    "interaction_matrix",
    "metric_over_steps",
    "pareto_frontiers",
    "relative_by_task",
    "step_time",
    "task_values",
    "trajectories",
    "weights_over_time",
    "worst_over_time",
]
