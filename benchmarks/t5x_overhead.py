"""What L-DRO costs inside T5X, as a ratio to T5X's own trainer.

    python benchmarks/t5x_overhead.py

Memory is the compiler's, of the training steps of both trainers on a mesh of 4 data × 2 model
simulated devices; steps are timed in turns. Needs T5X (scripts/install_t5x.sh).
"""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
# With few threads simulated devices may wait for each other forever.
os.environ.setdefault("PJRT_NPROC", "64")

import argparse

import jax
import numpy as np
import optax
import timing
from t5x import models, optimizers, partitioning, utils
from t5x import trainer as t5x_trainer
from t5x.examples.decoder_only import network

from ldro_jax import ldro
from ldro_jax.t5x import tasks
from ldro_jax.t5x.model import LDRODecoderOnlyModel
from ldro_jax.t5x.optimizer import WeightedOptimizer
from ldro_jax.t5x.trainer import LDROTrainer
from ldro_jax.tasks import vocabulary

BASELINE = "T5X"
FEATURES = ("decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights")


def task_names(args) -> list[str]:
    return [f"task {i}" for i in range(args.tasks)]


def make_trainer(args, interval: int | None):
    """T5X's trainer, or ours if there is an interval."""
    config = network.TransformerConfig(
        vocab_size=args.vocab,
        emb_dim=args.width,
        num_heads=4,
        num_layers=args.layers,
        head_dim=args.width // 4,
        mlp_dim=4 * args.width,
        mlp_activations=("gelu", "linear"),
        dropout_rate=0.0,
        dtype="float32",
        logits_via_embedding=True,
    )
    adam = optax.adam(1e-3)
    optimizer, model_class, trainer_class, options = (
        (optimizers.OptaxWrapper(adam), models.DecoderOnlyModel, t5x_trainer.Trainer, {})
        if interval is None
        else (
            WeightedOptimizer(
                ldro.transform(
                    args.tasks,
                    lookahead_lr=0.1,
                    weight_lr=0.01,
                    interaction_interval=interval,
                ),
                adam,
            ),
            LDRODecoderOnlyModel,
            LDROTrainer,
            {"task_names": task_names(args)},
        )
    )
    model = model_class(network.DecoderWrapper(config), vocabulary.load(None), optimizer)
    partitioner = partitioning.PjitPartitioner(
        num_partitions=None, model_parallel_submesh=(1, 2, 1, 1)
    )
    start = utils.TrainStateInitializer(
        optimizer_def=optimizer,
        init_fn=model.get_initial_variables,
        input_shapes=dict.fromkeys(FEATURES, (args.rows * args.tasks, args.length)),
        input_types=dict.fromkeys(FEATURES, np.int32),
        partitioner=partitioner,
    )
    return trainer_class(
        model=model,
        train_state=start.from_scratch(jax.random.PRNGKey(0)),
        partitioner=partitioner,
        train_state_axes=start.train_state_axes,
        eval_names=[],
        summary_dir=None,
        rng=jax.random.PRNGKey(0),
        learning_rate_fn=lambda step: 1e-3,
        num_microbatches=None,
        **options,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=8, help="number of tasks, N")
    parser.add_argument("--rows", type=int, default=4, help="rows of each task in a batch")
    parser.add_argument("--length", type=int, default=128, help="tokens of a row")
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--steps", type=int, default=5, help="steps of a trainer at a time")
    parser.add_argument("--rounds", type=int, default=10, help="how often each has its turn")
    args = parser.parse_args()
    timing.print_machine()
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, args.vocab, (args.rows * args.tasks, args.length), np.int32)
    batch = dict(zip(FEATURES, (tokens, tokens, np.ones_like(tokens)), strict=True))
    batch[tasks.MARK] = tasks.marks(task_names(args), len(tokens))
    trainers = {BASELINE: make_trainer(args, None)} | {
        f"L-DRO, k = {interval}": make_trainer(args, interval) for interval in (1000, 10)
    }
    size = sum(leaf.size for leaf in jax.tree.leaves(trainers[BASELINE].train_state.params))
    print(
        f"\nN = {args.tasks}, {len(tokens)} × {args.length} tokens, {size / 1e6:.1f}M parameters, "
        "Adam, 4 data × 2 model devices."
    )
    memory, timed = {}, {}
    for name, trainer in trainers.items():
        trainer.compile_train(batch)
        compiled = trainer._compiled_train_step
        memory[name] = compiled.memory_analysis().temp_size_in_bytes

        def stretch(trainer=trainer):
            trainer.train(iter([batch] * args.steps), args.steps).result()

        stretch()  # takes the measurement that comes at step 0
        timed[name] = stretch
    table = timing.paired_ratios(timed, BASELINE, args.rounds)
    print(f"{'step':24}{'ms':>8}{'ratio':>9}{'±':>7}{'temporary':>12}{'ratio':>7}")
    for name, (milliseconds, ratio, error) in table.items():
        share = memory[name] / memory[BASELINE]
        print(
            f"{name:24}{milliseconds / args.steps:>8.0f}{ratio:>8.3f}×{error:>7.3f}"
            f"{memory[name] / 1e6:>9.1f} MB{share:>6.2f}×"
        )


if __name__ == "__main__":
    main()
