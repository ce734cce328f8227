"""Your own training loop, without the trainer: L-DRO chained before an Optax optimizer.

    python examples/own_loop.py

Two regressions with one network. The second is much noisier, so its loss can't become small.
"""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from ldro_jax import ldro

NUM_TASKS, ROWS = 2, 64


class Network(nn.Module):
    """One hidden layer, and an output for each task."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(NUM_TASKS)(nn.tanh(nn.Dense(32)(x)))


def batch(key):
    """Rows of each task, with a leading axis of tasks."""
    keys = jax.random.split(key)
    x = jax.random.uniform(keys[0], (NUM_TASKS, ROWS, 1), minval=-2, maxval=2)
    noise = jnp.array([0.1, 0.7])[:, None] * jax.random.normal(keys[1], (NUM_TASKS, ROWS))
    return {"task": jnp.arange(NUM_TASKS), "x": x, "y": jnp.sin(2 * x[..., 0]) + noise}


def loss_fn(params, rows):
    """The loss of one task."""
    outputs = network.apply({"params": params}, rows["x"])
    return jnp.mean((outputs[:, rows["task"]] - rows["y"]) ** 2)


network = Network()
weighting = ldro.transform(NUM_TASKS, lookahead_lr=0.1, weight_lr=0.1, interaction_interval=10)
optimizer = optax.chain(weighting, optax.adam(0.01))
params = network.init(jax.random.key(0), jnp.zeros((1, 1)))["params"]
state = optimizer.init(params)


@jax.jit
def step(params, state, rows):
    """One step; the transformation computes the gradients, so there are none to pass."""
    updates, state = optimizer.update(None, state, params, loss_fn=loss_fn, batch=rows)
    return optax.apply_updates(params, updates), state


for number in range(1, 501):
    params, state = step(params, state, batch(jax.random.fold_in(jax.random.key(1), number)))
    if number % 100 == 0:
        print(f"step {number}: losses {ldro.losses(state)}, weights {ldro.weights(state)}")
