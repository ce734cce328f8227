"""How well the gradients' lengths are known from products, and from a matrix that is seldom measured.

    python benchmarks/lengths.py --data_dir /data/public
    python benchmarks/lengths.py --data_dir /data/public --steps 1000 --seeds 5

The lookahead of normalised steps divides by ‖∇ℓ_j‖. With products of the interaction matrix these
come from running means over random directions, on two eighths of a batch, in every third step; with
the matrix, from the last time that it was measured. Both are compared with the lengths on all
training rows at that step, while the network of yeast.gin trains on the average loss: the median
over steps and labels of the relative error, and its mean sign (how much too long).
"""

import argparse

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

BATCH_SIZE, LEARNING_RATE, EVERY = 128, 0.003, 10
INTERVALS = (10, 100, 400)


def lengths_of(plan, losses_of, params, rows):
    """Of the gradients on some rows, ``[N]``; with "split" without the noise."""
    matrix = measure(plan, losses_of, params, Batch(rows)).interaction()
    matrix = matrix.matrix if isinstance(matrix, interaction.Measured) else matrix
    return jnp.sqrt(jnp.maximum(jnp.diagonal(matrix), 0))


def trained(problem, seed, steps):
    """Errors of each way at each look, ``{way: [looks, N]}``."""
    num_tasks, every = problem.num_tasks, problem.on_device.arrays
    names = {
        "products": interaction.products(),
        **{w: interaction.get(w) for w in ("auto", "split")},
    }
    plans = {n: Plan(num_tasks, s, 1, whole=True, owned=False) for n, s in names.items()}

    def losses_of(params, rows):
        return problem.training_losses(params, rows, None)

    optimizer = optax.adam(LEARNING_RATE)

    @jax.jit
    def step(params, state, held, count, rows):
        found = measure(plans["products"], losses_of, params, Batch(rows))
        asked = found.interaction()
        asking = products.Asking(asked.times, asked.squares, found.present, turn=count)
        held = jax.lax.cond(
            count % 3 == 2, lambda: asking.measured(held, (), squares=True), lambda: held
        )
        updates, state = optimizer.update(found.pullback(jnp.full(num_tasks, 1 / num_tasks)), state)
        return optax.apply_updates(params, updates), state, held

    look = {
        w: jax.jit(lambda p, r, w=w: lengths_of(plans[w], losses_of, p, r))
        for w in ("auto", "split")
    }
    params = problem.init(jax.random.key(seed))
    state, held = optimizer.init(params), products.Held.nothing(0, num_tasks, jnp.float32)
    rng = np.random.default_rng(seed)
    size = jax.tree.leaves(every)[0].shape[0]
    last, errors = {}, {}
    for count in range(steps):
        rows = jax.tree.map(lambda x: x[rng.choice(size, BATCH_SIZE, replace=False)], every)
        for way in look:
            for k in INTERVALS:
                if count % k == 0:
                    last[f"{way}, every {k} steps"] = look[way](params, rows)
        if count % EVERY == EVERY - 1:
            true = look["auto"](params, every)
            ways = {"random directions": jnp.sqrt(held.diagonal), **last}
            for way, known in ways.items():
                errors.setdefault(way, []).append(np.asarray(known / true - 1))
        params, state, held = step(params, state, held, jnp.int32(count), rows)
    return errors


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", required=True, help="made by scripts/public_data.py")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    timing.print_machine()
    problem = public_data.yeast(args.data_dir, mlp.MLP)
    found = [trained(problem, seed, args.steps) for seed in range(args.seeds)]
    print(f"{'lengths from':28}{'median error':>14}{'mean error':>14}")
    for way in found[0]:
        errors = np.concatenate([f[way] for f in found])
        print(f"{way:28}{np.median(np.abs(errors)):>13.1%}{np.mean(errors):>+13.1%}")


if __name__ == "__main__":
    main()
