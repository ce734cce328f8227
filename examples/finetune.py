"""A pretrained trunk on new tasks: one layer frozen, two learning rates, and the result exported.

    python examples/finetune.py [OUTPUT_DIR]

Questions about scanned digits. The network learns two of them from many images, and then two others
from a hundred, with its first layer as it is, its second one slowly, and a new head.
"""

import pathlib
import sys

import numpy as np
import optax
from flax import linen as nn
from flax import traverse_util
from sklearn import datasets

import ldro_jax
from ldro_jax import problems
from ldro_jax.training import Batches, Method, Schedule

QUESTIONS = {"odd": (1, 3, 5, 7, 9), "large": (5, 6, 7, 8, 9)}
NEW_QUESTIONS = {"prime": (2, 3, 5, 7), "with a loop": (0, 6, 8, 9)}


class Network(nn.Module):
    """Two layers to keep, and a head with a logit for each question."""

    @nn.compact
    def __call__(self, inputs):
        """Logits ``[R, 2]``."""
        hidden = nn.relu(nn.Dense(64, name="first")(inputs))
        hidden = nn.relu(nn.Dense(32, name="second")(hidden))
        return nn.Dense(2, name="head")(hidden)


def loss(logits, rows):
    """Cross-entropy, for one question at a time."""
    return optax.sigmoid_binary_cross_entropy(logits, rows["targets"])


def is_right(logits, rows):
    """Whether the more likely answer is the right one."""
    return (logits > 0) == (rows["targets"] > 0.5)


def asked(questions, train, validation, test):
    """The problem of some questions; images are told by their numbers."""
    images, digits = datasets.load_digits(return_X_y=True)

    def table(rows):
        answers = {name: np.float32(np.isin(digits[rows], yes)) for name, yes in questions.items()}
        return problems.Table(np.float32(images[rows] / 16), answers)

    return problems.from_arrays(
        table(train),
        model=Network(),
        loss=loss,
        metrics={problems.Metric("accuracy", higher_is_better=True): is_right},
        validation=table(validation),
        test=table(test),
    )


def main(output_dir: str = "results_local/finetune") -> None:
    """Pretrains, fine-tunes, and exports."""
    folder = pathlib.Path(output_dir)
    order = np.random.default_rng(0).permutation(1797)
    many, few, *held_out = np.split(order, [900, 1000, 1300])
    average = Method("Average", "average")
    ldro = Method("L-DRO", "lookahead_online", {"lookahead_lr": 1.0, "weight_lr": 0.1})

    def train(problem, methods, seeds, optimizer, name):
        schedule = Schedule(400, 20, 100, test="best", patience=5, eval_at_start=True)
        options = {"schedule": schedule, "batches": Batches(32), "output_dir": folder / name}
        return ldro_jax.compare(problem, methods, seeds, optimizer, **options)

    old = asked(QUESTIONS, many, *held_out)
    trunk = train(old, [average], (0,), optax.adam(0.003), "pretrained").best().params
    del trunk["head"]
    new = asked(NEW_QUESTIONS, few, *held_out).with_parameters(trunk)
    rates = {"none": optax.set_to_zero(), "low": optax.adam(0.0003), "high": optax.adam(0.01)}
    optimizer = optax.partition(rates, {"first": "none", "second": "low", "head": "high"})
    results = train(new, [average, ldro], (0, 1, 2), optimizer, "finetuned")
    params = results.best("L-DRO").params
    np.savez(folder / "params.npz", **traverse_util.flatten_dict(params, sep="/"))


if __name__ == "__main__":
    main(*sys.argv[1:])
