"""Frozen parameters stay bit for bit, and no gradient of theirs counts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

tiny_t5x = pytest.importorskip(
    "helpers.tiny_t5x", reason="T5X is not installed (scripts/install_t5x.sh)", exc_type=ImportError
)
from ldro_jax.t5x import frozen  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
FROZEN = ("token_embedder/.*", "encoder/.*")
BATCHES = [tiny_t5x.pair_batch(seed) for seed in range(3)]


def model(optimizer, patterns=FROZEN):
    weighted = tiny_t5x.optimizer_lib.WeightedOptimizer(
        tiny_t5x.weighting(interaction_interval=1), optimizer, frozen=patterns
    )
    return tiny_t5x.make_model(weighted, tiny_t5x.model_lib.LDROEncoderDecoderModel)


def leaves(params):
    found, _ = jax.tree_util.tree_flatten_with_path(params)
    return {jax.tree_util.keystr(k, simple=True, separator="/"): np.asarray(v) for k, v in found}


def wrapped():
    # As T5X's own gin files have Optax's optimizers.
    return tiny_t5x.optimizers.adamw(0.01, weight_decay=0.1)


@pytest.mark.parametrize(
    "optimizer", [lambda: optax.adamw(0.01, weight_decay=0.1), wrapped, tiny_t5x.factored]
)
def test_frozen_parameters_stay_as_they_are(optimizer):
    a_trainer = tiny_t5x.make_trainer(model(optimizer()))
    before = leaves(a_trainer.train_state.params)
    tiny_t5x.train(a_trainer, BATCHES)
    after = leaves(a_trainer.train_state.params)
    for name, value in before.items():
        stays = name.startswith(("token_embedder/", "encoder/"))
        assert (value.tobytes() == after[name].tobytes()) == stays, name


def test_adam_keeps_no_moments_of_frozen_parameters():
    state = tiny_t5x.make_trainer(model(optax.adam(0.01))).train_state
    trained = jax.tree.leaves(frozen.trained(state.params, FROZEN))
    moments = [x for x in jax.tree.leaves(state.param_states["optimizer"]) if x.ndim]
    assert sum(x.size for x in moments) == 2 * sum(x.size for x in trained)
    # The others are where T5X's own checkpoints have them.
    cls = tiny_t5x.models.EncoderDecoderModel
    stock = tiny_t5x.make_model(tiny_t5x.optimizers.adam(0.01), cls)
    start = tiny_t5x.initializer(stock, tiny_t5x.partitioner())
    names = leaves(start.from_scratch(jax.random.PRNGKey(0)).state_dict()).keys()
    found = leaves(state.state_dict())
    ours = {name for name in found if not name.startswith("state/param_states/weighting/")}
    assert ours <= names
    assert {name.split("/")[4] for name in names - ours} == {"token_embedder", "encoder"}
    restored = state.restore_state(state.state_dict())
    assert jax.tree.structure(restored) == jax.tree.structure(state)


@pytest.mark.parametrize("microbatches", [None, 2])
def test_the_interaction_is_that_of_the_trained_parameters(microbatches):
    a_model = model(optax.sgd(0.1))
    a_trainer = tiny_t5x.make_trainer(a_model, num_microbatches=microbatches)
    params = jax.device_put(a_trainer.train_state.params, jax.devices()[0])
    rows = tiny_t5x.tasks_lib.unmarked(BATCHES[0])

    def task_losses(p):
        losses, _ = a_model.row_losses(p, rows, None)
        tokens = tiny_t5x.model_lib.token_weights(rows).sum(1)
        losses, tokens = (x.reshape(-1, tiny_t5x.N).sum(0) for x in (losses, tokens))
        return losses / tokens

    jacobian = leaves(jax.jacrev(task_losses)(params))
    matrices = {
        name: np.asarray(j).reshape(tiny_t5x.N, -1) @ np.asarray(j).reshape(tiny_t5x.N, -1).T
        for name, j in jacobian.items()
    }
    expected = sum(m for n, m in matrices.items() if not n.startswith(("token_emb", "encoder/")))
    assert np.abs(sum(matrices.values()) - expected).max() > 0.1 * np.abs(expected).max()
    tiny_t5x.train(a_trainer, BATCHES[:1])
    found = a_trainer.train_state.param_states["weighting"].interaction
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_summaries_of_weights_can_be_had():
    computer = tiny_t5x.t5x_trainer.WeightMetricsComputer()
    a_trainer = tiny_t5x.make_trainer(model(optax.sgd(0.1)), weight_metrics_computer=computer)
    summary = tiny_t5x.train(a_trainer, BATCHES[:1])
    name = "weight_gradient_rms/token_embedder/embedding"
    assert summary[name].value == 0 and summary["weight_gradient_norm"].value > 0


def test_what_is_frozen_must_be_there():
    def init(*patterns):
        params = {"a": {"kernel": jnp.ones(2)}, "b": jnp.ones(3)}
        tiny_t5x.optimizer_lib.WeightedOptimizer(
            tiny_t5x.weighting(), tiny_t5x.sgd(), frozen=patterns
        ).init_state(params)

    init("a/.*")
    with pytest.raises(ValueError, match="has 'a', which matches no parameter in full. .* a/kerne"):
        init("a", "b")
    with pytest.raises(ValueError, match="matches every parameter"):
        init("a/.*", "b")
    with pytest.raises(TypeError, match=r"is the text 'a/\.\*'. Bind it to \('a/\.\*',\)"):
        tiny_t5x.optimizer_lib.WeightedOptimizer(
            tiny_t5x.weighting(), tiny_t5x.sgd(), frozen="a/.*"
        )
