#!/usr/bin/env bash
# JAX cuts 64-bit integers of a NumPy array to their lower 32 bits without a word.
#
# Versions: jax 0.10.2 with NumPy 2.x (Python 3.11 to 3.13); the same with 0.12.0.1 and NumPy 2.5.5.
# What one would guess: as for a Python integer, `OverflowError`, or at least the warning that
# `jnp.zeros(3, "int64")` gives.
# What happens: without x64 mode (the default) `jnp.asarray` of int64 or uint64 wraps: 2**32 + 5 is 5,
# 2**31 is -2147483648, and no warning comes even with `-W error`. User and item numbers that are
# hashes, times in nanoseconds, and offsets into large files become others.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "jax==0.10.2" "jaxlib==0.10.2"
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import warnings

import jax.numpy as jnp
import numpy as np

warnings.simplefilter("error")
for number in (2**32 + 5, 2**31):
    try:
        jnp.asarray(number)
        raise SystemExit("a Python integer was taken")
    except OverflowError as error:
        print(f"Python's {number}: {error}")
found = jnp.asarray(np.array([2**32 + 5, 2**31]))
print("the same in a NumPy array:", found, found.dtype)
assert found.tolist() == [5, -(2**31)]
EOF
