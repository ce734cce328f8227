"""The methods that compute weights from the Gram matrix, and gradients to try them on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from weighting import test_battery

from ldro_jax.weighting import about, base

N = 8
# Matrices at once, the same in all tests, so that each method is compiled once for them.
CASES = 6
# Their weights are a function of the Gram matrix: those of the family, and others like them.
NAMES = sorted(
    test_battery.named(lambda a: a.family == about.GRADIENTS)
    | {"clipped", "db_mtl", "normalized_gradients", "rescaled"}
)
RANDOM = test_battery.RANDOM & set(NAMES)


def gradients(seed, num_tasks=N, *, spread=0.0, dims=None):
    """``[N, D]``, in float32's numbers; lengths over so many powers of ten, both ends among them.

    In every other case there is a direction in common, and in every third there are few others.
    """
    rng = np.random.default_rng(seed)
    dims = dims or (num_tasks + 1 if seed % 3 == 2 else 3 * num_tasks)
    rows = rng.normal(size=(num_tasks, dims)) + 0.3 * (seed % 2) * rng.normal(size=dims)
    exponents = rng.permutation(np.r_[-spread, 0, rng.uniform(-spread, 0, num_tasks - 2)])
    rows *= (10**exponents / np.linalg.norm(rows, axis=1))[:, None]
    return rows.astype(np.float32).astype(np.float64)


def losses(num_tasks=N):
    return np.random.default_rng(9).uniform(1, 2, num_tasks)


@functools.cache
def _compiled(name):
    method = test_battery.WEIGHTINGS[name](test_battery.ORDER)
    return method, jax.jit(jax.vmap(method.update))


@functools.cache
def alone(name):
    """A method, compiled for one matrix, and a function that makes its statistics in float32."""
    method = test_battery.WEIGHTINGS[name](test_battery.ORDER)

    def statistics(matrix, losses, *, known=(True,) * N, count=0):
        return base.Statistics(
            jnp.int32(count), jnp.float32(losses), jnp.float32(matrix), known=jnp.array(known)
        )

    return method._replace(update=jax.jit(method.update)), statistics


def first_weights(name, matrices, all_losses, dtype="float32", known=None):
    """A method's weights for several Gram matrices, ``[cases, N]``, and its state after them."""
    method, update = _compiled(name)
    count, num_tasks = np.shape(all_losses)
    if known is None:
        known = np.ones((count, num_tasks), bool)
    states = jax.vmap(lambda _: method.init(num_tasks, jnp.dtype(dtype)))(jnp.arange(count))
    statistics = base.Statistics(
        jnp.zeros(count, jnp.int32),
        jnp.asarray(all_losses, dtype),
        jnp.asarray(matrices, dtype),
        known=jnp.asarray(known),
    )
    weights, states = update(statistics, states)
    return np.asarray(weights, np.float64), states
