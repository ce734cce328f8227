"""Training steps inside T5X are those of a plain loop over the same statistics."""

import jax
import numpy as np
import optax
import pytest

from ldro_jax import ldro, transform, weighting

tiny_t5x = pytest.importorskip(
    "helpers.tiny_t5x", reason="T5X is not installed (scripts/install_t5x.sh)", exc_type=ImportError
)
pytestmark = pytest.mark.filterwarnings("ignore")
PAIRS = tiny_t5x.model_lib.LDROEncoderDecoderModel
N, STEPS = tiny_t5x.N, 5
BATCHES = [tiny_t5x.batch(seed) for seed in range(STEPS)]


@pytest.mark.parametrize("model_parallel", [1, 2])
def test_steps_are_those_of_a_plain_loop(model_parallel):
    a_trainer = tiny_t5x.make_trainer(
        tiny_t5x.make_model(tiny_t5x.weighted()), parts=tiny_t5x.partitioner(model_parallel)
    )
    tiny_t5x.train(a_trainer, BATCHES)
    expected = tiny_t5x.plain_loop(tiny_t5x.weighting(), tiny_t5x.sgd(), BATCHES)
    assert np.ptp(expected[1].weights) > 0.05
    tiny_t5x.assert_same(a_trainer.train_state, expected)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("microbatches", [None, 2])
def test_steps_of_an_encoder_decoder_are_those_of_a_plain_loop(packed, microbatches):
    batches = [tiny_t5x.pair_batch(seed, packed=packed) for seed in range(STEPS)]
    a_trainer = tiny_t5x.make_trainer(
        tiny_t5x.make_model(tiny_t5x.weighted(), PAIRS), num_microbatches=microbatches
    )
    tiny_t5x.train(a_trainer, batches)
    expected = tiny_t5x.plain_loop(tiny_t5x.weighting(), tiny_t5x.sgd(), batches)
    assert np.ptp(expected[1].weights) > 0.05
    tiny_t5x.assert_same(a_trainer.train_state, expected)


@pytest.mark.parametrize("microbatches", [2, 4])
def test_microbatches_are_exact(microbatches):
    # 2 rows of the last microbatches have other numbers of tokens than the first ones.
    a_trainer = tiny_t5x.make_trainer(
        tiny_t5x.make_model(tiny_t5x.weighted()), num_microbatches=microbatches
    )
    summary = tiny_t5x.train(a_trainer, BATCHES)
    expected = tiny_t5x.plain_loop(tiny_t5x.weighting(), tiny_t5x.sgd(), BATCHES)
    tiny_t5x.assert_same(a_trainer.train_state, expected)
    whole = tiny_t5x.make_trainer(tiny_t5x.make_model(tiny_t5x.weighted()))
    expected = tiny_t5x.train(whole, BATCHES)
    for name in ("loss", "accuracy", "loss_per_nonpadding_target_token", "ldro/loss/fr"):
        np.testing.assert_allclose(summary[name].value, expected[name].value, rtol=1e-5)


@pytest.mark.parametrize("strategy", ["vmap", "tiled"])
def test_other_strategies_measure_the_same(strategy):
    a_trainer = tiny_t5x.make_trainer(
        tiny_t5x.make_model(tiny_t5x.weighted()), interaction=strategy
    )
    tiny_t5x.train(a_trainer, BATCHES)
    expected = tiny_t5x.plain_loop(tiny_t5x.weighting(), tiny_t5x.sgd(), BATCHES)
    tiny_t5x.assert_same(a_trainer.train_state, expected)


def test_rows_of_a_task_that_the_devices_do_not_divide_count_once():
    # 3 rows of each task over 8 devices.
    batches = [tiny_t5x.batch(seed, rows=24) for seed in range(2)]
    batches = [jax.tree.map(lambda x: np.concatenate([x[:8], x[:16]]), b) for b in batches]
    a_trainer = tiny_t5x.make_trainer(
        tiny_t5x.make_model(tiny_t5x.weighted()), parts=tiny_t5x.partitioner(1), rows=24
    )
    tiny_t5x.train(a_trainer, batches)
    expected = tiny_t5x.plain_loop(tiny_t5x.weighting(), tiny_t5x.sgd(), batches)
    tiny_t5x.assert_same(a_trainer.train_state, expected)


def test_averaging_is_what_t5x_does_itself():
    batches = [tiny_t5x.batch(seed, padding=False) for seed in range(STEPS)]
    tokens = tiny_t5x.ROWS * tiny_t5x.LENGTH
    average = transform.weighted(weighting.average(), N)
    ours = tiny_t5x.make_trainer(
        tiny_t5x.make_model(tiny_t5x.optimizer_lib.WeightedOptimizer(average, tiny_t5x.sgd()))
    )
    # T5X's loss is a sum over tokens.
    optimizer = tiny_t5x.optimizers.OptaxWrapper(optax.sgd(tiny_t5x.LEARNING_RATE / tokens))
    theirs = tiny_t5x.stock(optimizer)
    found, expected = (tiny_t5x.train(t, batches) for t in (ours, theirs))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6),
        ours.train_state.params,
        theirs.train_state.params,
    )
    for name in expected.keys() - {key for key in expected if key.startswith("timing/")}:
        np.testing.assert_allclose(found[name].value, expected[name].value, rtol=1e-4)


@pytest.mark.parametrize("optimizer", [lambda: optax.adam(0.01), tiny_t5x.factored])
def test_other_optimizers_train(optimizer):
    a_trainer = tiny_t5x.make_trainer(tiny_t5x.make_model(tiny_t5x.weighted(optimizer())))
    first = tiny_t5x.train(a_trainer, BATCHES[:1])["ldro/worst_loss"].value
    for _ in range(3):
        last = tiny_t5x.train(a_trainer, BATCHES)
    assert last["ldro/worst_loss"].value < first - 0.1
    assert a_trainer.train_state.step == 1 + 3 * STEPS


def test_summaries_name_the_tasks():
    a_trainer = tiny_t5x.make_trainer(
        tiny_t5x.make_model(tiny_t5x.weighted(interaction_interval=1))
    )
    summary = tiny_t5x.train(a_trainer, BATCHES[:1])
    state = a_trainer.train_state.param_states["weighting"]
    weights = BATCHES[0]["decoder_loss_weights"].reshape(-1, N, tiny_t5x.LENGTH).sum((0, 2))
    for index, name in enumerate(tiny_t5x.NAMES):
        for kind, expected in [
            ("weight", state.weights[index]),
            ("loss", state.losses[index]),
            ("token_share", weights[index] / weights.sum()),
            ("nonfinite_losses", 0),
            ("unmeasured_interactions", 0),
        ]:
            np.testing.assert_allclose(summary[f"ldro/{kind}/{name}"].value, expected, rtol=1e-6)
    assert summary["ldro/unsolved_steps"].value == 0
    assert summary["ldro/worst_task"].value == tiny_t5x.NAMES[int(state.losses.argmax())]
    np.testing.assert_allclose(summary["ldro/worst_loss"].value, state.losses.max(), rtol=1e-6)
    norms = np.sqrt(np.diagonal(state.interaction))
    ahead = state.losses - 0.5 * (state.interaction / norms) @ state.weights
    np.testing.assert_allclose(summary["ldro/expected_worst_loss"].value, ahead.max(), rtol=1e-5)


@pytest.mark.parametrize("name", sorted(weighting.METHODS))
def test_every_weighting_trains(name):
    tx = transform.weighted(weighting.create(name, weighting.usual(name, N)), N)
    optimizer = tiny_t5x.optimizer_lib.WeightedOptimizer(tx, tiny_t5x.sgd())
    # Two methods ask for halves of the rows.
    halved = weighting.outline(name, weighting.usual(name, N)).default_interaction == "split"
    options = {"interaction": "split"} if halved else {}
    a_trainer = tiny_t5x.make_trainer(tiny_t5x.make_model(optimizer), **options)
    tiny_t5x.train(a_trainer, BATCHES[:2])
    expected = tiny_t5x.plain_loop(tx, tiny_t5x.sgd(), BATCHES[:2])
    tiny_t5x.assert_same(a_trainer.train_state, expected)


def test_what_does_not_fit_is_refused():
    a_model = tiny_t5x.make_model(tiny_t5x.weighted())
    with pytest.raises(ValueError, match="4 tasks, but the data has 3: ar, fr, ru"):
        tiny_t5x.make_trainer(a_model, task_names=tiny_t5x.NAMES[:3])
    with pytest.raises(TypeError, match="MODEL is a DecoderOnlyModel"):
        tiny_t5x.make_trainer(
            tiny_t5x.make_model(tiny_t5x.weighted(), tiny_t5x.models.DecoderOnlyModel)
        )
    with pytest.raises(TypeError, match="OPTIMIZER is a OptaxWrapper"):
        tiny_t5x.make_trainer(tiny_t5x.make_model(tiny_t5x.optimizers.OptaxWrapper(tiny_t5x.sgd())))
    save = tiny_t5x.utils.SaveCheckpointConfig(dtype="bfloat16")
    with pytest.raises(ValueError, match="must be 'float32', but it is 'bfloat16'"):
        tiny_t5x.make_trainer(a_model, checkpoint_cfg=tiny_t5x.utils.CheckpointConfig(save=save))
    with pytest.raises(ValueError, match="interaction must measure the matrix in T5X"):
        tiny_t5x.make_trainer(tiny_t5x.make_model(tiny_t5x.weighted()), interaction="products")
    with pytest.raises(ValueError, match="interaction must measure the matrix in T5X"):
        tiny_t5x.make_trainer(tiny_t5x.make_model(tiny_t5x.weighted(interaction="products")))
    with pytest.raises(ValueError, match="multiple of the 3 microbatches, but it is 16"):
        tiny_t5x.train(tiny_t5x.make_trainer(a_model, num_microbatches=3), BATCHES[:1])


def test_a_loss_that_is_not_finite_changes_nothing():
    a_trainer = tiny_t5x.make_trainer(tiny_t5x.make_model(tiny_t5x.weighted()))
    tiny_t5x.train(a_trainer, BATCHES[:1])
    before = jax.tree.map(np.asarray, a_trainer.train_state.params)
    weights = np.asarray(ldro.weights(a_trainer.train_state.param_states["weighting"]))
    broken = dict(BATCHES[1])
    broken["decoder_loss_weights"] = broken["decoder_loss_weights"].astype(np.float32)
    broken["decoder_loss_weights"][1, 0] = np.nan
    a_trainer._compiled_train_step = None
    summary = tiny_t5x.train(a_trainer, [broken])
    jax.tree.map(np.testing.assert_array_equal, before, a_trainer.train_state.params)
    np.testing.assert_array_equal(
        weights, ldro.weights(a_trainer.train_state.param_states["weighting"])
    )
    assert summary["ldro/nonfinite_losses/fr"].value == 1
    assert summary["ldro/nonfinite_losses/ar"].value == 0
