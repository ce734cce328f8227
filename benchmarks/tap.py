"""What a tap costs in a trainer that computes a gradient itself, beside a step told of the tasks.

    python benchmarks/tap.py

L-DRO with k = 100 on batches that mix five tasks. "Told" hands `losses_fn` to `update`; the taps
leave the trainer's step as it is, and one of the two trainers logs its gradient's length.
"""

import jax
import jax.numpy as jnp
import mlp
import optax
import timing

from ldro_jax import ldro

NUM_TASKS, TOLD = 5, "told of the tasks"


def row_losses(params, rows):
    """The losses of rows that belong to tasks."""
    losses = jax.vmap(lambda row: mlp.loss_fn(params, row))({"x": rows["x"], "y": rows["y"]})
    return ldro.Rows(losses, rows["task"])


def main():
    args = timing.arguments(__doc__, {}, rounds=200)
    timing.print_machine()
    params = mlp.init(jax.random.key(0))
    rows = mlp.batch(jax.random.key(1), NUM_TASKS, args.examples)
    rows = {name: x.reshape(-1, mlp.WIDTH) for name, x in rows.items()}
    rows["task"] = jnp.arange(NUM_TASKS * args.examples) % NUM_TASKS
    sgd = optax.sgd(0.01)
    weighting = lambda: ldro.transform(NUM_TASKS, interaction_interval=100, **timing.RATES)  # noqa: E731
    told = optax.chain(weighting(), sgd)

    def by_hand(params, state, rows):
        updates, state = told.update(None, state, params, losses_fn=lambda p: row_losses(p, rows))
        return optax.apply_updates(params, updates), state, ldro.losses(state).mean()

    def trainer(loss, optimizer, logs_norm):
        def step(params, state, rows):
            value, gradient = jax.value_and_grad(loss)(params, rows)
            updates, state = optimizer.update(gradient, state, params)
            logged = (value, optax.tree.norm(gradient)) if logs_norm else value
            return optax.apply_updates(params, updates), state, logged

        return step

    programs = {TOLD: (by_hand, told)}
    for name, logs_norm in (("tap", False), ("tap, norm logged", True)):
        tap = ldro.tap(row_losses, NUM_TASKS)
        tx = optax.chain(tap(weighting()), sgd)
        programs[name] = (trainer(tap.loss, tx, logs_norm), tx)
    plain = lambda params, rows: row_losses(params, rows).losses.mean()  # noqa: E731
    for name, logs_norm in (("average loss", False), ("average loss, norm logged", True)):
        programs[name] = (trainer(plain, sgd, logs_norm), sgd)

    compiled, timed = timing.compiled_steps(programs, params, rows)
    table = timing.paired_ratios(timed, TOLD, args.rounds)
    timing.print_table(table, "ms", "{:.1f}".format, compiled, TOLD)


if __name__ == "__main__":
    main()
