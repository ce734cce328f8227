"""A step of Flax NNX with task weights: running statistics, dropout, LoRA."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import pages

from ldro_jax import ldro
from ldro_jax.integrations import nnx as ldro_nnx

TASKS = 3


class Network(nnx.Module):
    def __init__(self, *, lora):
        rngs = nnx.Rngs(0)
        self.first, self.last = nnx.Linear(2, 4, rngs=rngs), nnx.Linear(4, 1, rngs=rngs)
        if lora:
            self.first = nnx.LoRA(2, 2, 4, base_module=self.first, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, inputs):
        return self.last(self.dropout(self.norm(self.first(inputs))))[:, 0]


def batch_of(key):
    x = jax.random.normal(jax.random.key(key), (12, 2))
    task = jnp.arange(12) % TASKS
    return {"x": x, "y": jnp.tanh(x[:, 0]) * (1 + task).astype("float32"), "task": task}


def task_losses(model, batch):
    errors = (model(batch["x"]) - batch["y"]) ** 2
    return ldro.Rows(errors, batch["task"]), {"mean": errors.mean()}


# LoRA's parameters are such as well.
FROZEN = nnx.All(nnx.Param, nnx.Not(nnx.LoRAParam))


def plain(tree):
    return nnx.to_pure_dict(nnx.state(tree, nnx.Not(nnx.RngKey)))


@pytest.mark.parametrize("kind", ["default", "L-DRO"])
@pytest.mark.parametrize("wrt", [nnx.Param, nnx.LoRAParam])
def test_steps_are_those_of_statistics(wrt, kind):
    """Against one forward pass whose losses, gradient and new state are handed over by hand."""
    rates = {} if kind == "default" else {"lookahead_lr": 0.1, "weight_lr": 0.5}
    make = functools.partial(ldro.transform, TASKS, interaction_interval=2, **rates)
    strategy = "split" if kind == "default" else "auto"

    @nnx.jit
    def ours(model, optimizer, batch):
        return ldro_nnx.update(optimizer, model, task_losses, batch, has_aux=True)

    @nnx.jit
    def by_hand(model, optimizer, batch):
        graph, params, rest = nnx.split(model, wrt, ...)

        def losses_fn(params):
            moved = nnx.merge(graph, params, jax.tree.map(jnp.copy, rest))
            losses, aux = task_losses(moved, batch)
            return losses, (aux, nnx.state(moved, nnx.Not(wrt)))

        given, (aux, after) = ldro.statistics(
            losses_fn, params, has_aux=True, num_tasks=TASKS, interaction=strategy
        )
        optimizer.update(model, None, **given)
        nnx.update(model, after)
        return given["losses"], aux

    ends = []
    for step in (ours, by_hand):
        model = Network(lora=wrt is nnx.LoRAParam)
        optimizer = nnx.Optimizer(model, optax.chain(make(), optax.sgd(0.1)), wrt=wrt)
        frozen = plain(nnx.state(model, FROZEN))
        given = [step(model, optimizer, batch_of(number)) for number in range(3)]
        ends.append((given, plain(model), plain(optimizer)))
        if wrt is nnx.LoRAParam:
            after = plain(nnx.state(model, FROZEN))
            jax.tree.map(np.testing.assert_array_equal, after, frozen)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), *ends)
    # Running statistics have moved, and the random stream was used once a step.
    assert np.abs(ends[0][1]["norm"]["mean"]).max() > 0
    counts = nnx.to_pure_dict(nnx.state(model, nnx.RngCount))
    assert 3 in {int(x) for x in jax.tree.leaves(counts)}


def given_step(losses_fn):
    tx = optax.chain(ldro.transform(TASKS, lookahead_lr=0.1, weight_lr=0.5), optax.sgd(0.1))
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    return model, optimizer, nnx.jit(lambda *x: ldro_nnx.update(x[0], x[1], losses_fn, *x[2:]))


def test_random_streams_among_the_arguments_move_on_once():
    if isinstance(jax.tree.leaves(nnx.Rngs(0))[0], nnx.Rngs):
        pytest.skip("before Flax 0.12 they aren't trees")

    def noisy(model, batch, rngs):
        noise = jax.random.normal(rngs.default(), batch["y"].shape)
        return ldro.Rows((model(batch["x"])[:, 0] - batch["y"] - noise) ** 2, batch["task"])

    model, optimizer, step = given_step(noisy)
    batch, rngs = batch_of(0), nnx.Rngs(5)
    expected = noisy(model, batch, nnx.Rngs(5)).means(TASKS)[0]
    np.testing.assert_allclose(step(optimizer, model, batch, rngs), expected, rtol=1e-5)
    assert int(jax.tree.leaves(nnx.state(rngs, nnx.RngCount))[0]) == 1
    np.testing.assert_allclose(ldro.losses(optimizer.opt_state), expected, rtol=1e-5)


def test_losses_are_those_of_the_step():
    """Those that aren't finite as well; an absent task has the last."""

    def losses_fn(model, batch):
        return ldro.Rows((model(batch["x"])[:, 0] - batch["y"]) ** 2, batch["task"])

    model, optimizer, step = given_step(losses_fn)
    first = step(optimizer, model, batch_of(0))
    batch = batch_of(1)
    absent = batch | {"task": jnp.where(batch["task"] == 1, -1, batch["task"])}
    second = step(optimizer, model, absent)
    assert second[1] == first[1] and second[0] != first[0]
    third = step(optimizer, model, batch | {"y": batch["y"].at[0].set(jnp.nan)})
    assert np.isnan(third[0]) and np.isfinite(third[1:]).all()
    assert np.isfinite(ldro.losses(optimizer.opt_state)).all()


def test_what_it_is_given_is_checked():
    model = Network(lora=False)
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    with pytest.raises(ValueError, match="optimizer must be an Optimizer, such as"):
        ldro_nnx.update(optax.sgd(0.1), model, task_losses, batch_of(0))
    with pytest.raises(ValueError, match="losses_fn must be a function"):
        ldro_nnx.update(optimizer, model, None, batch_of(0))
    # Without a weighting in the chain no weights are found.
    with pytest.raises(ValueError, match="Expected one WeightedState"):
        ldro_nnx.update(optimizer, model, task_losses, batch_of(0), has_aux=True)


def test_the_block_of_the_docs_runs():
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    names = {"model": model, "batch": batch_of(0), "ldro": ldro, "optax": optax}
    with jax.numpy_dtype_promotion("standard"):
        pages.run("trainers.md", "ldro_nnx.update", names)
    assert ldro.weights(names["optimizer"].opt_state).shape == (TASKS,)
