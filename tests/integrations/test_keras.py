"""Keras' fit with task weights: bash scripts/test_trainers.sh keras."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import pages

from ldro_jax import ldro

os.environ.setdefault("KERAS_BACKEND", "jax")
keras = pytest.importorskip("keras", reason="Keras isn't installed (scripts/test_trainers.sh)")

from ldro_jax.integrations import keras as ldro_keras  # noqa: E402

TASKS, ROWS = 3, 24
# bash scripts/test_trainers.sh runs the heavy ones.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.heavy]


@pytest.fixture(autouse=True)
def as_trainers_promote():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def data(rows=ROWS):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 2)).astype("float32")
    task = (np.arange(rows) % TASKS).astype("int32")
    y = (np.tanh(x[:, 0]) * (1 + task))[:, None].astype("float32")
    return {"inputs": x, "task": task}, y


def inner(*, normalised=False, frozen=False):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((2,)), keras.layers.Dense(8, "tanh")]
    if normalised:
        layers.append(keras.layers.BatchNormalization())
    model = keras.Sequential([*layers, keras.layers.Dense(1)])
    model.layers[0].trainable = not frozen
    return model


def made(optimizer, *, interval=1, model=None, **rates):
    rates = rates or {"lookahead_lr": 0.1, "weight_lr": 0.5}
    weighting = ldro.transform(TASKS, interaction_interval=interval, **rates)
    model = ldro_keras.Multitask(inner() if model is None else model, weighting)
    model.compile(optimizer=optimizer, loss="mse")
    return model


def values(model):
    return [np.asarray(v.value) for v in model.variables]


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_step_is_that_of_a_loop_of_jax_grad(frozen, weighed):
    x, y = data()
    sample_weight = np.random.default_rng(1).uniform(0.5, 2, ROWS).astype("float32")
    sample_weight = sample_weight if weighed else None
    plain = inner(frozen=frozen)
    begin = [v.value for v in plain.trainable_variables]
    others = [v.value for v in plain.non_trainable_variables]

    def loss(params, task):
        rows = x["task"] == task
        outputs, _ = plain.stateless_call(params, others, x["inputs"][rows])
        errors = (outputs - y[rows])[:, 0] ** 2
        return jnp.mean(errors if sample_weight is None else errors * sample_weight[rows])

    gradients = [jax.grad(loss)(begin, task) for task in range(TASKS)]
    flat = np.stack([jax.flatten_util.ravel_pytree(g)[0] for g in gradients])
    model = made(keras.optimizers.SGD(1.0), model=inner(frozen=frozen))
    model.fit(x, y, sample_weight=sample_weight, batch_size=ROWS, shuffle=False, verbose=0)
    state = model.weighting_state
    np.testing.assert_allclose(ldro.interaction(state), flat @ flat.T, rtol=2e-5, atol=1e-6)
    end = jax.flatten_util.ravel_pytree([v.value for v in model.trainable_variables])[0]
    moved = jax.flatten_util.ravel_pytree(begin)[0] - end
    np.testing.assert_allclose(moved, ldro.weights(state) @ flat, rtol=1e-4, atol=1e-6)
    assert np.ptp(ldro.weights(state)) > 1e-3


@pytest.mark.parametrize("interval", [1, 10])
def test_it_goes_on_from_saved_weights_to_the_bit(interval, tmp_path):
    """With running statistics. Dropout's masks are others, as in Keras without us."""
    x, y = data(48)

    def fit(model, epochs):
        model.fit(x, y, batch_size=12, epochs=epochs, shuffle=False, verbose=0)
        return model

    def new():
        sgd = keras.optimizers.SGD(0.1)
        return made(sgd, interval=interval, model=inner(normalised=True))

    whole = fit(new(), 2)
    fit(part := new(), 1).save_weights(tmp_path / "a.weights.h5")
    resumed = new()
    resumed.load_weights(tmp_path / "a.weights.h5")
    assert int(resumed.weighting_state.count) == int(part.weighting_state.count) == 4
    fit(resumed, 1)
    assert int(resumed.weighting_state.count) == 8
    for one, other in zip(values(whole), values(resumed), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_default_measures_noise_on_halves_of_the_batch():
    x, y = data()
    model = ldro_keras.Multitask(inner(), ldro.transform(TASKS))
    model.compile(optimizer="adam", loss="mse")
    model.fit(x, y, batch_size=ROWS, verbose=0)
    assert model.weighting_state.noise.min() > 0


def test_callbacks_metrics_and_evaluation_are_keras_own(tmp_path):
    x, y = data(48)
    model = made("adam")
    model.compile(optimizer="adam", loss="mse", metrics=["mae"])
    best = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.weights.h5", save_weights_only=True, save_best_only=True
    )
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(
            np.asarray(ldro.weights(model.weighting_state))
        )
    )
    fitted = model.fit(
        x, y, validation_data=(x, y), batch_size=12, epochs=3, callbacks=[best, watch], verbose=0
    )
    assert (tmp_path / "best.weights.h5").exists() and len(seen) == 3
    assert not np.allclose(seen[0], seen[2])
    loss, mae = model.evaluate(x, y, verbose=0)
    np.testing.assert_allclose(
        [loss, mae], [fitted.history[f"val_{k}"][-1] for k in ("loss", "mae")], rtol=1e-5
    )
    assert model.predict(x["inputs"], verbose=0).shape == (48, 1)


def test_an_absent_task_adds_no_gradient():
    x, y = data()
    model = made(keras.optimizers.SGD(0.1))
    rows = x["task"] != 1
    given = {name: value[rows] for name, value in x.items()}
    model.fit(given, y[rows], batch_size=int(rows.sum()), verbose=0)
    state = model.weighting_state
    assert state.seen.tolist() == [True, False, True]
    assert np.isfinite(values(model)[0]).all()


def test_computing_in_bfloat16_keeps_weights_in_float32():
    x, y = data()
    ends = []
    for policy in ("float32", "mixed_bfloat16"):
        keras.config.set_dtype_policy(policy)
        try:
            model = made(keras.optimizers.SGD(0.1))
            model.fit(x, y, batch_size=12, shuffle=False, verbose=0)
        finally:
            keras.config.set_dtype_policy("float32")
        ends.append(np.asarray(ldro.weights(model.weighting_state)))
        assert ends[-1].dtype == np.float32
    np.testing.assert_allclose(*ends, rtol=3e-2)


def test_on_several_devices_it_trains_the_same():
    x, y = data()
    ends = []
    for spread in (False, True):
        if spread:
            devices = keras.distribution.list_devices()[:4]
            keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices))
        try:
            model = made(keras.optimizers.SGD(0.1))
            model.fit(x, y, batch_size=12, epochs=2, shuffle=False, verbose=0)
            ends.append(values(model))
        finally:
            keras.distribution.set_distribution(None)
    for one, other in zip(*ends, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_an_output_without_sample_weights_has_its_own_rows_alone():
    x, y = data()
    keras.utils.set_random_seed(0)
    given = keras.Input((2,))
    model = keras.Model(given, {name: keras.layers.Dense(1, name=name)(given) for name in "ab"})
    outputs = {name: np.asarray(value) for name, value in model(x["inputs"]).items()}
    weights = np.random.default_rng(1).uniform(0.5, 2, ROWS).astype("float32")
    rows = weights * ((outputs["a"] - y) ** 2)[:, 0] + ((outputs["b"] - y) ** 2)[:, 0]
    model = made("sgd", model=model)
    model.compile(optimizer="sgd", loss={"a": "mse", "b": "mse"})
    both = {"a": y, "b": y}
    model.fit(x, both, sample_weight={"a": weights, "b": None}, batch_size=ROWS, verbose=0)
    expected = [rows[x["task"] == task].mean() for task in range(TASKS)]
    np.testing.assert_allclose(ldro.losses(model.weighting_state), expected, rtol=1e-5)


@pytest.mark.parametrize("length", [3, ROWS])
@pytest.mark.parametrize("weighed", [False, True])
def test_losses_of_tokens_are_those_of_their_rows(length, weighed):
    """As many tokens as rows as well, where one axis could be taken for the other."""
    x, _ = data()
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 4, (ROWS, length))
    weights = rng.uniform(0.5, 2, tokens.shape).astype("float32") if weighed else None
    layers = [keras.layers.Dense(4 * length), keras.layers.Reshape((length, 4))]
    model = keras.Sequential([keras.Input((2,)), *layers, keras.layers.Softmax()])
    each = -np.log(np.take_along_axis(np.asarray(model(x["inputs"])), tokens[..., None], 2))[..., 0]
    each = each if weights is None else each * weights
    model = made("sgd", model=model)
    model.compile(optimizer="sgd", loss="sparse_categorical_crossentropy")
    model.fit(x, tokens, sample_weight=weights, batch_size=ROWS, verbose=0)
    expected = [each[x["task"] == task].mean() for task in range(TASKS)]
    np.testing.assert_allclose(ldro.losses(model.weighting_state), expected, rtol=1e-5)


def test_masked_tokens_count_in_no_row():
    rng = np.random.default_rng(0)
    task = (np.arange(ROWS) % TASKS).astype("int32")
    is_real = np.arange(4) <= task[:, None]
    tokens, labels = rng.integers(1, 9, (ROWS, 4)) * is_real, rng.integers(0, 9, (ROWS, 4))
    given = keras.Input((4,), dtype="int32")
    hidden = keras.layers.Embedding(9, 8, mask_zero=True)(given)
    model = keras.Model(given, keras.layers.Dense(9, activation="softmax")(hidden))
    each = -np.log(np.take_along_axis(np.asarray(model(tokens)), labels[..., None], 2))[..., 0]
    model = made("sgd", model=model)
    model.compile(optimizer="sgd", loss="sparse_categorical_crossentropy")
    model.fit({"tokens": tokens, "task": task}, labels, batch_size=ROWS, verbose=0)
    rows = (each * is_real).sum(axis=1) / is_real.sum(axis=1).mean()
    expected = [rows[task == number].mean() for number in range(TASKS)]
    np.testing.assert_allclose(ldro.losses(model.weighting_state), expected, rtol=1e-5)


def test_losses_that_do_not_fall_apart_into_rows_are_refused():
    x, y = data()
    mean = lambda y, outputs: keras.ops.mean((y - outputs) ** 2)  # noqa: E731
    by_weight = keras.losses.MeanSquaredError(reduction="mean_with_sample_weight")
    for loss, message in {mean: "must give a number for each row", by_weight: "reduction"}.items():
        model = made("sgd")
        model.compile(optimizer="sgd", loss=loss)
        with pytest.raises(ValueError, match=message):
            model.fit(x, y, sample_weight=np.ones(ROWS), verbose=0)
    with pytest.raises(ValueError, match="no loss_scale_factor"):
        made(keras.optimizers.SGD(0.1, loss_scale_factor=8.0)).fit(x, y, verbose=0)


def test_what_does_not_fit_is_refused():
    x, y = data()
    with pytest.raises(ValueError, match="weighting must be a Weighted"):
        ldro_keras.Multitask(inner(), "group_dro")
    with pytest.raises(ValueError, match="model must be built first"):
        ldro_keras.Multitask(keras.Sequential([keras.layers.Dense(1)]), ldro.transform(TASKS))
    with pytest.raises(ValueError, match="fit needs x to be a dict with the task of each row"):
        made("adam").fit(x["inputs"], y, verbose=0)
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = made("adam")
        with pytest.raises(ValueError, match="Use the policy mixed_bfloat16"):
            model.fit(x, y, verbose=0)
    finally:
        keras.config.set_dtype_policy("float32")


def test_the_block_of_the_docs_runs():
    x, y = data()
    names = {"model": inner(), "ldro": ldro, "targets": y, **x}
    pages.run("trainers.md", "Multitask(model", names)
    assert names["weighted"].weighting_state.weights.shape == (TASKS,)
