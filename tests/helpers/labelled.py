"""Rows with labels of several tasks, some missing, and a model with statistics and dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from ldro_jax.problems import Metric
from ldro_jax.problems.tables import Table, TableProblem

TASKS, FEATURES, ROWS = ("a", "b", "c"), 4, 24
LOSS_ERROR = Metric("error", higher_is_better=False)


class Network(nn.Module):
    """Batch normalisation and dropout before a head for each task."""

    rate: float = 0.25
    outputs: int = len(TASKS)

    @nn.compact
    def __call__(self, inputs, train):
        hidden = nn.Dense(6)(inputs)
        hidden = nn.BatchNorm(use_running_average=not train, momentum=0.9)(hidden)
        hidden = nn.Dropout(self.rate, deterministic=not train)(nn.relu(hidden))
        return nn.Dense(self.outputs)(hidden)


def squared(outputs, rows):
    return (outputs - rows["targets"]) ** 2


def entropy(outputs, rows):
    return optax.sigmoid_binary_cross_entropy(outputs, rows["targets"])


def arrays(seed=0, rows=ROWS, missing=0.3):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(rows, FEATURES)).astype(np.float32)
    targets = rng.normal(size=(rows, len(TASKS))).astype(np.float32)
    targets[rng.random(targets.shape) < missing] = np.nan
    return inputs, targets


def table(seed=0, **options):
    inputs, targets = arrays(seed, **options)
    return Table(inputs, dict(zip(TASKS, targets.T, strict=True)))


def problem(model=None, *, loss=squared, metrics=None, penalty=None, **options):
    splits = {name: table(i, **options) for i, name in enumerate(("train", "validation", "test"))}
    return TableProblem(
        splits, model or Network(), loss, metrics or {LOSS_ERROR: squared}, penalty=penalty
    )


def two_tables(model=None):
    """Two tasks in one table, and one in another with other inputs; classes and numbers."""
    rng = np.random.default_rng(3)

    def of_split():
        first, second = (rng.normal(size=(12, width)).astype(np.float32) for width in (4, 2))
        classes, there = np.int32(first[:, 0] > 0), rng.random(12) < 0.8
        return {
            "wide": Table(first, {"sum": first.sum(1), "sign": classes}, {"sign": there}),
            "narrow": Table({"x": second}, {"product": second.prod(1)}),
        }

    losses = {"sum": squared, "product": squared, "sign": entropy}
    losses["sign"] = lambda outputs, rows: optax.sigmoid_binary_cross_entropy(
        outputs, rows["targets"].astype(jnp.float32)
    )
    splits = {name: of_split() for name in ("train", "validation", "test")}
    return TableProblem(splits, model or TwoInputs(), losses, {LOSS_ERROR: losses})


class TwoInputs(nn.Module):
    """A way in for each table, and a trunk with statistics that they share."""

    @nn.compact
    def __call__(self, inputs, table, train):
        x = inputs if table == "wide" else inputs["x"]
        hidden = nn.BatchNorm(use_running_average=not train, name="norm")(
            nn.Dense(5, name=f"in_{table}")(x)
        )
        hidden = nn.relu(nn.Dense(5, name="trunk")(hidden))
        if table == "narrow":
            return nn.Dense(1, name="product")(hidden)[:, 0]
        return {name: nn.Dense(1, name=name)(hidden)[:, 0] for name in ("sum", "sign")}


def run_key(seed):
    """What a run draws at random with, before the number of the step is folded in."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), 2**31 - 1)
