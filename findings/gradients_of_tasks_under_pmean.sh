#!/usr/bin/env bash
# `vmap(grad(loss), axis_name=...)` with a mean over the axis gives the gradients of no task's loss.
#
# Versions: jax 0.10.2 (Python 3.11 to 3.13).
# What one would guess: with batch normalisation over all tasks (a `pmean` over the axis in the loss),
# row i of the stacked gradients is the gradient of loss i; for one that is not under `grad` it is.
# What happens: row i is the derivative of the sum of all losses by the parameters as used at place i.
# Only the sum of the rows is right, so the average loss trains as it should, and everything that needs
# one task's gradient is silently wrong: weighted sums, clipping per example, cosines, Gram matrices.
# The gradients of the losses as a vector (`jacrev`, or `vjp` with one-hot cotangents) are right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "jax==0.10.2" "jaxlib==0.10.2"
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import jax
import jax.numpy as jnp
import numpy as np

keys = jax.random.split(jax.random.key(0), 3)
scales = jnp.array([1.0, 2.0, 3.0])[:, None, None]
x = jax.random.normal(keys[0], (3, 8, 2)) * scales
y, w = jax.random.normal(keys[1], (3, 8)), jax.random.normal(keys[2], (2,))


def loss(w, x, y):
    h = x @ w
    mean = jax.lax.pmean(h.mean(), "task")
    variance = jax.lax.pmean(jnp.mean((h - mean) ** 2), "task")
    return jnp.mean((jnp.tanh((h - mean) / jnp.sqrt(variance + 1e-5)) - y) ** 2)


def losses(w):
    return jax.vmap(loss, (None, 0, 0), axis_name="task")(w, x, y)


right = np.asarray(jax.jacrev(losses)(w))
found = np.asarray(jax.vmap(jax.grad(loss), (None, 0, 0), axis_name="task")(w, x, y))
wrong = np.abs(found - right).max() / np.abs(right).max()
print("of each loss", right.tolist(), "vmap(grad)", found.tolist(), f"off by {wrong:.0%}")
np.testing.assert_allclose(found.sum(0), right.sum(0), atol=1e-5)
assert wrong > 0.1
EOF
