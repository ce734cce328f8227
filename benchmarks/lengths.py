"""How well lengths of gradients are known from products, and from a matrix that is seldom measured.

    python benchmarks/lengths.py --data_dir /data/public
    python benchmarks/lengths.py --data_dir /data/public --steps 1000 --seeds 5

The lookahead of normalised steps divides by the length of a batch's gradient of each task. With
products of the interaction matrix that comes from running means over random directions, on a
quarter of a batch in every third step; with the matrix, from the last time that it was measured.
Both are compared with the root of the mean square over 16 other batches, while the network of
yeast.gin trains on the average loss. Over looks every tenth step, labels and seeds: the median of
the relative error, and the mean with its sign.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import timing

from ldro_jax import interaction
from ldro_jax.measuring import Batch, Plan, measure
from ldro_jax.models import mlp
from ldro_jax.problems import public_data
from ldro_jax.weighting import products

BATCH_SIZE, LEARNING_RATE, EVERY, BATCHES = 128, 0.003, 10, 16
INTERVALS = (10, 100, 400)


def errors_of(problem, seed, steps):
    """Relative errors of each way at each look, ``{way: [looks, N]}``."""
    num_tasks, every = problem.num_tasks, problem.on_device.arrays

    def losses_of(params, rows):
        return problem.training_losses(params, rows, None)

    def measured(strategy, params, rows):
        plan = Plan(num_tasks, strategy, 1, whole=True, owned=False)
        return measure(plan, losses_of, params, Batch(rows))

    @jax.jit
    def diagonal(params, rows):
        return jnp.diagonal(measured(interaction.get("auto"), params, rows).interaction())

    optimizer = optax.adam(LEARNING_RATE)

    @jax.jit
    def step(params, state, held, count, rows):
        found = measured(interaction.products(), params, rows)
        asked = found.interaction()
        asking = products.Asking(
            asked.times, asked.squares, found.present, due=count % 3 == 2, turn=count
        )
        held = asking.measured(held, (), squares=True)
        gradient = found.pullback(jnp.full(num_tasks, 1 / num_tasks))
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, held

    params = problem.init(jax.random.key(seed))
    state = optimizer.init(params)
    held = products.Held.nothing(0, num_tasks, jnp.float32)
    rng = np.random.default_rng(seed)
    size = jax.tree.leaves(every)[0].shape[0]

    def drawn():
        chosen = rng.choice(size, BATCH_SIZE, replace=False)
        return jax.tree.map(lambda x: x[chosen], every)

    last, errors = {}, {}
    for count in range(steps):
        rows = drawn()
        for interval in INTERVALS:
            if count % interval == 0:
                last[f"A every {interval} steps"] = diagonal(params, rows)
        if count % EVERY == EVERY - 1:
            squares = np.mean([diagonal(params, drawn()) for _ in range(BATCHES)], axis=0)
            for way, known in {"random directions": held.diagonal, **last}.items():
                errors.setdefault(way, []).append(np.sqrt(known / squares) - 1)
        params, state, held = step(params, state, held, jnp.int32(count), rows)
    return errors


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", required=True, help="made by scripts/public_data.py")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    timing.print_machine()
    model = functools.partial(mlp.MLP, features=(32,))
    problem = public_data.yeast(data_dir=args.data_dir, model=model)
    found = [errors_of(problem, seed, args.steps) for seed in range(args.seeds)]
    print(f"{'lengths from':24}{'median error':>14}{'mean error':>14}")
    for way in found[0]:
        errors = np.concatenate([f[way] for f in found])
        print(f"{way:24}{np.median(np.abs(errors)):>13.1%}{np.mean(errors):>+14.1%}")


if __name__ == "__main__":
    main()
