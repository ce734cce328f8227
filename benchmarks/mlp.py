"""The model that costs are measured on: a residual MLP of twelve layers, 12.6 MB of parameters."""

import jax
import jax.numpy as jnp

WIDTH = 512
DEPTH = 12


def init(key):
    """Parameters: a list of matrices [width, width]."""
    keys = jax.random.split(key, DEPTH)
    return [jax.random.normal(k, (WIDTH, WIDTH)) / WIDTH**0.5 for k in keys]


def loss_fn(params, task_batch):
    """Mean squared error of one task, whose batch is {"x": [example, width], "y": the same}."""
    x = task_batch["x"]
    for matrix in params:
        x = x + jax.nn.relu(x @ matrix) / DEPTH
    return jnp.mean((x - task_batch["y"]) ** 2)


def batch(key, num_tasks, examples):
    """A random batch [task, example, width]."""
    x, y = jax.random.normal(key, (2, num_tasks, examples, WIDTH))
    return {"x": x, "y": y}
