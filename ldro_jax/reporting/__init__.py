"""Records of experiments, and tables, figures and reports made from them."""

from ldro_jax.records.results import (
    Evaluation,
    Results,
    ResultsError,
    Run,
    Series,
    load_results,
    run_from_record,
    run_to_record,
    save_results,
    summarise_evaluation,
)
from ldro_jax.reporting.comparison import Row, headline_rows, step_seconds, task_order, verdict
from ldro_jax.reporting.findings import headline_words
from ldro_jax.reporting.relative import (
    relative_record,
    table1_html,
    table1_text,
    table1_words,
)
from ldro_jax.reporting.report import write_report
from ldro_jax.reporting.summary import (
    Difference,
    Group,
    Spread,
    default_baseline,
    final_evaluation,
    final_values,
    group_runs,
    mean_spread,
    paired_difference,
    progress_split,
    report_split,
    select_best,
)
from ldro_jax.reporting.tables import (
    comparison_html,
    headline_html,
    headline_text,
    task_table_html,
)

__all__ = [
    "Difference",
    "Evaluation",
    "Group",
    "Results",
    "ResultsError",
    "Row",
    "Run",
    "Series",
    "Spread",
    "comparison_html",
    "default_baseline",
    "final_evaluation",
    "final_values",
    "group_runs",
    "headline_html",
    "headline_rows",
    "headline_text",
    "headline_words",
    "load_results",
    "mean_spread",
    "paired_difference",
    "progress_split",
    "relative_record",
    "report_split",
    "run_from_record",
    "run_to_record",
    "save_results",
    "select_best",
    "step_seconds",
    "summarise_evaluation",
    "table1_html",
    "table1_text",
    "table1_words",
    "task_order",
    "task_table_html",
    "verdict",
    "write_report",
]
