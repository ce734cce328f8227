"""Made-up records for the tests of reporting; no number here was measured."""

import types

import numpy as np
import pytest

from ldro_jax.records.results import Results, Run, Series, summarise_evaluation

TASKS = ("clean", "rotated", "inverted", "noisy", "blurred", "cropped", "flipped", "low contrast")
METHODS = {
    # Final gain on ordinary tasks and on the worst ones, and time relative to the first.
    "Average": (0.0, 0.0, 1.0),
    "Group DRO": (-0.05, 0.05, 1.03),
    "Interpolated": (-0.02, 0.03, 1.02),
    "L-DRO online": (-0.005, 0.06, 1.05),
}
NAMES = dict(
    zip(METHODS, ("average", "group_dro", "interpolated", "lookahead_online"), strict=True)
)
STEPS = 2000


def evaluation(step, values, split="test", metric="accuracy", higher=True):
    names = [f"task {i}" for i in range(len(values))]
    return summarise_evaluation(step, split, metric, names, values, higher)


def run(method, seed, values, **options):
    """A run with one final test evaluation of accuracies."""
    options = {"num_steps": 10, "seconds_per_step": 0.002, **options}
    return Run(method, seed, evaluations=[evaluation(10, values)], **options)


def results(runs, num_tasks=2, **options):
    names = [f"task {i}" for i in range(num_tasks)]
    return Results("toy", names, "accuracy", True, runs, **options)


def record(task_names, *, seeds=3, methods=tuple(METHODS), key=0):
    """A complete record with several seeds, curves, weights and interactions."""
    runs = [_run(m, s, list(task_names), key) for m in methods for s in range(seeds)]
    return Results(
        experiment="made-up digits",
        description="Made-up numbers that test the report. Nothing was trained.",
        task_names=list(task_names),
        metric="accuracy",
        higher_is_better=True,
        runs=runs,
        versions={"ldro_jax": "0.0", "jax": "0.0", "numpy": np.__version__},
        device={"platform": "cpu", "kind": "cpu", "cpu_cores": 3, "processor": "made up"},
        occasion={"date": "2026-01-02 03:04 UTC", "command": "python made_up.py --now"},
    )


def _run(method, seed, names, key):
    count = len(names)
    shared = np.random.default_rng([key, seed])
    own = np.random.default_rng([key, seed, list(METHODS).index(method)])
    gain, worst_gain, time = METHODS[method]
    level = np.linspace(0.92, 0.55, count) + 0.01 * shared.normal(size=count)
    hard = np.linspace(0, 1, count) ** 3
    final = level + gain * (1 - hard) + worst_gain * hard + 0.006 * own.normal(size=count)
    steps = np.linspace(0, STEPS, 21).astype(int)[1:]
    evaluations = []
    for split in ("validation", "test"):
        for step in steps:
            progress = 1 - np.exp(-5 * step / STEPS)
            noise = 0.006 * own.normal(size=count)
            values = 0.1 + (final - 0.1) * progress + noise
            evaluations.append(
                summarise_evaluation(int(step), split, "accuracy", names, values, True)
            )
    return Run(
        method=method,
        hyperparameters={} if method == "Average" else {"weight_lr": 0.1},
        seed=seed,
        num_steps=STEPS,
        seconds_per_step=0.0021 * time + 0.00003 * own.random(),
        evaluations=evaluations,
        weighting=NAMES[method],
        weights=_weights(method, steps, hard, own),
        signal=_signal(steps, hard) if method == "L-DRO online" else None,
        losses=Series(steps, 1.0 - np.outer(1 - np.exp(-5 * steps / STEPS), final)),
        interaction=_interaction(count, own) if method == "L-DRO online" else None,
        nonfinite_losses={names[-1]: 2} if (method, seed) == ("Group DRO", 1) else {},
    )


def _weights(method, steps, hard, rng):
    count = len(hard)
    speed = {"Average": 0.0, "Group DRO": 2.5, "Interpolated": 1.0, "L-DRO online": 1.6}[method]
    drift = speed * np.outer(steps / STEPS, hard)
    if speed:
        drift += 0.08 * np.cumsum(rng.normal(size=drift.shape), axis=0)
    logits = np.exp(drift)
    return Series(steps, logits / logits.sum(axis=1, keepdims=True) + np.zeros((len(steps), count)))


def _signal(steps, hard):
    values = np.outer(np.exp(-steps / STEPS), 0.8 - 0.7 * hard)
    values[0, 0] = np.nan  # not measured yet
    return Series(steps, values)


def _interaction(count, rng):
    families = np.arange(count) % 3
    centres = rng.normal(size=(3, 60))
    gradients = centres[families] + 1.2 * rng.normal(size=(count, 60))
    gradients *= rng.uniform(0.5, 3.0, size=(count, 1))
    gram = gradients @ gradients.T
    return Series([0, STEPS], np.stack([gram, gram]))


@pytest.fixture(scope="session")
def made_up():
    """The functions that make records."""
    return types.SimpleNamespace(
        evaluation=evaluation, record=record, results=results, run=run, tasks=TASKS
    )


@pytest.fixture(scope="session")
def full(made_up):
    """A complete record: 8 tasks, 4 methods, 3 seeds."""
    return made_up.record(made_up.tasks)
