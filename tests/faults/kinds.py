"""Tiny experiments of the kinds of problems that no gin file has."""

import jax
import numpy as np
import optax
from flax import nnx
from helpers import labelled, tiny

import ldro_jax
from ldro_jax import ldro, problems
from ldro_jax.sharding import Layout
from ldro_jax.training import Batches, Method, Schedule

LDRO = Method(
    "L-DRO", "lookahead_online", {"lookahead_lr": 0.5, "weight_lr": 0.5}, interaction_interval=3
)


class InNnx(nnx.Module):
    """The same network in Flax NNX."""

    def __init__(self, rngs):
        self.first, self.norm = nnx.Linear(4, 6, rngs=rngs), nnx.BatchNorm(6, rngs=rngs)
        self.drop, self.last = nnx.Dropout(0.25, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, inputs):
        return self.last(self.drop(nnx.relu(self.norm(self.first(inputs)))))


def linear():
    """A model without statistics, as a pair of functions."""

    def init(key, inputs):
        return {"w": 0.1 * jax.random.normal(key, (labelled.FEATURES, len(labelled.TASKS)))}

    return init, lambda params, inputs: inputs @ params["w"]


def streamed():
    """Rows in batches of five, some labels missing, in an order that a seed decides."""
    given = labelled.table(0)

    def batches(seed):
        order = np.random.default_rng(seed).permutation(labelled.ROWS)
        for first in range(0, labelled.ROWS, 5):
            where = order[first : first + 5]
            yield given.inputs[where], {task: x[where] for task, x in given.targets.items()}

    return problems.from_iterator(
        batches,
        model=labelled.Network(),
        loss=labelled.squared,
        metrics={labelled.LOSS_ERROR: labelled.squared},
        validation=labelled.table(1),
        test=labelled.table(2),
    )


def plain():
    # Adam makes whole steps of rounding, the gradient of a bias before batch normalisation.
    return optax.sgd(0.05, momentum=0.9)


# By name, what makes the problem, and the optimizer.
KINDS = {
    "missing": (lambda: labelled.problem(linear()), plain),
    "tables": (labelled.two_tables, plain),
    "linen": (labelled.problem, plain),
    "nnx": (lambda: labelled.problem(InNnx), plain),
    "streams": (streamed, plain),
    "averaged": (labelled.problem, lambda: ldro.averaged(optax.adam(0.05), 0.9)),
    "patience": (
        lambda: tiny.Distances(values=lambda x: {"distance": x**2}),
        lambda: optax.sgd(0.4),
    ),
}


def run(name: str, output_dir: str, layout: Layout | None = None) -> None:
    """Trains one of them, eight steps with two evaluations between checkpoints."""
    problem, optimizer = KINDS[name]
    made: problems.Problem = problem()
    ends = name == "patience"
    ldro_jax.compare(
        made,
        [LDRO],
        seeds=(0, 1) if ends else (0,),
        optimizer=optimizer(),
        schedule=Schedule(24 if ends else 8, 2, 4, patience=2 if ends else None),
        batches=Batches(8, layout=layout, runs_together=2 if ends else 1),
        output_dir=output_dir,
    )
