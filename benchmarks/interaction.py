"""What the interaction matrix costs: time and memory of every strategy, over the number of tasks.

    python benchmarks/interaction.py

The ratios are to one training step on the average loss with the same batch.
"""

import jax
import jax.numpy as jnp
import mlp
import optax
import timing

from ldro_jax import interaction, transform, weighting

STRATEGIES = {
    "vmap": interaction.vmap(),
    "scan": interaction.scan(),
    "scan, stored in bfloat16": interaction.scan(dtype=jnp.bfloat16),
    "tiled, tiles of 1": interaction.tiled(1),
    "tiled, tiles of 4": interaction.tiled(4),
    "columns": interaction.columns(),
    "jacrev": interaction.jacrev(),
    "split, of vmap": interaction.split("vmap"),
    "split, of scan": interaction.split("scan"),
    "vmap, in a geometry": None,
}


def _caller(program, inputs):
    return lambda: jax.block_until_ready(program(*inputs))


def main():
    args = timing.arguments(__doc__, rounds=5)
    timing.print_machine()
    params = mlp.init(jax.random.key(0))
    size = sum(p.nbytes for p in params)
    print(f"Residual MLP, {size / 1e6:.1f} MB of parameters, {args.examples} examples a task.\n")
    print(f"{'N':>3}  {'strategy':26}{'ms':>9}{'ratio':>8}{'±':>6}{'temporary':>12}{'ratio':>7}")
    for num_tasks in (4, 20):
        batch = mlp.batch(jax.random.key(1), num_tasks, args.examples)
        tx = optax.chain(transform.weighted(weighting.average(), num_tasks), optax.sgd(0.01))

        def step(params, state, batch, tx=tx):
            updates, state = tx.update(None, state, params, loss_fn=mlp.loss_fn, batch=batch)
            return optax.apply_updates(params, updates), state

        # Nothing is donated, so that input and output buffers count the same for all.
        compiled = {"one training step": jax.jit(step).lower(params, tx.init(params), batch)}
        for name, strategy in STRATEGIES.items():

            def matrix(params, batch, strategy=strategy):
                if strategy is None:
                    factors = jax.tree.map(jnp.abs, params)
                    strategy = interaction.preconditioned(interaction.vmap(), factors)
                return strategy.matrix(mlp.loss_fn, params, batch)

            compiled[name] = jax.jit(matrix).lower(params, batch)
        compiled = {name: lowered.compile() for name, lowered in compiled.items()}

        inputs = dict.fromkeys(compiled, (params, batch))
        inputs["one training step"] = (params, tx.init(params), batch)
        table = timing.paired_ratios(
            {name: _caller(program, inputs[name]) for name, program in compiled.items()},
            "one training step",
            args.rounds,
        )
        plain = compiled["one training step"].memory_analysis().temp_size_in_bytes
        for name, (milliseconds, ratio, spread) in table.items():
            memory = compiled[name].memory_analysis().temp_size_in_bytes
            print(
                f"{num_tasks:>3}  {name:26}{milliseconds:>9.1f}{ratio:>7.2f}×{spread:>6.2f}"
                f"{memory / 1e6:>9.1f} MB{memory / plain:>6.2f}×"
            )


if __name__ == "__main__":
    main()
