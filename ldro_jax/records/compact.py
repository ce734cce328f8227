"""A record small enough to be kept beside the code."""

import dataclasses

from ldro_jax.records.results import Results, Run


def compact(results: Results) -> Results:
    """A smaller record, from which the same report can be made.

    Averages and worst values stay for every checkpoint, the values of all tasks for the last
    evaluation of each run on each split alone.
    """
    return dataclasses.replace(results, runs=[_run(run) for run in results.runs])


def _run(run: Run) -> Run:
    # Validation and test may end at different steps.
    last = {(e.split, e.metric): e.step for e in sorted(run.evaluations, key=lambda e: e.step)}
    return dataclasses.replace(
        run,
        path=None,
        evaluations=[
            e if e.step == last[e.split, e.metric] else dataclasses.replace(e, per_task={})
            for e in run.evaluations
        ],
    )
