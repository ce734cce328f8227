"""Training rows from streams: Grain reads two kinds of data, and nothing is held but a batch.

    pip install grain
    python examples/streams.py [OUTPUT_DIR]

Images of digits, shifted at random while they are read, and chemical measurements of wines share a
hidden layer. Killed and started again, it goes on at the same places in both streams.
"""

import sys

import grain
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from sklearn import datasets

import ldro_jax
from ldro_jax import problems
from ldro_jax.training import Batches, Method, Schedule

DATA = {"images": (datasets.load_digits, "digit"), "wines": (datasets.load_wine, "cultivar")}


def load(table, part):
    """Every fifth row, from ``part`` 0 or 1 on; or with None, the others, to train on."""
    found = DATA[table][0]()
    inputs = np.float32(found.data / np.abs(found.data).max(axis=0).clip(1e-3))
    number = np.arange(len(inputs)) % 5
    rows = number > 1 if part is None else number == part
    return inputs[rows], np.int32(found.target[rows])


def shifted(image, rng):
    """An image that is moved to the left or right by a pixel, or not at all."""
    return np.roll(image.reshape(8, 8), rng.integers(-1, 2), axis=1).reshape(64)


def stream(table):
    """A function of a seed that makes a Grain data set of batches."""
    inputs, targets = load(table, None)

    def row(index, rng):
        image = shifted(inputs[index], rng) if table == "images" else inputs[index]
        return image, {DATA[table][1]: targets[index]}

    def made(seed):
        rows = grain.MapDataset.range(len(inputs)).seed(seed).shuffle()
        return rows.random_map(row).batch(32)

    return made


class Network(nn.Module):
    """A layer for each kind of input, one that they share, and a layer for each kind of target."""

    @nn.compact
    def __call__(self, inputs, table):
        """Logits of ten classes, ``[R, 10]``."""
        hidden = nn.relu(nn.Dense(32, name=f"{table}_in")(inputs))
        hidden = nn.relu(nn.Dense(32, name="shared")(hidden))
        return nn.Dense(10, name=f"{table}_out")(hidden)


def loss(logits, rows):
    """Cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, rows["targets"])


def accuracy(logits, rows):
    """Whether the most likely class is right."""
    return jnp.argmax(logits, axis=1) == rows["targets"]


def held_out(part):
    """A table of each kind."""
    rows = {name: load(name, part) for name in DATA}
    return {name: problems.Table(x, {DATA[name][1]: y}) for name, (x, y) in rows.items()}


def main(output_dir: str = "results_local/streams") -> None:
    """Trains and compares."""
    problem = problems.from_iterator(
        {name: stream(name) for name in DATA},
        model=Network(),
        loss=loss,
        metrics={problems.Metric("accuracy", higher_is_better=True): accuracy},
        validation=held_out(0),
        test=held_out(1),
    )
    ldro_jax.compare(
        problem,
        [
            Method("Average", "average"),
            Method("L-DRO", "lookahead_online", {"lookahead_lr": 1.0, "weight_lr": 0.1}),
        ],
        seeds=(0, 1, 2),
        optimizer=optax.adam(0.003),
        schedule=Schedule(300, eval_interval=50, checkpoint_interval=100),
        batches=Batches(64),
        output_dir=output_dir,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
