"""Whether a lookahead predicts what tasks do to each other, and how well signal is estimated.

    python benchmarks/lookahead.py
    python benchmarks/lookahead.py --optimizer adam --hopeless 0

Nine optics of handwritten digits and some hopeless tasks train on their average loss. Here and
there training stops, and

* goes on from there for 1, 10 and 50 steps on one task at a time. By how much the losses on all
  training rows fall then, less what they do on average over the tasks trained, is compared with A
  as it was measured at the start: Spearman's rank correlation of all pairs, of each task's own
  change, and for each task of what the others do to it;
* the share of each task's gradient that is signal, from all training rows, is compared with
  running means of what the steps so far had measured. "rows" is what a measurement takes besides
  the training batch, in rows a step and task.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from scipy import stats

from ldro_jax import interaction, ldro
from ldro_jax.models.mlp import MLP
from ldro_jax.reporting import statistics
from ldro_jax.tasks import digits
from ldro_jax.tasks.corrupted import corrupted

ROWS, MORE, EVERY = 16, (64, 320), 20
POINTS = (100, 250, 500, 1000)
HORIZONS = (1, 10, 50)
DRAWS = 5
OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.05, momentum=0.9, nesterov=True),
    "adam": lambda: optax.adam(0.003),
}
_VMAP = interaction.get("vmap")
_SPLIT = interaction.split("vmap")


class Tasks:
    """All training rows of the tasks, and how to draw from them."""

    def __init__(self, hopeless: int):
        data = corrupted(load_data=digits.load, leave_out=("noisy",), hopeless=hopeless)
        parts = [data.train.of(task) for task in range(len(data.task_names))]
        rows = min(len(labels) for _, labels in parts)
        self.names, self.number = data.task_names, len(parts)
        self.all = {
            "x": jnp.stack([jnp.asarray(inputs[:rows], jnp.float32) for inputs, _ in parts]),
            "y": jnp.stack([jnp.asarray(labels[:rows]) for _, labels in parts]),
        }
        self.rows = rows
        self.model = MLP(num_classes=data.num_classes, features=(16,))

    def init(self, key):
        """Parameters of a network of 16 hidden units."""
        return self.model.init(key, self.all["x"][0])

    def loss(self, params, batch):
        """Of one task."""
        logits = self.model.apply(params, batch["x"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()

    def draw(self, key, rows):
        """A batch of as many rows of each task, ``[task, row, ...]``."""
        chosen = jax.random.randint(key, (self.number, rows), 0, self.rows)
        return jax.tree.map(lambda x: jax.vmap(lambda a, i: a[i])(x, chosen), self.all)

    def losses(self, params, batch):
        """Of all tasks, ``[task]``."""
        return jax.vmap(self.loss, in_axes=(None, 0))(params, batch)

    def step(self, optimizer, carry, batch, weights):
        """One step on the weighted loss."""
        params, state = carry
        gradient = jax.grad(lambda p: self.losses(p, batch) @ weights)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    def gradients(self, params, batch):
        """``[task, parameter]``."""
        found = jax.vmap(jax.grad(self.loss), in_axes=(None, 0))(params, batch)
        return jax.vmap(lambda tree: ravel_pytree(tree)[0])(found)

    def truth(self, params):
        """Each task's squared gradient over all rows, and the variance of that of ROWS rows."""

        def one_task(batch):
            mean = ravel_pytree(jax.grad(self.loss)(params, batch))[0]

            def square(row):
                one = jax.tree.map(lambda leaf: leaf[None], row)
                gradient = jax.grad(self.loss)(params, one)
                return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient))

            of_rows = jnp.mean(jax.lax.map(square, batch, batch_size=64))
            return mean @ mean, (of_rows - mean @ mean) / ROWS

        return jax.lax.map(one_task, self.all)


def measured(tasks, params, batch):
    """Halves of a batch: the squares and the variances of ROWS rows, ``[task]`` each."""
    found = _SPLIT.matrix(tasks.loss, params, batch)
    return jnp.diagonal(found.matrix), found.noise * batch["y"].shape[1] / ROWS


def trained(tasks, optimizer, seed):
    """Trains on the average loss.

    Returns:
      What it had become at each of POINTS, parameters and optimizer state; and what was measured on
      the way: by name, squares and variances ``[step, task]`` each.
    """
    even = jnp.full(tasks.number, 1 / tasks.number)

    def step(carry, number):
        params, state, last = carry
        key = jax.random.fold_in(jax.random.key(seed), number)
        batch = tasks.draw(key, ROWS)
        gradients = tasks.gradients(params, batch)
        squares, noise = measured(tasks, params, batch)
        # Two batches in a row are as independent as two halves, and each has all its rows.
        found = {str(ROWS): (squares, noise), "last": (jnp.sum(gradients * last, axis=1), noise)}
        for rows in MORE:
            more = tasks.draw(jax.random.fold_in(key, rows), rows)
            found[str(rows)] = measured(tasks, params, more)
        # The products that a step gives for nothing: each loss along the last step's gradient.
        found["products"] = (gradients @ last.mean(axis=0), jnp.sum(gradients**2, axis=1))
        params, state = tasks.step(optimizer, (params, state), batch, even)
        return (params, state, gradients), found

    def stretch(carry, numbers):
        return jax.lax.scan(step, carry, numbers)

    params = tasks.init(jax.random.key(seed))
    nothing = jnp.zeros((tasks.number, ravel_pytree(params)[0].size))
    carry, points, found, start = (params, optimizer.init(params), nothing), [], [], 0
    for point in POINTS:
        carry, more = stretch(carry, jnp.arange(start, point))
        points.append(carry[:2])
        found.append(more)
        start = point
    return points, jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)


def matrices(tasks, state, params, key):
    """A in several ways, ``[N, N]`` each."""
    batch, more = tasks.draw(key, ROWS), tasks.draw(key, MORE[-1])
    found = {
        f"{ROWS} rows": _VMAP.matrix(tasks.loss, params, batch),
        f"{ROWS} rows, split": _SPLIT.matrix(tasks.loss, params, batch).matrix,
        f"{MORE[-1]} rows": _VMAP.matrix(tasks.loss, params, more),
        f"{MORE[-1]} rows, split": _SPLIT.matrix(tasks.loss, params, more).matrix,
        "all rows": _VMAP.matrix(tasks.loss, params, tasks.all),
    }
    try:
        scale = ravel_pytree(ldro.preconditioner(state))[0]
    except ValueError:  # an optimizer that scales nothing
        return found
    gradients = tasks.gradients(params, tasks.all)
    found["all rows, optimizer's geometry"] = gradients @ (scale * gradients).T
    return found


def falls(tasks, optimizer, point, key):
    """By how much each loss falls when one task is trained, ``[horizon, loss, trained]``."""
    before = tasks.losses(point[0], tasks.all)

    def train(weights):
        def step(carry, number):
            batch = tasks.draw(jax.random.fold_in(key, number), ROWS)
            return tasks.step(optimizer, carry, batch, weights), None

        carry, found, start = point, [], 0
        for horizon in HORIZONS:
            carry, _ = jax.lax.scan(step, carry, jnp.arange(start, horizon))
            found.append(before - tasks.losses(carry[0], tasks.all))
            start = horizon
        return jnp.stack(found)

    found = jax.lax.map(train, jnp.eye(tasks.number)).transpose(1, 2, 0)
    return found - found.mean(axis=2, keepdims=True)


def correlations(matrix, fallen):
    """Rank correlations of all pairs, of each task with itself, and of others for each task."""
    rank = lambda a, b: stats.spearmanr(a, b).statistic  # noqa: E731
    matrix = matrix - matrix.mean(axis=1, keepdims=True)
    own = np.eye(len(matrix), dtype=bool)
    others = [rank(a[~mask], b[~mask]) for a, b, mask in zip(matrix, fallen, own, strict=True)]
    return rank(matrix.ravel(), fallen.ravel()), rank(matrix[own], fallen[own]), np.mean(others)


def shares(squares, noise, decay):
    """Signal shares ``[task]`` from what was measured so far, each ``[measurement, task]``."""
    age = np.arange(len(squares))[::-1, None]
    square, variance = (np.sum(decay**age * x, axis=0) for x in (squares, np.maximum(noise, 0)))
    return np.where(square > 0, square / np.maximum(square + variance, 1e-30), 0)


def estimators():
    """By name: what is measured, every how many steps, the decay, and the rows that it takes."""
    for interval, decay in ((EVERY, 0.0), (EVERY, 0.9), (EVERY, 0.97), (1, 0.995)):
        for rows in (ROWS, *MORE):
            if interval == EVERY or rows == ROWS:
                yield f"halves of {rows}", str(rows), interval, decay, rows / interval
    for decay in (0.97, 0.995):
        yield "this batch by the last", "last", 1, decay, 0
        yield "products: this batch by the last step", "products", 1, decay, 0


def mean_of(values):
    """A mean over seeds of what is first averaged for each, with half of its 95 % interval."""
    found = statistics.interval(np.nanmean(each) for each in values)
    return statistics.with_interval(found, 2, signed=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="sgd")
    parser.add_argument("--hopeless", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    tasks, optimizer = Tasks(arguments.hopeless), OPTIMIZERS[arguments.optimizer]()
    train = jax.jit(lambda seed: trained(tasks, optimizer, seed))
    runs = [train(seed) for seed in range(arguments.seeds)]

    predicted = {}
    measure = jax.jit(lambda point, key: matrices(tasks, point[1], point[0], key))
    go_on = jax.jit(lambda point, key: falls(tasks, optimizer, point, key))
    for seed, (points, _) in enumerate(runs):
        earlier = None
        for number, point in enumerate(points):
            key = jax.random.fold_in(jax.random.key(1000 + seed), number)
            fallen = np.asarray(go_on(point, key))
            ways = {"all rows, at the point before": earlier} if number else {}
            for draw in range(DRAWS):
                drawn = jax.tree.map(np.asarray, measure(point, jax.random.fold_in(key, 7 + draw)))
                for name, matrix in {**drawn, **ways}.items():
                    for horizon, fall in zip(HORIZONS, fallen, strict=True):
                        numbers = predicted.setdefault((name, horizon), {})
                        numbers.setdefault(seed, []).append(correlations(matrix, fall))
            earlier = drawn["all rows"]
    print(f"| A of | {' | '.join(f'after {h}: all, own, others' for h in HORIZONS)} |")
    print(f"|---{'|---' * len(HORIZONS)}|")
    for name in dict.fromkeys(name for name, _ in predicted):
        cells = []
        for horizon in HORIZONS:
            seeds = predicted[name, horizon].values()
            kinds = ([[row[kind] for row in rows] for rows in seeds] for kind in range(3))
            cells.append(", ".join(mean_of(kind) for kind in kinds))
        print(f"| {name} | {' | '.join(cells)} |")

    truth = jax.jit(tasks.truth)
    print("\n| estimate | interval | decay | rows | error of s | rank correlation |")
    print("|---|---|---|---|---|---|")
    true = [[np.asarray(truth(point[0])) for point in points] for points, _ in runs]
    for name, what, interval, decay, rows in estimators():
        errors, ranks = [], []
        for (_, found), at_points in zip(runs, true, strict=True):
            squares, noise = (np.asarray(x)[::interval] for x in found[what])
            pairs = []
            for point, (square, variance) in zip(POINTS, at_points, strict=True):
                until = -(-point // interval)
                s = shares(squares[:until], noise[:until], decay)
                pairs.append((s, square / (square + variance)))
            errors.append([np.abs(s - t).mean() for s, t in pairs])
            ranks.append([stats.spearmanr(s, t).statistic for s, t in pairs])
        print(
            f"| {name} | {interval} | {decay} | {rows:.1f} | {mean_of(errors)} | {mean_of(ranks)} |"
        )
    print("\ns of each task by step, the mean over seeds:")
    mean = np.mean([[s / (s + v) for s, v in run] for run in true], axis=0)
    for point, at in zip(POINTS, mean, strict=True):
        each = [f"{name} {x:.2f}" for name, x in zip(tasks.names, at, strict=True)]
        print(f"{point:5d} ", ", ".join(each))


if __name__ == "__main__":
    main()
