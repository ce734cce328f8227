"""Groups of very different size: the rare one is not to be left behind.

    python examples/imbalanced_groups.py [OUTPUT_DIR [SAMPLER]]

Handwritten digits in three groups: 900 images as they are, 60 upside down, 30 with inverted
colours. ERM is plain training on all images, in which the last group weighs 0.03. For the others
every group counts by its weight, with any sampler. Plain random batches ("uniform") rarely see the
small groups, so their gradients are noisier than those of balanced ones.
"""

import sys

import numpy as np
import optax
from sklearn import datasets

import ldro_jax
from ldro_jax import problems
from ldro_jax.models.mlp import MLP
from ldro_jax.training import Batches, Method, Schedule

GROUPS = {
    "upright": (900, lambda images: images),
    "upside down": (60, lambda images: images[:, ::-1, ::-1]),
    "inverted": (30, lambda images: 1 - images),
}


def load():
    """Train, validation and test images; no image is in two splits or groups."""
    digits = datasets.load_digits()
    images = (digits.images / 16).astype(np.float32)
    labels = digits.target.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(images))
    held_out, order = np.split(order, [600])
    splits = ({}, {}, {})
    for name, (size, change) in GROUPS.items():
        mine, order = np.split(order, [size])
        validation, test = np.split(held_out, 2)
        for split, rows in zip(splits, (mine, validation, test), strict=True):
            split[name] = (change(images[rows]), labels[rows])
    return splits


def main(output_dir: str = "results_local/imbalanced_groups", sampler: str = "balanced") -> None:
    """Trains and compares."""
    train, validation, test = load()
    problem = problems.from_arrays(
        train,
        model=MLP(num_classes=10, features=(32,)),
        loss=problems.cross_entropy,
        metrics={problems.Metric("accuracy", higher_is_better=True): problems.accuracy},
        validation=validation,
        test=test,
    )
    ldro_jax.compare(
        problem,
        [
            Method("Average", "average"),
            Method("ERM", "erm"),
            Method("Group DRO", "group_dro", {"weight_lr": 0.1}),
            Method("L-DRO", "lookahead_online", {"lookahead_lr": 1.0, "weight_lr": 0.01}),
        ],
        seeds=(0, 1, 2),
        optimizer=optax.adam(0.003),
        schedule=Schedule(train_steps=500, eval_interval=50, checkpoint_interval=250, test="best"),
        batches=Batches(96, sampler),
        output_dir=output_dir,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
