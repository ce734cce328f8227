"""What a tap costs in Tunix, beside our trainer of Tunix and a step written by hand.

    pip install google-tunix==0.1.7                       # Python 3.12
    python benchmarks/tap_tunix.py

A small Llama, five tasks of eight rows of 64 bytes, L-DRO with k = 100. Tunix logs the norm of its
own gradient, which a tap gives it unless it is made with `gradient=False`.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import timing
from flax import nnx
from tunix.sft import peft_trainer

from ldro_jax import ldro
from ldro_jax.integrations import tunix

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))
import tunix_languages as languages

BY_HAND, NUM_TASKS = "by hand", len(languages.LANGUAGES)


def main():
    args = timing.arguments(__doc__, rounds=200)
    timing.print_machine()
    texts = [np.random.default_rng(task).integers(0, 256, 10_000) for task in range(NUM_TASKS)]
    batch = languages.rows(texts, languages.ROWS, np.random.default_rng(0))
    batch = jax.tree.map(jnp.asarray, batch)
    config = peft_trainer.TrainingConfig(eval_every_n_steps=10**6)
    weighting = lambda: ldro.transform(NUM_TASKS, interaction_interval=100, **timing.RATES)  # noqa: E731

    def by_hand():
        model = languages.new_model(0)
        tx = optax.chain(weighting(), optax.adamw(1e-3))
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

        @nnx.jit(donate_argnums=1)
        def step(model, optimizer):
            graph, _, rest = nnx.split(model, nnx.Param, ...)
            losses_fn = lambda p: languages.task_losses(nnx.merge(graph, p, rest), **batch)  # noqa: E731
            optimizer.update(model, None, losses_fn=losses_fn)
            return optimizer.opt_state[0].losses.mean()

        return lambda: step(model, optimizer)

    def of(trainer, loss):
        step, _ = trainer.with_loss_fn(loss).jit_train_and_eval_step()
        return lambda: step(batch)

    def tapped(gradient):
        tap = ldro.tap(languages.task_losses, NUM_TASKS, gradient=gradient)
        tx = optax.chain(tap(weighting()), optax.adamw(1e-3))
        return of(peft_trainer.PeftTrainer(languages.new_model(0), tx, config), tap.loss)

    ours = tunix.PeftTrainer(
        languages.new_model(0), optax.adamw(1e-3), config, weighting=weighting()
    )
    plain = peft_trainer.PeftTrainer(languages.new_model(0), optax.adamw(1e-3), config)
    programs = {
        BY_HAND: by_hand(),
        "our PeftTrainer": of(ours, languages.task_losses),
        "a tap": tapped(gradient=True),
        "a tap, no gradient": tapped(gradient=False),
        "average loss": of(plain, languages.mean_loss),
    }
    steps = {
        name: lambda step=step: jax.block_until_ready(step()) for name, step in programs.items()
    }
    for step in steps.values():
        step()
    table = timing.paired_ratios(steps, BY_HAND, args.rounds)
    timing.print_table(table, "ms", "{:.1f}".format, {}, BY_HAND)


if __name__ == "__main__":
    main()
