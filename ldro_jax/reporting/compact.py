"""A record small enough to be kept beside the code."""

import dataclasses

from ldro_jax.reporting.results import Results, Run


def compact(results: Results) -> Results:
    """Leaves out of a record what its report doesn't show.

    Averages and worst values stay for every checkpoint, the values of all tasks for the last
    checkpoint of each run alone.

    Args:
      results: the record.

    Returns:
      A smaller record, from which the same report can be made.
    """
    return dataclasses.replace(results, runs=[_run(run) for run in results.runs])


def _run(run: Run) -> Run:
    last = max((e.step for e in run.evaluations), default=0)
    return dataclasses.replace(
        run,
        evaluations=[
            e if e.step == last else dataclasses.replace(e, per_task={}) for e in run.evaluations
        ],
    )
