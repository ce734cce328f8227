import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from ldro_jax import transform, weighting

tiny_t5x = pytest.importorskip(
    "helpers.tiny_t5x", reason="T5X is not installed (scripts/install_t5x.sh)", exc_type=ImportError
)
pytestmark = pytest.mark.filterwarnings("ignore")
OPTIMIZERS = {
    "sgd": tiny_t5x.sgd,
    "adam": lambda: optax.adam(optax.linear_schedule(0.1, 0.2, 3)),
    "adafactor": tiny_t5x.factored,
}


def start(optimizer, tx=None):
    tx = tiny_t5x.weighting() if tx is None else tx
    a_model = tiny_t5x.make_model(tiny_t5x.optimizer_lib.WeightedOptimizer(tx, optimizer))
    found = tiny_t5x.initializer(a_model, tiny_t5x.partitioner())
    return found, found.from_scratch(jax.random.PRNGKey(0))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_is_restored_exactly(name):
    _, state = start(OPTIMIZERS[name]())
    # Other values than those it begins with, of the same dtypes.
    saved = jax.tree.map(lambda x: np.asarray(x) + np.ones((), x.dtype), state.state_dict())
    restored = state.restore_state(saved)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    again = restored.state_dict()
    jax.tree.map(np.testing.assert_array_equal, again, saved)
    assert [x.dtype for x in jax.tree.leaves(again)] == [
        x.dtype for x in jax.tree.leaves(state.state_dict())
    ]


def test_a_weighting_without_state_is_restored_too():
    _, state = start(tiny_t5x.sgd(), transform.weighted(weighting.average(), tiny_t5x.N))
    assert "weighting" not in state.state_dict()["state"]["param_states"]["weighting"]
    restored = state.restore_state(state.state_dict())
    assert jax.tree.structure(restored) == jax.tree.structure(state)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_weighting_lies_on_every_device_and_the_rest_as_ever(name):
    optimizer = OPTIMIZERS[name]()
    found, state = start(optimizer)
    axes = found.train_state_axes.param_states
    for leaf, spec in zip(
        jax.tree.leaves(state.param_states["weighting"]),
        jax.tree.leaves(axes["weighting"], is_leaf=lambda x: isinstance(x, PartitionSpec)),
        strict=True,
    ):
        assert spec == PartitionSpec(*[None] * leaf.ndim)
    stock = tiny_t5x.make_model(
        tiny_t5x.optimizers.OptaxWrapper(optimizer) if name != "adafactor" else tiny_t5x.factored(),
        tiny_t5x.models.DecoderOnlyModel,
    )
    expected = tiny_t5x.initializer(stock, tiny_t5x.partitioner()).train_state_axes.param_states
    # What T5X leaves open is on every device as well.
    same = jax.tree.map(
        lambda leaf, ours, theirs: ours == theirs or (theirs is None and not any(ours)),
        state.param_states["optimizer"],
        axes["optimizer"],
        expected,
    )
    assert all(jax.tree.leaves(same)) and found.train_state_axes.step == PartitionSpec()


def test_a_state_without_weights_is_refused():
    _, state = start(tiny_t5x.sgd())
    saved = state.state_dict()
    del saved["state"]["param_states"]["weighting"]
    with pytest.raises(ValueError, match="without L-DRO: .* another MODEL_DIR. .*warm_start"):
        state.restore_state(saved)


@pytest.mark.parametrize(
    "given", ["lookahead_online", None, tiny_t5x.weighting, optax.chain(tiny_t5x.weighting())]
)
def test_a_weighting_that_is_none_is_refused(given):
    with pytest.raises(TypeError, match="must be a transformation .* Bind it to @ldro"):
        tiny_t5x.optimizer_lib.WeightedOptimizer(given, tiny_t5x.sgd())


def test_a_weighting_that_is_no_transformation_yet_is_refused():
    with pytest.raises(TypeError, match="but it is a Weighting. Bind it to @transform.weighted()"):
        tiny_t5x.optimizer_lib.WeightedOptimizer(weighting.average(), tiny_t5x.sgd())


@pytest.mark.parametrize("given", ["adam", None, optax.adam])
def test_an_optimizer_that_is_none_is_refused(given):
    with pytest.raises(TypeError, match="of Optax or T5X, but it is .* ldro_jax.optimizers.adam"):
        tiny_t5x.optimizer_lib.WeightedOptimizer(tiny_t5x.weighting(), given)


def test_a_plain_gradient_is_refused():
    _, state = start(tiny_t5x.sgd())
    with pytest.raises(TypeError, match="Train with ldro_jax.t5x.trainer.LDROTrainer"):
        state.apply_gradient(state.params, learning_rate=0.1)
