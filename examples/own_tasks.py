"""Your own tasks: two regressions and a classification with one trunk and a head for each.

    python examples/own_tasks.py [OUTPUT_DIR]

Trains three methods with three seeds, and writes `report.html`. After an interruption the same
command goes on from where it stopped.
"""

import sys

import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from sklearn import datasets

import ldro_jax
from ldro_jax import problems
from ldro_jax.training import Batches, Method, Schedule

FEATURES, OUTPUTS = 13, 3


def load():
    """Train, validation and test examples of each task, filled up to the same shapes."""
    tables = {
        "diabetes": datasets.load_diabetes(return_X_y=True),
        "exercise": datasets.load_linnerud(return_X_y=True),
        "wine": datasets.load_wine(return_X_y=True),
    }
    splits = ({}, {}, {})
    for name, (inputs, targets) in tables.items():
        targets = np.eye(OUTPUTS)[targets] if name == "wine" else targets.reshape(len(targets), -1)
        if name != "wine":
            targets = (targets - targets.mean(0)) / targets.std(0)
        inputs = (inputs - inputs.mean(0)) / inputs.std(0)
        inputs = np.pad(inputs, ((0, 0), (0, FEATURES - inputs.shape[1])))
        targets = np.pad(targets, ((0, 0), (0, OUTPUTS - targets.shape[1])))
        order = np.random.default_rng(0).permutation(len(inputs))
        parts = np.split(order, [len(order) // 2, len(order) * 3 // 4])
        for split, rows in zip(splits, parts, strict=True):
            split[name] = (inputs[rows].astype(np.float32), targets[rows].astype(np.float32))
    return splits


class Network(nn.Module):
    """One hidden layer for all tasks, and a head for each."""

    @nn.compact
    def __call__(self, inputs):
        hidden = nn.relu(nn.Dense(16)(inputs))
        return jnp.stack([nn.Dense(OUTPUTS)(hidden) for _ in range(3)], axis=1)


def loss(outputs, rows):
    """Squared error, and for wine cross-entropy."""
    outputs = jnp.take_along_axis(outputs, rows["task"][:, None, None], axis=1)[:, 0]
    squared = jnp.sum((outputs - rows["targets"]) ** 2, axis=-1)
    entropy = optax.softmax_cross_entropy(outputs, rows["targets"])
    return jnp.where(rows["task"] == 2, entropy, squared)


def main(output_dir="results_local/own_tasks"):
    """Trains and compares."""
    train, validation, test = load()
    problem = problems.from_arrays(
        train,
        model=Network(),
        loss=loss,
        metrics={problems.Metric("loss", higher_is_better=False): loss},
        validation=validation,
        test=test,
    )
    methods = [
        Method("Average", "average"),
        Method("Group DRO", "group_dro", {"weight_lr": 0.1}),
        Method("L-DRO", "lookahead_online", {"lookahead_lr": 0.1, "weight_lr": 0.1}),
    ]
    ldro_jax.compare(
        problem,
        methods,
        seeds=(0, 1, 2),
        optimizer=optax.adamw(0.003, weight_decay=1.0),
        schedule=Schedule(120, eval_interval=12, checkpoint_interval=36, test="best"),
        batches=Batches(30),
        output_dir=output_dir,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
