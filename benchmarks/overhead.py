"""What Lookahead-DRO costs: whole training steps, as a ratio to the average loss.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --methods --rounds 20

"Plain Optax" is a training loop without this library. With `--methods`, every method that uses the
interaction, measured in every step, relative to L-DRO's step.
"""

import jax
import jax.numpy as jnp
import mlp
import optax
import timing

from ldro_jax import interaction, ldro, transform, weighting

NUM_TASKS = 20


def _ldro(interval, **options):
    return ldro.transform(
        NUM_TASKS, lookahead_lr=0.01, weight_lr=0.1, interaction_interval=interval, **options
    )


WEIGHTINGS = {
    timing.BASELINE: transform.weighted(weighting.average(), NUM_TASKS),
    "L-DRO without rates, k = 20": ldro.transform(NUM_TASKS),
    "L-DRO, k = 100": _ldro(100),
    "L-DRO, k = 10": _ldro(10),
    "L-DRO, k = 1": _ldro(1),
    "L-DRO, k = 1, lagged": _ldro(1, lagged=True),
}


def plain_step(optimizer):
    """The step of an ordinary training loop."""

    def step(params, state, batch):
        def average_loss(params):
            return jnp.mean(jax.vmap(mlp.loss_fn, in_axes=(None, 0))(params, batch))

        updates, state = optimizer.update(jax.grad(average_loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    return step


def weighted_step(tx):
    """The same with one of this library's weightings."""

    def step(params, state, batch):
        updates, state = tx.update(None, state, params, loss_fn=mlp.loss_fn, batch=batch)
        return optax.apply_updates(params, updates), state

    return step


def every_method():
    """All methods that use the interaction, measured in every step."""
    found = {
        name: weighting.create(name, weighting.usual(name, NUM_TASKS))
        for name in sorted(weighting.METHODS)
    }
    # The model's losses are means over examples.
    strategies = {"auto": "auto", "split": interaction.split(fused=True)}
    return {
        name: transform.weighted(
            method,
            NUM_TASKS,
            interaction=strategies[method.default_interaction],
            interaction_interval=1,
        )
        for name, method in found.items()
        if method.uses_interaction
    }


def main():
    args = timing.arguments(__doc__, {"--methods": "time every method"}, rounds=100)
    timing.print_machine()
    params = mlp.init(jax.random.key(0))
    batch = mlp.batch(jax.random.key(1), NUM_TASKS, args.examples)
    size = sum(p.nbytes for p in params)
    print(
        f"Residual MLP, {size / 1e6:.1f} MB of parameters, N = {NUM_TASKS}, "
        f"{args.examples} examples a task, SGD.\n"
    )
    optimizer = optax.sgd(0.01)
    programs = {"plain Optax": (plain_step(optimizer), optimizer)}
    weightings, baseline = WEIGHTINGS, timing.BASELINE
    if args.methods:
        weightings, programs, baseline = every_method(), {}, "lookahead_online"
    for name, transformation in weightings.items():
        tx = optax.chain(transformation, optimizer)
        programs[name] = (weighted_step(tx), tx)

    compiled, timed = timing.compiled_steps(programs, params, batch)
    table = timing.paired_ratios(timed, baseline, args.rounds)
    timing.print_table(table, "ms", "{:.1f}".format, compiled, baseline)


if __name__ == "__main__":
    main()
