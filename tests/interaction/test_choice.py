"""Which strategy is chosen, from shapes alone."""

import jax
import jax.numpy as jnp
import pytest
from helpers import problems

from ldro_jax import interaction
from ldro_jax.models import convolution


def shapes(*sizes):
    return {str(i): jax.ShapeDtypeStruct((size,), jnp.float32) for i, size in enumerate(sizes)}


def loss_fn(params, task):
    return sum(jnp.sum(p) for p in params.values()) * jnp.mean(task)


def batch(num_tasks):
    return jax.ShapeDtypeStruct((num_tasks, 4), jnp.float32)


@pytest.mark.parametrize(
    "params, num_tasks, expected",
    [
        # Small models fit whatever they look like: 100 gradients of 1 MB are below 1 GiB.
        (shapes(2**18), 100, "vmap"),
        # 400 MB in many leaves: 20 gradients of one leaf, 800 MB, are less than 8 models.
        (shapes(*[10**7] * 10), 20, "vmap"),
        # The same in one leaf is 8 GB.
        (shapes(10**8), 20, "tiled"),
        # Few tasks: 8 gradients of the one leaf are just the limit.
        (shapes(10**8), 8, "vmap"),
        (shapes(10**8), 9, "tiled"),
    ],
)
def test_memory_decides(params, num_tasks, expected):
    assert interaction.choose(loss_fn, params, batch(num_tasks)) == expected


def convolutional():
    """With gradients that are fast in a loop on CPU."""
    return problems.convolutional(convolve=convolution.conv3x3)


def test_convolutions_on_cpu_go_one_by_one():
    assert interaction.choose(*convolutional()) == "scan"
    assert interaction.choose(*problems.transformer()) == "vmap"


def test_convolutions_that_are_slow_in_a_loop_on_cpu_go_side_by_side():
    assert interaction.choose(*problems.convolutional()) == "vmap"


def test_convolutions_inside_other_transformations_count():
    problem = convolutional()
    hidden = problem._replace(loss_fn=jax.checkpoint(jax.jit(problem.loss_fn)))
    assert interaction.choose(*hidden) == "scan"


def test_large_convolutions_do_not():
    problem = convolutional()
    # 2 GiB for each task: neither N gradients nor N of the largest leaf fit.
    params = {
        "kernel": jax.ShapeDtypeStruct((3, 3, 2, 4), jnp.float32),
        "w": jax.ShapeDtypeStruct((64, 2**23), jnp.float32),
    }
    many = jax.tree.map(lambda x: jax.ShapeDtypeStruct((9, *x.shape[1:]), x.dtype), problem.batch)

    def wide_loss_fn(params, task):
        return problem.loss_fn(params | {"w": params["w"][:, 0]}, task)

    assert interaction.choose(wide_loss_fn, params, many) == "tiled"


def test_other_backends_convolve_side_by_side(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert interaction.choose(*convolutional()) == "vmap"


def scanned(params, task):
    return jnp.mean(jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), task, params["w"])[0])


@pytest.mark.parametrize(
    "width, expected", [(64, "layerwise"), (2**13, "layerwise"), (2**14, "tiled")]
)
def test_scanned_layers_count_one_by_one(width, expected):
    # Of 10 layers of 2^14 squared, 100 gradients of one are more than 8 models.
    params = {"w": jax.ShapeDtypeStruct((10, width, width), jnp.float32)}
    num_tasks = 100 if expected == "tiled" else 20
    rows = jax.ShapeDtypeStruct((num_tasks, 4, width), jnp.float32)
    assert interaction.choose(scanned, params, rows) == expected


def test_scans_of_other_things_are_no_layers():
    def loss(params, task):
        return jnp.sum(jax.lax.scan(lambda total, x: (total + x @ params, None), 0.0, task)[0])

    assert interaction.choose(loss, jnp.ones(4), jnp.ones((3, 5, 4))) == "vmap"


def test_an_unknown_name_lists_the_known_ones():
    known = "auto, columns, jacrev, layerwise, offload, scan, tiled, vmap"
    with pytest.raises(
        ValueError, match=f"interaction must be an Interaction or one of {known}, .* 'vmpa'"
    ):
        interaction.get("vmpa")


def test_an_interaction_is_taken_as_it_is():
    strategy = interaction.tiled(2)
    assert interaction.get(strategy) is strategy
