#!/usr/bin/env bash
# NumPy draws with float32 weights in its own array, and refuses the same weights in JAX's.
#
# Versions: NumPy 2.3.5 with jax 0.10.2 (Python 3.11 to 3.13); the same with NumPy 2.5.5 and jax 0.12.0.1.
# What one would guess: both or neither; `np.asarray` of a JAX array is what NumPy sees anyway.
# What happens: `Generator.choice` allows the sum of `p` an error that suits its dtype only if `p` is a
# `numpy.ndarray` before it is converted. A JAX array has to add up to 1 within 1e-8 in float64, which
# a softmax in float32 does by luck: "Probabilities do not sum to 1". With few weights it often works,
# with 40 it mostly doesn't. `np.asarray(p)` cures it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "jax==0.10.2" "jaxlib==0.10.2" "numpy==2.3.5"
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import jax
import numpy as np

generator, refused = np.random.default_rng(0), 0
for seed in range(20):
    weights = jax.nn.softmax(jax.random.normal(jax.random.key(seed), (40,)))
    generator.choice(40, p=np.asarray(weights))
    try:
        generator.choice(40, p=weights)
    except ValueError as error:
        message, refused = str(error), refused + 1
print(f"20 softmaxes of 40 numbers: {refused} refused as JAX arrays ({message}), none as NumPy's")
assert refused > 5
EOF
