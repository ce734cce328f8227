"""T5X's networks with scanned layers: their gradients are used up layer by layer."""

import jax
import numpy as np
import pytest

tiny_t5x = pytest.importorskip(
    "helpers.tiny_t5x", reason="T5X is not installed (scripts/install_t5x.sh)", exc_type=ImportError
)
from t5x.examples.scalable_t5 import network  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
BATCHES = [tiny_t5x.pair_batch(seed) for seed in range(3)]
OURS = tiny_t5x.model_lib.LDROEncoderDecoderModel


def make_model(optimizer, cls):
    config = network.T5Config(
        vocab_size=tiny_t5x.VOCAB_SIZE,
        emb_dim=64,
        num_heads=4,
        num_encoder_layers=4,
        num_decoder_layers=4,
        head_dim=16,
        mlp_dim=256,
        mlp_activations=("gelu", "linear"),
        # Masks of rows pass through scans and rematerialisation too.
        dropout_rate=0.1,
        remat_policy="full",
    )
    words = tiny_t5x.vocabulary.load(None)
    return cls(network.Transformer(config), words, words, optimizer)


def memory(a_trainer):
    """Temporary bytes of a training step on each device."""
    a_trainer.compile_train(dict(BATCHES[0]))
    return a_trainer._compiled_train_step.memory_analysis().temp_size_in_bytes


def test_lagged_steps_take_the_memory_of_a_step_and_train_the_same():
    stock = make_model(
        tiny_t5x.optimizers.OptaxWrapper(tiny_t5x.sgd()), tiny_t5x.models.EncoderDecoderModel
    )
    plain = memory(tiny_t5x.make_trainer(stock, cls=tiny_t5x.t5x_trainer.Trainer))

    def trained(interaction):
        optimizer = tiny_t5x.weighted(interaction_interval=1, lagged=True)
        made = tiny_t5x.make_trainer(make_model(optimizer, OURS), interaction=interaction)
        needed = memory(made)
        tiny_t5x.train(made, BATCHES)
        return needed, made.train_state

    needed, found = trained(None)
    stacked, expected = trained("scan")
    # T5X scans its layers along the second axis of their parameters.
    assert needed < 1.05 * plain and stacked > 3 * plain
    ours, other = (state.param_states["weighting"] for state in (found, expected))
    assert np.ptp(other.weights) > 0.01
    scale = np.abs(other.interaction).max()
    np.testing.assert_allclose(ours.interaction, other.interaction, atol=2e-6 * scale, rtol=1e-5)
    np.testing.assert_allclose(ours.weights, other.weights, rtol=1e-5)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-6),
        found.params,
        expected.params,
    )
