"""What L-DRO costs inside T5X, as a ratio to T5X's own trainer.

    python benchmarks/t5x_overhead.py
    python benchmarks/t5x_overhead.py --scan

The network is T5X's decoder; with ``--scan`` its scanned encoder-decoder, with half of the layers
and half of a row on either side. Memory is the compiler's, of the training steps of both trainers
on a mesh of 4 data × 2 model simulated devices; steps are timed in turns. Needs T5X
(scripts/install_t5x.sh).
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
from t5x.examples.scalable_t5 import network as scalable

from ldro_jax import ldro
from ldro_jax.t5x import tasks
from ldro_jax.t5x.model import LDRODecoderOnlyModel, LDROEncoderDecoderModel
from ldro_jax.t5x.optimizer import WeightedOptimizer
from ldro_jax.t5x.trainer import LDROTrainer
from ldro_jax.tasks import vocabulary

BASELINE = "T5X"
FEATURES = ("decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights")
# The interval, and whether the matrix is that of the step before.
WAYS = {
    BASELINE: None,
    "L-DRO, k = 1000": (1000, False),
    "L-DRO, k = 10": (10, False),
    "L-DRO, k = 1": (1, False),
    "L-DRO, k = 1, lagged": (1, True),
}


def task_names(args) -> list[str]:
    return [f"task {i}" for i in range(args.tasks)]


def make_model(args, optimizer, ours: bool):
    """The model, as T5X's class or ours."""
    shape = {
        "vocab_size": args.vocab,
        "emb_dim": args.width,
        "num_heads": 4,
        "head_dim": args.width // 4,
        "mlp_dim": 4 * args.width,
        "mlp_activations": ("gelu", "linear"),
        "dropout_rate": 0.0,
        "dtype": "float32",
        "logits_via_embedding": True,
    }
    words = vocabulary.load(None)
    if args.scan:
        layers = {"num_encoder_layers": args.layers // 2, "num_decoder_layers": args.layers // 2}
        made = scalable.Transformer(scalable.T5Config(remat_policy="minimal", **shape, **layers))
        cls = LDROEncoderDecoderModel if ours else models.EncoderDecoderModel
        return cls(made, words, words, optimizer)
    config = network.TransformerConfig(num_layers=args.layers, **shape)
    cls = LDRODecoderOnlyModel if ours else models.DecoderOnlyModel
    return cls(network.DecoderWrapper(config), words, optimizer)


def make_trainer(args, way: tuple[int, bool] | None, batch):
    """T5X's trainer, or ours if there is an interval."""
    optimizer, trainer_class, options = optax.adam(1e-3), t5x_trainer.Trainer, {}
    if way is None:
        optimizer = optimizers.OptaxWrapper(optimizer)
    else:
        interval, lagged = way
        rates = {"lookahead_lr": 0.1, "weight_lr": 0.01}
        tx = ldro.transform(args.tasks, interaction_interval=interval, lagged=lagged, **rates)
        optimizer = WeightedOptimizer(tx, optimizer)
        trainer_class, options = LDROTrainer, {"task_names": task_names(args)}
    model = make_model(args, optimizer, way is not None)
    partitioner = partitioning.PjitPartitioner(
        num_partitions=None, model_parallel_submesh=(1, 2, 1, 1)
    )
    start = utils.TrainStateInitializer(
        optimizer_def=optimizer,
        init_fn=model.get_initial_variables,
        input_shapes={name: x.shape for name, x in batch.items() if name != tasks.MARK},
        input_types={name: np.int32 for name in batch if name != tasks.MARK},
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
    parser.add_argument("--scan", action="store_true", help="T5X's scanned encoder-decoder")
    parser.add_argument("--steps", type=int, default=5, help="steps of a trainer at a time")
    parser.add_argument("--rounds", type=int, default=10, help="how often each has its turn")
    args = parser.parse_args()
    timing.print_machine()
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, args.vocab, (args.rows * args.tasks, args.length), np.int32)
    inputs, targets = np.split(tokens, 2, axis=1) if args.scan else (None, tokens)
    batch = dict(zip(FEATURES, (targets, targets, np.ones_like(targets)), strict=True))
    if args.scan:
        batch["encoder_input_tokens"] = inputs
    batch[tasks.MARK] = tasks.marks(task_names(args), len(tokens))
    trainers = {name: make_trainer(args, way, batch) for name, way in WAYS.items()}
    size = sum(leaf.size for leaf in jax.tree.leaves(trainers[BASELINE].train_state.params))
    print(
        f"\nN = {args.tasks}, {len(tokens)} × {args.length} tokens, {size / 1e6:.1f}M parameters, "
        "Adam, 4 data × 2 model devices."
    )
    compiled, timed = {}, {}
    for name, trainer in trainers.items():
        trainer.compile_train(batch)
        compiled[name] = trainer._compiled_train_step

        def stretch(trainer=trainer):
            trainer.train(iter([batch] * args.steps), args.steps).result()

        stretch()  # takes the measurement that comes at step 0
        timed[name] = stretch
    table = timing.paired_ratios(timed, BASELINE, args.rounds)
    timing.print_table(table, "ms", lambda ms: f"{ms / args.steps:.0f}", compiled, BASELINE)


if __name__ == "__main__":
    main()
