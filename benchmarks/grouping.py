"""What measuring affinities costs, and what it costs to train every pair of tasks as one program.

    python benchmarks/grouping.py

The digits of gin_configs/experiments/digits.gin with a wider network: a training that measures the
first order every 100 steps, TAG's affinity every 10, or nothing, in turns; and all 45 pairs against
their share of the rows of a step of all ten tasks. Then how long groups take to choose.
"""

import argparse
import functools
import time

import numpy as np
import optax
import timing

from ldro_jax import grouping, problems
from ldro_jax.experiments.grouped import Affinity
from ldro_jax.models.mlp import MLP
from ldro_jax.problems.subset import Subset
from ldro_jax.tasks import digits
from ldro_jax.training.batches import Batches
from ldro_jax.training.engine import Trial
from ldro_jax.training.method import Method
from ldro_jax.training.stacked import StackedEngine
from ldro_jax.training.stretches import Stretch

N, EACH = 10, 16


def seconds(program, trials, steps):
    """Of some steps of all trials, from their beginning."""
    states, runs = program.start(trials).states, program.settings(trials)
    *_, taken = program.run(runs, states, steps, size=Stretch(steps, 1))
    return taken


def said(ratios):
    """Their median and how far they go."""
    return f"{np.median(ratios):.3f} × ({ratios.min():.3f} to {ratios.max():.3f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=256, help="of the hidden layer")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    timing.print_machine()
    model = functools.partial(MLP, features=(args.width,))
    problem = problems.classification(load_data=digits.load, model=model)
    optimizer = optax.sgd(0.05, momentum=0.9)
    whole = StackedEngine(problem, optimizer, Batches(N * EACH))
    average = Method("Average", "average")
    methods = {
        "first order, every 100 steps": Affinity("a", interval=100).tracking(average),
        "TAG, every 10 steps": Affinity("b", interval=10, step_size=0.05).tracking(average),
    }
    plain = whole.program(average)
    pairs = [(i, j) for j in range(N) for i in range(j)]
    some = StackedEngine(Subset(problem, range(2)), optimizer, Batches(2 * EACH)).program(average)
    jobs = {
        "nothing": (plain, [Trial(average, 0)]),
        **{name: (whole.program(m), [Trial(m, 0)]) for name, m in methods.items()},
        "all pairs": (some, [Trial(average, 0, pair) for pair in pairs]),
    }
    times = {name: [] for name in jobs}
    for _ in range(args.rounds + 1):
        for name, (program, trials) in jobs.items():
            times[name].append(seconds(program, trials, args.steps))
    found = {name: np.array(values[1:]) for name, values in times.items()}
    for name in methods:
        print(f"measuring {name}: {said(found[name] / found['nothing'])}")
    share = len(pairs) * 2 / N * found["nothing"]
    print(f"all {len(pairs)} pairs, of the rows' share: {said(found['all pairs'] / share)}")
    rng = np.random.default_rng(0)
    for num_tasks, most in ((9, 4), (12, 4), (64, 8)):
        affinity = rng.normal(size=(num_tasks, num_tasks))
        began = time.perf_counter()
        exact = grouping.select(affinity, most).exact
        taken = time.perf_counter() - began
        word = "exactly" if exact else "by the heuristic"
        print(f"at most {most} groups of {num_tasks} tasks: {taken:.2f} s, {word}")


if __name__ == "__main__":
    main()
