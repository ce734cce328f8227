"""Tiny multitask problems: a loss, parameters and a task-major batch, and how to train on them."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ldro_jax import interaction

FORMS = ["tasks", "layout", "forward", "stacked"]


class Problem(NamedTuple):
    """`loss_fn(params, task_batch) -> scalar`, and where to evaluate it."""

    loss_fn: Callable[[Any, Any], jax.Array]
    params: Any
    batch: Any

    def losses(self, params):
        return jax.vmap(self.loss_fn, in_axes=(None, 0))(params, self.batch)


def _normal(seed, dtype, *shapes, scale=1.0):
    # NumPy, so that float32 and float64 are the same numbers.
    generator = np.random.default_rng(seed)
    return [jnp.asarray(scale * generator.standard_normal(shape), dtype) for shape in shapes]


def _made_once(make):
    """The same problem again where it is asked for again, so that its programs are, too."""

    @functools.cache
    def made(x64, args, options):
        # Others get it too, so that it mustn't belong to the program that asks first.
        with jax.ensure_compile_time_eval():
            return make(*args, **dict(options))

    @functools.wraps(make)
    def found(*args, **options):
        return made(jax.config.jax_enable_x64, args, tuple(options.items()))

    return found


@_made_once
def least_squares(dtype=jnp.float32, *, num_tasks=3):
    """Linear regression, whose gradients have a closed form; see `least_squares_oracle`."""
    x, y, w = _normal(0, dtype, (num_tasks, 8, 4), (num_tasks, 8), (4,))
    # Tasks of different difficulty, so that the worst task stands out.
    y = y * jnp.arange(1, num_tasks + 1, dtype=dtype)[:, None]

    def loss_fn(params, task):
        return jnp.mean((task["x"] @ params["w"] - task["y"]) ** 2)

    return Problem(loss_fn, {"w": w}, {"x": x, "y": y})


def least_squares_oracle(problem):
    """`w -> (losses, gradients)` of `least_squares` in NumPy."""
    x, y = (np.asarray(problem.batch[name], np.float64) for name in "xy")

    def losses_and_gradients(w):
        residuals = np.einsum("nbd,d->nb", x, w) - y
        return np.mean(residuals**2, 1), 2 * np.einsum("nb,nbd->nd", residuals, x) / x.shape[1]

    return losses_and_gradients


@_made_once
def mlp(dtype=jnp.float32, *, num_tasks=5, num_examples=8):
    """A shared hidden layer and a head for each task, whose gradient is zero for the others."""
    x, y, w, b, heads = _normal(
        1,
        dtype,
        (num_tasks, num_examples, 4),
        (num_tasks, num_examples),
        (4, 8),
        (8,),
        (num_tasks, 8),
    )

    def loss_fn(params, task):
        hidden = jnp.tanh(task["x"] @ params["w"] + params["b"][None, :])
        return jnp.mean((hidden @ params["heads"][task["task"]] - task["y"]) ** 2)

    batch = {"x": x, "y": y, "task": jnp.arange(num_tasks, dtype=jnp.int32)}
    return Problem(loss_fn, {"w": w, "b": b, "heads": heads}, batch)


def tied(dtype=jnp.float32, *, num_tasks=5):
    """An autoencoder that uses one matrix twice."""
    x, w = _normal(2, dtype, (num_tasks, 8, 6), (6, 3))

    def loss_fn(params, task):
        return jnp.mean((jnp.tanh(task @ params) @ params.T - task) ** 2)

    return Problem(loss_fn, w, x)


def _plain_convolution(x, kernel):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)


def convolutional(dtype=jnp.float32, *, num_tasks=5, convolve=_plain_convolution):
    """One convolution, pooling and a linear layer."""
    x, y, kernel, w = _normal(
        3, dtype, (num_tasks, 4, 8, 8, 2), (num_tasks, 4), (3, 3, 2, 4), (64,)
    )

    def loss_fn(params, task):
        maps = convolve(task["x"], params["kernel"])
        pooled = jnp.max(maps.reshape(-1, 4, 2, 4, 2, 4), axis=(2, 4))
        return jnp.mean((pooled.reshape(len(pooled), -1) @ params["w"] - task["y"]) ** 2)

    return Problem(loss_fn, {"kernel": kernel, "w": w}, {"x": x, "y": y})


def transformer(
    dtype=jnp.float32, *, num_layers=1, num_examples=2, width=16, length=16, vocabulary=64
):
    """A causal language model of 8 tasks, with a softmax over the vocabulary."""
    embedding, positions, output = _normal(
        4, dtype, (vocabulary, width), (length, width), (width, vocabulary), scale=0.3
    )
    names = {"query": 1, "key": 1, "value": 1, "out": 1, "gate": 2, "up": 2}
    ones = jnp.ones(width, dtype)
    layers = []
    for layer in range(num_layers):
        shapes = [(width, width * factor) for factor in names.values()] + [(2 * width, width)]
        matrices = _normal(5 + layer, dtype, *shapes, scale=0.2)
        layers.append(dict(zip([*names, "down"], matrices, strict=True)) | {"scale": ones})
    tokens = np.random.default_rng(7).integers(0, vocabulary, (8, num_examples, length + 1))
    mask = jnp.tril(jnp.ones((length, length), bool))[None, None]

    def split(x):
        return x.reshape(*x.shape[:-1], 4, width // 4).swapaxes(-3, -2)

    def norm(x, scale):
        # T5's. XLA:CPU of jaxlib 0.10.2 gets jit(jacrev) wrong for this use of rsqrt.
        mean = jnp.mean(x**2, -1, keepdims=True)
        return scale[None, None] * x * jax.lax.rsqrt(mean + 1e-6)

    def loss_fn(params, task):
        x = params["embedding"][task[:, :-1]] + params["positions"][None]
        for layer in params["layers"]:
            h = norm(x, layer["scale"])
            query, key, value = (split(h @ layer[name]) for name in ("query", "key", "value"))
            scores = query @ key.swapaxes(-2, -1) / (width // 4) ** 0.5
            attended = jax.nn.softmax(jnp.where(mask, scores, -1e9)) @ value
            x = x + attended.swapaxes(-3, -2).reshape(x.shape) @ layer["out"]
            h = norm(x, layer["scale"])
            x = x + (jax.nn.gelu(h @ layer["gate"]) * (h @ layer["up"])) @ layer["down"]
        logs = jax.nn.log_softmax(norm(x, params["scale"]) @ params["output"])
        targets = jax.nn.one_hot(task[:, 1:], vocabulary, dtype=logs.dtype)
        return -jnp.mean(jnp.sum(targets * logs, -1))

    params = {
        "embedding": embedding,
        "positions": positions,
        "layers": layers,
        "scale": ones,
        "output": output,
    }
    return Problem(loss_fn, params, jnp.asarray(tokens, jnp.int32))


def form_arguments(form, problem, params, batch=None):
    """The same statistics in each form, as `updates` and keyword arguments of `update`."""
    batch = problem.batch if batch is None else batch
    if form == "tasks":
        return None, {"loss_fn": problem.loss_fn, "batch": batch}
    losses_fn = problem._replace(batch=batch).losses
    if form == "layout":
        return None, {"losses_fn": losses_fn}
    if form == "forward":
        losses, pullback = jax.vjp(losses_fn, params)
        return None, {
            "losses": losses,
            "pullback": lambda weights: pullback(weights)[0],
            "interaction_fn": lambda: interaction.jacobian_gram(losses_fn, params),
        }
    losses, gradients = interaction.get("vmap").gradients(problem.loss_fn, params, batch)
    return gradients, {"losses": losses}


def make_step(tx, problem, form="tasks", **extra):
    """A jitted training step, `(params, state, batch) -> (params, state)`."""

    @jax.jit
    def step(params, state, batch):
        updates, arguments = form_arguments(form, problem, params, batch)
        updates, state = tx.update(updates, state, params, **arguments, **extra)
        return optax.apply_updates(params, updates), state

    return step


def update(tx, *args, **kwargs):
    """``tx.update``, whose result is computed by one program, where each operation would be one."""
    return jax.jit(lambda: tx.update(*args, **kwargs))()


def train(tx, problem, steps, form="tasks", **extra):
    """The parameters and the state after every step."""
    step = make_step(tx, problem, form, **extra)
    params, state = problem.params, tx.init(problem.params)
    trajectory = []
    for _ in range(steps):
        params, state = step(params, state, problem.batch)
        trajectory.append((params, state))
    return trajectory


def assert_trees_close(tree, other, tolerance):
    """Compares all leaves, relatively and absolutely."""

    def compare(x, y):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)

    jax.tree.map(compare, tree, other)
