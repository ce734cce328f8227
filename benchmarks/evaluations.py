"""What an evaluation costs besides the steps and the evaluation itself: records, logs, progress.

    python benchmarks/evaluations.py
    python benchmarks/evaluations.py --tasks 100 --evaluations 500

A linear model with an evaluation every 10 steps, trained by the trainer, and by a loop that calls
the same two compiled programs and keeps nothing.
"""

import argparse
import os
import pathlib
import tempfile
import time

import numpy as np
import optax
import timing
import tqdm

from ldro_jax import problems
from ldro_jax.training import loop
from ldro_jax.training.batches import Batches
from ldro_jax.training.engine import Trial
from ldro_jax.training.method import Method
from ldro_jax.training.schedule import Schedule
from ldro_jax.training.stacked import StackedEngine

INTERVAL = 10


def linear(num_tasks):
    """As many linear regressions, of eight examples each."""
    inputs = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    data = {f"task {i}": (inputs, inputs.sum(axis=1) * i) for i in range(num_tasks)}

    def squared_error(outputs, rows):
        return (outputs - rows["targets"]) ** 2

    return problems.from_arrays(
        data,
        model=(lambda key, inputs: np.zeros(3, np.float32), lambda params, inputs: inputs @ params),
        loss=squared_error,
        metrics={problems.Metric("squared error", higher_is_better=False): squared_error},
        validation=data,
        test=data,
    )


def trained(program, trials, evaluations):
    """The seconds that the trainer takes."""
    with tempfile.TemporaryDirectory() as name, open(os.devnull, "w") as nowhere:
        folder, steps = pathlib.Path(name), evaluations * INTERVAL
        progress = tqdm.tqdm(total=steps * len(trials), file=nowhere)
        began = time.perf_counter()
        loop.train(
            program,
            trials,
            Schedule(steps, INTERVAL, steps),
            checkpoint_dir=folder / "checkpoints",
            tensorboard_dirs=[folder / str(trial.seed) for trial in trials],
            progress=progress,
        )
        return time.perf_counter() - began


def bare(program, trials, evaluations):
    """The seconds of the compiled programs alone."""
    session, progress = program.start(trials), tqdm.tqdm(disable=True)
    began = time.perf_counter()
    for end in range(INTERVAL, (evaluations + 1) * INTERVAL, INTERVAL):
        session.advance(end, lambda step: False, progress)
        session.evaluated()
        for index in range(len(trials)):
            for split in program.problem.splits:
                program.evaluate(session.state(index).params, split)
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--evaluations", type=int, default=3000)
    parser.add_argument("--runs", type=int, default=1, help="trained together")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    timing.print_machine()
    rates = {"lookahead_lr": 0.01, "weight_lr": 0.1}
    method = Method("L-DRO", "lookahead_online", rates, interaction_interval=INTERVAL)
    program = StackedEngine(linear(args.tasks), optax.sgd(1e-3), Batches(4 * args.tasks)).program(
        method
    )
    trials = [Trial(method, seed) for seed in range(args.runs)]
    for run in (trained, bare):
        run(program, trials, 3)
    rounds = [
        (bare(program, trials, args.evaluations), trained(program, trials, args.evaluations))
        for _ in range(args.rounds)
    ]
    # The quickest of each is the least disturbed by others on the machine.
    alone, whole = map(min, zip(*rounds, strict=True))
    count = args.evaluations * args.runs
    print(
        f"{args.evaluations} evaluations of {args.tasks} tasks in {args.runs} runs: "
        f"{1e3 * whole / count:.2f} ms for each and the steps before it, "
        f"{1e3 * alone / count:.2f} ms without records ({whole / alone:.1f}×); "
        f"difference {1e3 * (whole - alone) / count:.2f} ms"
    )


if __name__ == "__main__":
    main()
