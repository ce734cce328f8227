"""Kauldron's step with task weights: bash scripts/test_trainers.sh kauldron."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from helpers import pages

from ldro_jax import ldro

pytest.importorskip("kauldron", reason="Kauldron isn't installed (scripts/test_trainers.sh)")

from kauldron import kd, kontext

from ldro_jax.integrations import kauldron as ldro_kauldron

NAMES, ROWS = ("a", "b", "c"), 16
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(autouse=True)
def as_trainers_promote():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class Model(nn.Module):
    """A trunk and a head for each task."""

    x: kontext.Key = "batch.x"
    normalised: bool = False
    dtype: type = jnp.float32

    @nn.compact
    def __call__(self, x):
        hidden = nn.Dense(8, name="trunk", dtype=self.dtype)(x)
        if self.normalised:
            hidden = nn.BatchNorm(use_running_average=False, momentum=0.9)(hidden)
        hidden = nn.tanh(hidden)
        return {name: nn.Dense(1, name=name, dtype=self.dtype)(hidden) for name in NAMES}


def batch_of(seed=0, absent=()):
    x = np.random.default_rng(seed).normal(size=(ROWS, 2)).astype("float32")
    batch = {"x": x}
    for number, name in enumerate(NAMES):
        batch[name] = (1 + number) * np.tanh(x[:, :1])
        batch[f"{name}_mask"] = np.full((ROWS, 1), name not in absent, "float32")
    return batch


def trainer(tmp_path, tx, *, model=None, masked=False, **options):
    def loss(name):
        mask = {"mask": f"batch.{name}_mask"} if masked else {}
        return kd.losses.L2(preds=f"preds.{name}", targets=f"batch.{name}", **mask)

    return kd.train.Trainer(
        seed=0,
        train_ds=None,
        model=model or Model(),
        train_losses={name: loss(name) for name in NAMES},
        optimizer=tx,
        trainstep=ldro_kauldron.MultitaskStep(),
        train_metrics={"weights": ldro_kauldron.TaskWeights(names=NAMES)},
        num_train_steps=3,
        workdir=tmp_path,
        **options,
    )


def begun(made, batch):
    spec = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    return made.trainstep.init(spec)


def weighting(interval=1, **options):
    rates = {"lookahead_lr": 0.1, "weight_lr": 0.5, "interaction_interval": interval}
    return ldro.transform(len(NAMES), **rates, **options)


def flat(tree):
    return np.asarray(jax.flatten_util.ravel_pytree(tree)[0])


@pytest.mark.parametrize("spread", ["rows", "rows and parameters"])
@pytest.mark.parametrize("trunk_alone", [False, True])
def test_a_step_is_that_of_a_loop_of_jax_grad(tmp_path, spread, trunk_alone):
    """On eight devices. Frozen by a mask behind the weighting, which is told of it."""
    batch = batch_of()
    options, after = {}, optax.sgd(1.0)
    if trunk_alone:
        mask = {
            name: jax.tree.map(lambda _: name == "trunk", {"kernel": 0, "bias": 0})  # noqa: B023
            for name in ("trunk", *NAMES)
        }
        options = {"trainable": mask}
        frozen = jax.tree.map(lambda x: not x, mask)
        after = optax.chain(after, optax.masked(optax.set_to_zero(), frozen))
    more = {}
    if spread == "rows and parameters":
        more = {"sharding": kd.sharding.ShardingStrategy(params=kd.sharding.FSDPSharding())}
    made = trainer(tmp_path, optax.chain(weighting(shared=True, **options), after), **more)
    state = begun(made, batch)
    begin = jax.tree.map(np.asarray, state.params)

    def loss(params, name):
        return jnp.mean((Model().apply({"params": params}, batch["x"])[name] - batch[name]) ** 2)

    gradients = [jax.grad(loss)(begin, name) for name in NAMES]
    if trunk_alone:
        gradients = [{"trunk": g["trunk"]} for g in gradients]
    matrix = np.stack([flat(g) for g in gradients])
    state, aux = made.trainstep.step(state, batch, return_losses=True, return_metrics=True)
    np.testing.assert_allclose(
        ldro.interaction(state.opt_state), matrix @ matrix.T, rtol=1e-4, atol=1e-6
    )
    w = np.asarray(ldro.weights(state.opt_state))
    assert np.ptp(w) > 1e-3
    moved = jax.tree.map(lambda x, y: x - np.asarray(y), begin, state.params)
    if trunk_alone:
        assert max(np.abs(flat(moved[name])).max() for name in NAMES) == 0
        moved = {"trunk": moved["trunk"]}
    np.testing.assert_allclose(flat(moved), w @ matrix, rtol=1e-4, atol=1e-6)
    # The metric has the weights of this step.
    logged = aux.compute().metric_values
    np.testing.assert_allclose([logged[f"metrics/weights/{n}"] for n in NAMES], w, rtol=1e-6)


def test_steps_of_an_interval_and_running_statistics(tmp_path):
    made = trainer(
        tmp_path, optax.chain(weighting(10), optax.adam(1e-2)), model=Model(normalised=True)
    )
    state = begun(made, batch_of())
    begin = jax.tree.map(np.asarray, state.collections)
    first = None
    for number in range(4):
        state, _ = made.trainstep.step(state, batch_of(number))
        matrix = np.asarray(ldro.interaction(state.opt_state))
        first = matrix if first is None else first
        np.testing.assert_array_equal(matrix, first)
    assert int(state.step) == 4
    moved = jax.tree.map(lambda x, y: np.abs(x - np.asarray(y)).max(), begin, state.collections)
    assert max(jax.tree.leaves(moved)) > 0


def test_it_goes_on_from_a_saved_state_to_the_bit(tmp_path):
    made = trainer(tmp_path, optax.chain(weighting(3), optax.adam(1e-2)))

    def steps(state, numbers):
        for number in numbers:
            state, _ = made.trainstep.step(state, batch_of(number))
        return state

    whole = steps(begun(made, batch_of()), range(6))
    half = steps(begun(made, batch_of()), range(3))
    kept = jax.tree.map(np.asarray, half)
    again = steps(jax.tree.map(jnp.asarray, kept), range(3, 6))
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), whole, again
    )


def test_a_task_whose_mask_is_empty_is_absent(tmp_path):
    """Kauldron's own mean is then 0.0."""
    made = trainer(tmp_path, optax.chain(weighting(), optax.sgd(0.1)), masked=True)
    state, _ = made.trainstep.step(begun(made, batch_of()), batch_of())
    before = np.asarray(ldro.losses(state.opt_state))
    head = flat(state.params["b"])
    state, _ = made.trainstep.step(state, batch_of(1, absent="b"))
    after = np.asarray(ldro.losses(state.opt_state))
    assert after[1] == before[1] and after[0] != before[0]
    np.testing.assert_array_equal(flat(state.params["b"]), head)


def test_computing_in_bfloat16_keeps_weights_in_float32(tmp_path):
    ends = []
    for dtype in (jnp.float32, jnp.bfloat16):
        tx = optax.chain(weighting(), optax.sgd(0.1))
        made = trainer(tmp_path, tx, model=Model(dtype=dtype))
        state, _ = made.trainstep.step(begun(made, batch_of()), batch_of())
        ends.append(np.asarray(ldro.weights(state.opt_state)))
        assert ends[-1].dtype == np.float32
    np.testing.assert_allclose(*ends, rtol=2e-2)


def test_as_many_tasks_as_losses(tmp_path):
    for tx, message in {
        ldro.transform(2, lookahead_lr=0.1, weight_lr=0.5): "has 2 tasks, but train_losses are 3",
        optax.identity(): "Expected one WeightedState",
    }.items():
        made = trainer(tmp_path, optax.chain(tx, optax.sgd(0.1)))
        with pytest.raises(ValueError, match=message):
            made.trainstep.step(begun(made, batch_of()), batch_of())


def test_the_block_of_the_docs_runs(tmp_path):
    losses = {n: kd.losses.L2(preds=f"preds.{n}", targets=f"batch.{n}") for n in NAMES}
    names = {
        **{"kd": kd, "ldro": ldro, "optax": optax, "losses": losses},
        **{"model": Model(), "train_ds": None, "workdir": tmp_path},
    }
    made = pages.run("trainers.md", "kauldron.MultitaskStep()", names)["trainer"]
    kept = {"return_losses": True, "return_metrics": True}
    state, aux = made.trainstep.step(begun(made, batch_of()), batch_of(), **kept)
    assert len(aux.compute().metric_values) == len(NAMES)
    assert ldro.weights(state.opt_state).shape == (len(NAMES),)
