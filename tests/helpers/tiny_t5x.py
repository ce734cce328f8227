"""T5X with a model that compiles in seconds: trainers, batches, and how a run is put together."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from t5x import adafactor, checkpoints, models, optimizers, partitioning, utils  # noqa: F401
from t5x import trainer as t5x_trainer
from t5x.examples.decoder_only import network
from t5x.examples.t5 import network as t5_network

from ldro_jax import ldro, transform
from ldro_jax.t5x import checkpoints as checkpoints_lib  # noqa: F401
from ldro_jax.t5x import data, evaluation  # noqa: F401
from ldro_jax.t5x import model as model_lib
from ldro_jax.t5x import network as network_lib  # noqa: F401
from ldro_jax.t5x import optimizer as optimizer_lib
from ldro_jax.t5x import tasks as tasks_lib
from ldro_jax.t5x import trainer as trainer_lib
from ldro_jax.tasks import vocabulary

# Tests import T5X through this module, and are left out where that fails.
NAMES = ("ar", "fr", "ru", "sw")
N, ROWS, LENGTH, INPUTS, VOCAB_SIZE = 4, 16, 8, 12, 256
LEARNING_RATE = 0.1


def weighting(**changes):
    given = {"lookahead_lr": 0.5, "weight_lr": 0.4, "interaction_interval": 2} | changes
    return ldro.transform(N, **given)


def module(dropout_rate=0.0):
    config = network.TransformerConfig(
        vocab_size=VOCAB_SIZE,
        emb_dim=16,
        num_heads=2,
        num_layers=1,
        head_dim=8,
        mlp_dim=32,
        mlp_activations=("gelu", "linear"),
        dropout_rate=dropout_rate,
        dtype="float32",
        logits_via_embedding=True,
    )
    return network.DecoderWrapper(config)


def encoder_decoder_module(dropout_rate=0.0):
    config = t5_network.T5Config(
        vocab_size=VOCAB_SIZE,
        emb_dim=16,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        head_dim=8,
        mlp_dim=32,
        mlp_activations=("gelu", "linear"),
        dropout_rate=dropout_rate,
        dtype="float32",
        logits_via_embedding=False,
    )
    return t5_network.Transformer(config)


def make_model(optimizer, cls=model_lib.LDRODecoderOnlyModel, *, dropout_rate=0.0, **options):
    words = vocabulary.load(None)
    if issubclass(cls, models.EncoderDecoderModel):
        return cls(encoder_decoder_module(dropout_rate), words, words, optimizer, **options)
    return cls(module(dropout_rate), words, optimizer, **options)


class Mine(models.DecoderOnlyModel):
    """A class of one's own."""


class LDROMine(model_lib.LDROModel, Mine):
    """It with the losses of rows."""


def sgd():
    return optax.sgd(LEARNING_RATE)


def factored():
    # Parameters this small are factored only if asked.
    return adafactor.Adafactor(
        decay_rate=0.8,
        step_offset=0,
        logical_factor_rules=adafactor.standard_logical_factor_rules(),
        min_dim_size_to_factor=8,
    )


def batch(seed=0, rows=ROWS, padding=True):
    """Rows of all tasks in turn; some tokens don't count."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, 3 + 20 * (1 + np.arange(rows) % N)[:, None], (rows, LENGTH))
    weights = np.ones((rows, LENGTH), np.int32)
    if padding:
        weights[np.arange(rows), rng.integers(0, LENGTH, rows)] = 0
        weights[: rows // 2, -2:] = 0
    return {
        "decoder_input_tokens": np.pad(tokens, ((0, 0), (1, 0)))[:, :-1].astype(np.int32),
        "decoder_target_tokens": tokens.astype(np.int32),
        "decoder_loss_weights": weights,
        tasks_lib.MARK: tasks_lib.marks(NAMES, rows),
    }


def pair_batch(seed=0, rows=ROWS, padding=True, packed=False):
    """The same for an encoder-decoder; packed, two texts a row."""
    rng = np.random.default_rng([seed, 1])
    inputs = rng.integers(3, 3 + 20 * (1 + np.arange(rows) % N)[:, None], (rows, INPUTS))
    found = batch(seed, rows, padding)
    if padding and not packed:
        inputs[::2, -3:] = 0
    found["encoder_input_tokens"] = inputs.astype(np.int32)
    if packed:
        for part, length, first in [("encoder", INPUTS, 5), ("decoder", LENGTH, 3)]:
            segments, positions = np.repeat([1, 2], [first, length - first]), np.arange(length)
            positions[first:] -= first
            for name, row in [("segment_ids", segments), ("positions", positions)]:
                found[f"{part}_{name}"] = np.tile(row, (rows, 1)).astype(np.int32)
    return found


def partitioner(model=2):
    return partitioning.PjitPartitioner(
        num_partitions=None, model_parallel_submesh=(1, model, 1, 1)
    )


def initializer(a_model, parts, rows=ROWS):
    pairs = isinstance(a_model, models.EncoderDecoderModel)
    features = tasks_lib.unmarked((pair_batch if pairs else batch)(rows=rows))
    return utils.TrainStateInitializer(
        optimizer_def=a_model.optimizer_def,
        init_fn=a_model.get_initial_variables,
        input_shapes={name: feature.shape for name, feature in features.items()},
        input_types={name: np.int32 for name in features},
        partitioner=parts,
    )


def make_trainer(a_model, *, state=None, parts=None, rows=ROWS, cls=None, **options):
    parts = parts or partitioner()
    start = initializer(a_model, parts, rows)
    if cls is None:
        cls, options = trainer_lib.LDROTrainer, {"task_names": NAMES} | options
    return cls(
        model=a_model,
        train_state=start.from_scratch(jax.random.PRNGKey(0)) if state is None else state,
        partitioner=parts,
        train_state_axes=start.train_state_axes,
        eval_names=options.pop("eval_names", []),
        summary_dir=options.pop("summary_dir", None),
        rng=jax.random.PRNGKey(1),
        learning_rate_fn=lambda step: LEARNING_RATE,
        num_microbatches=options.pop("num_microbatches", None),
        **options,
    )


def train(a_trainer, batches):
    """Takes steps; the last summary."""
    return a_trainer.train(iter(batches), len(batches), start_step=0).result()


def stock(optimizer, **options):
    """T5X's own trainer of the same model."""
    a_model = make_model(optimizer, models.DecoderOnlyModel)
    return make_trainer(a_model, cls=t5x_trainer.Trainer, **options)


def weighted(optimizer=None, **changes):
    return optimizer_lib.WeightedOptimizer(
        weighting(**changes), sgd() if optimizer is None else optimizer
    )


def token_losses(a_model, params, rows):
    """Losses of the tokens of T5X's module, zero where they don't count."""
    pairs = "encoder_input_tokens" in rows
    parts = ("encoder", "decoder") if pairs else ("decoder",)
    names = [f"{part}_{name}" for part in parts for name in ("segment_ids", "positions")]
    logits = a_model.module.apply(
        {"params": params},
        *([rows["encoder_input_tokens"]] if pairs else []),
        rows["decoder_input_tokens"],
        rows["decoder_target_tokens"],
        **{name: rows[name] for name in names if name in rows},
        enable_dropout=False,
    )
    targets = rows["decoder_target_tokens"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return losses * rows["decoder_loss_weights"]


def plain_loop(tx, optimizer, batches):
    """The same run on one device without T5X's trainer, from the losses of T5X's module."""
    pairs = "encoder_input_tokens" in batches[0]
    models_of = (model_lib.LDRODecoderOnlyModel, model_lib.LDROEncoderDecoderModel)
    a_model = make_model(weighted(), models_of[pairs])
    params = make_trainer(a_model).train_state.params
    params = jax.device_put(params, jax.devices()[0])
    chain = optax.chain(tx, optimizer)
    state = chain.init(params)

    def loss_fn(params, rows):
        losses = token_losses(a_model, params, rows)
        return jnp.sum(losses) / jnp.sum(rows["decoder_loss_weights"])

    @jax.jit
    def step(params, state, batch):
        by_task = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, N, *x.shape[1:]), 1, 0), batch)
        updates, state = chain.update(None, state, params, loss_fn=loss_fn, batch=by_task)
        return optax.apply_updates(params, updates), state

    for batch in batches:
        params, state = step(params, state, batch)
    return params, transform.find_state(state)


def assert_same(state, expected, rtol=2e-5):
    params, weighted = expected
    found = state.param_states["weighting"]
    np.testing.assert_allclose(found.weights, weighted.weights, rtol=rtol)
    np.testing.assert_allclose(found.losses, weighted.losses, rtol=rtol)
    scale = np.abs(weighted.interaction).max()
    np.testing.assert_allclose(found.interaction, weighted.interaction, rtol, atol=rtol * scale)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), state.params, params
    )
