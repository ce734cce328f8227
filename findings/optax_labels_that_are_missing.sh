#!/usr/bin/env bash
# Optax's cross-entropy takes the usual marks of a missing label for classes.
#
# Versions: optax 0.2.8 with jax 0.10.2 (Python 3.11 to 3.13); the same with jax 0.12.0.1.
# What one would guess: a label of -100 or -1 (PyTorch's `ignore_index`, scikit-learn's and many data
# sets' mark of a missing label) is an error or a row without a gradient.
# What happens: `softmax_cross_entropy_with_integer_labels` counts negative labels from the end, as
# NumPy does: -1 trains the last class, silently. One that is out of range (-100 of 4 classes, or 255)
# has the loss NaN, but a finite gradient, that of the log-partition alone: the weights stay finite
# while they are driven to lower all logits, and a check of the gradients or of the parameters for NaN
# finds nothing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "jax==0.10.2" "jaxlib==0.10.2" "optax==0.2.8"
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import jax
import jax.numpy as jnp
import numpy as np
import optax

logits = jnp.array([[0.0, 0.0, 0.0, 5.0]])


def loss(x, label):
    return optax.softmax_cross_entropy_with_integer_labels(x, jnp.array([label])).sum()


for label in (3, -1, -100, 255):
    value, gradient = jax.value_and_grad(loss)(logits, label)
    print(f"label {label}: loss {value}, gradient {gradient[0]}")
np.testing.assert_allclose(loss(logits, -1), loss(logits, 3))
for label in (-100, 255):
    value, gradient = jax.value_and_grad(loss)(logits, label)
    assert np.isnan(value)
    np.testing.assert_allclose(gradient, jax.nn.softmax(logits), rtol=1e-6)
EOF
