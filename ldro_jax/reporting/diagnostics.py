"""How the tasks got along in training, method by method."""

import math

import numpy as np
from scipy import stats

from ldro_jax.records.results import Run
from ldro_jax.reporting import statistics
from ldro_jax.reporting.comparison import Comparison
from ldro_jax.reporting.tables import Table
from ldro_jax.transform.diagnostics import NAMES

_HEADER = ("method", "pairs in conflict", "mean cosine", "noise", "tasks in effect", "predicted")
CAPTION = (
    "Means over evaluations and seeds. Pairs in conflict: a step for one task raises the other's "
    "loss. Noise: how much of a minibatch's squared gradient is noise, where it is measured. Tasks "
    "in effect: how many tasks of even weight have the entropy of the weights. Predicted: the rank "
    "correlation, over the tasks, of how the training losses were to fall to first order (A w) and "
    "how they fell from one evaluation to the next; near 1 the lookahead sees what comes, near 0 "
    "it doesn't."
)


def predicted(run: Run) -> float:
    """How well ``A w`` ranks the tasks by the falls of their losses; NaN if little was measured.

    A loss is the mean of a stretch, so between two of them lie halves of both stretches.
    """
    if run.descent is None or run.losses is None or len(run.descent.steps) < 4:
        return math.nan
    common = np.isin(run.losses.steps, run.descent.steps)
    losses, sums, steps = run.losses.values[common], run.descent.values, run.descent.steps
    rates = np.diff(sums, axis=0) / np.diff(steps)[:, None]
    expected, happened = (rates[:-1] + rates[1:]) / 2, -np.diff(losses[1:], axis=0)
    pairs = np.stack([expected, happened])
    pairs = pairs[:, np.isfinite(pairs).all(axis=(0, 2))]
    if len(losses[0]) < 3 or not pairs.size:
        return math.nan
    # All at once: there may be hundreds of evaluations.
    ranks = stats.rankdata(pairs, axis=2)
    ranks -= ranks.mean(axis=2, keepdims=True)
    lengths = np.linalg.norm(ranks, axis=2)
    differ = (lengths > 0).all(axis=0)
    return _mean((ranks[0] * ranks[1]).sum(axis=1)[differ] / lengths.prod(axis=0)[differ])


def table(comparison: Comparison) -> Table | None:
    """A row for each method that measured something; None if no method did."""
    rows = []
    for setting in comparison.shown:
        logged = [run.diagnostics.values for run in setting.runs if run.diagnostics is not None]
        columns = dict.fromkeys(NAMES, math.nan)
        if logged:
            columns = dict(zip(NAMES, map(_mean, np.concatenate(logged).T), strict=True))
        if not math.isfinite(columns["conflicts"]):
            continue
        cells = [
            _percent(columns["conflicts"]),
            statistics.number(columns["similarity"], 2),
            _percent(columns["noise"]),
            statistics.number(columns["effective_tasks"], 1),
            statistics.number(_mean(np.array([predicted(run) for run in setting.runs])), 2),
        ]
        rows.append([setting.label, *cells])
    return Table("How the tasks get along", _HEADER, rows) if rows else None


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if math.isfinite(share) else statistics.MISSING
