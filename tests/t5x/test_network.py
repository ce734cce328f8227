"""The decoder of this library as T5X sees it."""

import jax
import numpy as np
import pytest
from flax.core import meta

from ldro_jax.models import decoder

tiny_t5x = pytest.importorskip(
    "helpers.tiny_t5x", reason="T5X is not installed (scripts/install_t5x.sh)", exc_type=ImportError
)
pytestmark = pytest.mark.filterwarnings("ignore")
SHAPES = {"decoder_input_tokens": (tiny_t5x.ROWS, tiny_t5x.LENGTH)}
RULES = tiny_t5x.partitioning.standard_logical_axis_rules(
    additional_rules=[("head_dim", None), ("norm", None), ("position", None)]
)


def make(scan_layers):
    config = decoder.Decoder(
        vocab_size=tiny_t5x.VOCAB_SIZE,
        embed_dim=16,
        num_heads=2,
        mlp_dim=32,
        context=tiny_t5x.LENGTH,
        scan_layers=scan_layers,
    )
    network = tiny_t5x.network_lib.DecoderNetwork(config)
    vocabulary = tiny_t5x.vocabulary.load(None)
    return config, tiny_t5x.model_lib.LDRODecoderOnlyModel(network, vocabulary, tiny_t5x.weighted())


@pytest.mark.parametrize("scan_layers", [False, True])
def test_losses_are_those_of_the_decoder(scan_layers):
    config, a_model = make(scan_layers)
    batch = tiny_t5x.batch(padding=False)
    variables = a_model.get_initial_variables(jax.random.PRNGKey(0), SHAPES)
    found, _ = a_model.row_losses(variables["params"], batch, None)
    params = meta.unbox(variables["params"]["decoder"])
    with jax.numpy_dtype_promotion("standard"):
        losses = config.apply({"params": params}, batch["decoder_target_tokens"])
    np.testing.assert_allclose(found, losses.sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_it_trains_on_a_mesh(scan_layers):
    _, a_model = make(scan_layers)
    parts = tiny_t5x.partitioning.PjitPartitioner(
        num_partitions=None, model_parallel_submesh=(1, 2, 1, 1), logical_axis_rules=RULES
    )
    a_trainer = tiny_t5x.make_trainer(a_model, parts=parts)
    embedding = a_trainer.train_state.params["decoder"]["embedding"]
    assert embedding.sharding.spec == jax.sharding.PartitionSpec("model", None)
    first = tiny_t5x.train(a_trainer, [tiny_t5x.batch()])["ldro/worst_loss"].value
    for _ in range(3):
        last = tiny_t5x.train(a_trainer, [tiny_t5x.batch()] * 5)["ldro/worst_loss"].value
    assert last < first


def test_it_can_not_decode():
    _, a_model = make(False)
    tokens = np.ones((2, 4), np.int32)
    params = a_model.get_initial_variables(jax.random.PRNGKey(0), SHAPES)["params"]
    with pytest.raises(NotImplementedError, match="Choose a network of T5X's own"):
        a_model.module.apply({"params": params}, tokens, tokens, decode=True)
