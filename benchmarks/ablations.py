"""Which part of a lookahead's result comes from which part of the interaction matrix.

    python benchmarks/ablations.py
    python benchmarks/ablations.py --hopeless 0 --seeds 40

Smooth L-DRO by signal on nine optics of handwritten digits and some hopeless tasks, as in
`digits_hopeless.gin`, with parts of A left out or put in the wrong place. Test accuracy over the
nine, after a quarter of the steps and at the end, less that of the average loss, paired over seeds
with half of the 95 % interval.
"""

import argparse
import functools
import tempfile

import jax.numpy as jnp
import numpy as np
import optax

import ldro_jax
from ldro_jax import weighting
from ldro_jax.models.mlp import MLP
from ldro_jax.problems.classifiers import classification
from ldro_jax.reporting import statistics
from ldro_jax.tasks import digits
from ldro_jax.tasks.corrupted import corrupted
from ldro_jax.training.batches import Batches
from ldro_jax.training.method import Method
from ldro_jax.training.schedule import Schedule

STEPS, EVERY, ROWS = 1000, 250, 16


def own(matrix):
    """What each task does to itself."""
    return jnp.diag(jnp.diagonal(matrix))


def shuffled(matrix):
    """Each task has the row and the column of another."""
    order = np.random.default_rng(0).permutation(len(matrix))
    return matrix[order][:, order]


PARTS = {
    "all of A": lambda matrix: matrix,
    "its diagonal": own,
    "all but its diagonal": lambda matrix: matrix - own(matrix),
    "that of other tasks": shuffled,
}


def by_part(part):
    """Smooth L-DRO that sees a part of A; the signal is measured as ever."""
    inner = weighting.smooth_lookahead(1.0, 0.3, relative=True)

    def update(seen, state):
        return inner.update(seen._replace(interaction=part(seen.interaction)), state)

    return inner._replace(update=update)


def methods():
    """What is compared, the average loss first."""
    measured = {"interaction_interval": 20, "interaction_rows": 320}
    measured |= {"smoothing": 0.9, "signal_power": 1.0}
    yield Method("average loss", "average")
    for name, part in PARTS.items():
        yield Method(name, by_part(part), **measured)
    measured["interaction_interval"] = 200
    yield Method("all of A, every 200 steps", by_part(PARTS["all of A"]), **measured)
    term = {"tilt": 1.0, "relative": True}
    measured["interaction_interval"] = 20
    yield Method("no lookahead: TERM by signal", "term", term, **measured)


def main():
    """Trains and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--hopeless", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=20)
    arguments = parser.parse_args()
    data = functools.partial(
        corrupted, load_data=digits.load, leave_out=("noisy",), hopeless=arguments.hopeless
    )
    with tempfile.TemporaryDirectory() as folder:
        record = ldro_jax.compare(
            functools.partial(
                classification, load_data=data, model=functools.partial(MLP, features=(16,))
            ),
            [*methods()],
            range(arguments.seeds),
            optax.sgd(0.05, momentum=0.9, nesterov=True),
            schedule=Schedule(STEPS, EVERY, STEPS),
            batches=Batches(ROWS * (9 + arguments.hopeless), runs_together=arguments.seeds),
            output_dir=folder,
        )
    values = {}
    for run in record.runs:
        tested = [e for e in run.evaluations if e.split == "test"]
        values.setdefault(run.method, []).append([(e.average, e.worst) for e in tested])
    base = np.array(values.pop("average loss"))
    print(f"| {arguments.hopeless} hopeless | step {EVERY}: average, worst | step {STEPS} |")
    print("|---|---|---|")
    means = base.mean(axis=0)
    cells = [", ".join(f"{x:.3f}" for x in means[place]) for place in (0, -1)]
    print(f"| average loss | {' | '.join(cells)} |")
    for name, found in values.items():
        less = np.array(found) - base
        both = [[statistics.interval(less[:, p, kind]) for kind in (0, 1)] for p in (0, -1)]
        cells = [", ".join(statistics.with_interval(each) for each in pair) for pair in both]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
