"""What it takes to write, read and report a large record.

python benchmarks/records.py
python benchmarks/records.py --tasks 300 --evaluations 100 --runs 12
"""

import argparse
import pathlib
import tempfile
import time

import numpy as np

from ldro_jax import reporting
from ldro_jax.records import results

METHODS = ("Average", "Group DRO", "L-DRO", "MGDA", "PCGrad", "Interpolated")


def made_up_run(number, num_tasks, num_evaluations):
    """A run as the trainer records it; its numbers are made up."""
    rng = np.random.default_rng(number)
    method, seed = number % len(METHODS), number // len(METHODS)
    names = [f"task {i:03d}" for i in range(num_tasks)]
    steps = 10 * (np.arange(num_evaluations) + 1)
    shape = (num_evaluations, num_tasks)
    progress = 1 - np.exp(-5 * steps / steps[-1])[:, None]
    level = np.linspace(0.5, 0.9, num_tasks) + 0.01 * rng.normal(size=num_tasks)
    level += 0.01 * method * np.linspace(1, -0.5, num_tasks)
    values = np.float32(level * progress + 0.01 * rng.normal(size=shape))
    splits = ["validation"] * num_evaluations + ["test"]
    evaluations = [
        results.summarise_evaluation(step, split, "accuracy", names, row, True)
        for step, split, row in zip([*steps, steps[-1]], splits, [*values, values[-1]], strict=True)
    ]
    drift = np.cumsum(0.05 * rng.normal(size=shape), axis=0)
    weights = np.exp(drift * (method > 0))
    weights /= weights.sum(axis=1, keepdims=True)
    gradients = (
        rng.normal(size=(num_tasks, 200)) + rng.normal(size=(7, 200))[np.arange(num_tasks) % 7]
    )
    series = {
        "weights": weights,
        "losses": 2 - values + 0.1 * rng.normal(size=shape),
        "descent": np.cumsum(rng.random(size=shape), axis=0),
        "diagnostics": rng.random(size=(num_evaluations, 4)),
    }
    series = {name: results.Series(steps, np.float32(array)) for name, array in series.items()}
    series["interaction"] = results.Series(steps[-1:], np.float32(gradients @ gradients.T)[None])
    return results.Run(
        METHODS[method],
        seed,
        int(steps[-1]),
        seconds_per_step=0.002 + 1e-5 * rng.random(),
        evaluations=evaluations,
        **series,
    )


def made_up(num_tasks, num_evaluations, num_runs):
    """A record of that size."""
    return results.Results(
        experiment="a large record",
        description="Made-up numbers. Nothing was trained.",
        task_names=[f"task {i:03d}" for i in range(num_tasks)],
        metric="accuracy",
        higher_is_better=True,
        runs=[made_up_run(i, num_tasks, num_evaluations) for i in range(num_runs)],
    )


def timed(name, call):
    """What a call returns; prints the seconds that it took, by the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    found = call()
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    print(f"{name:8}{clock:6.1f} s ({processor:.1f} s of the processor)", flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--evaluations", type=int, default=500)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--output_dir", type=pathlib.Path, help="keep the report here")
    args = parser.parse_args()
    record = made_up(args.tasks, args.evaluations, args.runs)
    with tempfile.TemporaryDirectory() as folder:
        output_dir = args.output_dir or pathlib.Path(folder)
        # What it imports is no part of it.
        reporting.write_report(made_up(3, 3, 6), pathlib.Path(folder) / "first")
        path = output_dir / "results.json"
        timed("write", lambda: results.save_results(record, path))
        record = timed("read", lambda: results.load_results(path))
        page = timed("report", lambda: reporting.write_report(record, output_dir))
        timed("tables", lambda: reporting.headline_text(record))
        for file in (path, page):
            print(f"{file.name}: {file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
