"""One input with many labels, some of them missing: batch normalisation, dropout and AUROC.

    python examples/multilabel.py [OUTPUT_DIR]

Made-up documents, each with some of 14 topics. Of a topic's labels a third is missing, which counts
neither in its loss nor in its metrics. The trunk runs once a row, whatever the number of labels.
"""

import sys

import numpy as np
import optax
from flax import linen as nn
from sklearn import datasets, metrics

import ldro_jax
from ldro_jax import problems
from ldro_jax.training import Batches, Method, Schedule

TOPICS, WORDS = 14, 40


def load():
    """Tables of documents to train on, to choose by, and to report on."""
    words, topics = datasets.make_multilabel_classification(
        900, WORDS, n_classes=TOPICS, n_labels=3, length=30, random_state=0
    )
    inputs = np.float32(words)
    targets = np.float32(topics)
    targets[np.random.default_rng(0).random(targets.shape) < 1 / 3] = np.nan
    return [
        problems.Table(inputs[rows], {f"topic {i}": targets[rows, i] for i in range(TOPICS)})
        for rows in np.split(np.arange(900), [500, 700])
    ]


class Network(nn.Module):
    """The trainer says whether it trains: then statistics are those of the batch, and it drops."""

    @nn.compact
    def __call__(self, inputs, train):
        """Logits ``[R, 14]``."""
        hidden = nn.BatchNorm(use_running_average=not train)(nn.Dense(32)(inputs))
        hidden = nn.Dropout(0.2, deterministic=not train)(nn.relu(hidden))
        return nn.Dense(TOPICS)(hidden)


def loss(logits, rows):
    """Cross-entropy, for one label at a time."""
    return optax.sigmoid_binary_cross_entropy(logits, rows["targets"])


def auroc(logits, rows):
    """Of all documents that have the label; scikit-learn's, with NumPy's arrays."""
    return metrics.roc_auc_score(rows["targets"], logits)


def main(output_dir: str = "results_local/multilabel") -> None:
    """Trains and compares."""
    train, validation, test = load()
    problem = problems.from_arrays(
        train,
        model=Network(),
        loss=loss,
        metrics={problems.Metric("AUROC", higher_is_better=True): auroc},
        validation=validation,
        test=test,
    )
    ldro_jax.compare(
        problem,
        [
            Method("Average", "average"),
            Method("Group DRO", "group_dro", {"weight_lr": 0.01}),
            Method("L-DRO", "lookahead_online", {"lookahead_lr": 1.0, "weight_lr": 0.01}),
        ],
        seeds=(0, 1, 2),
        optimizer=optax.adam(0.003),
        schedule=Schedule(300, eval_interval=30, checkpoint_interval=150, test="best"),
        batches=Batches(64),
        output_dir=output_dir,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
