#!/usr/bin/env bash
# Orbax refuses to restore into another shape, and casts into another dtype, integers included.
#
# Versions: orbax-checkpoint 0.11.39 with jax 0.10.2 (Python 3.11 to 3.13); the same with 0.12.8.
# What one would guess: a target whose dtype differs is refused like one whose shape differs, or at
# least cast only between floats of other widths.
# What happens: `StandardCheckpointer.restore(path, target)` casts without a word: float32 weights into
# an int32 target become 0 and 1, and the int32 2**31 - 1 in an int8 target becomes -1. A field that has
# changed its meaning between two versions of a program, or a count where weights were, is restored as
# other numbers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "jax==0.10.2" "jaxlib==0.10.2" "orbax-checkpoint==0.11.39"
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import tempfile
import warnings

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

warnings.simplefilter("error")
saved = {"w": jnp.array([0.3, 0.7, 1.9]), "n": jnp.array([2**31 - 1], jnp.int32)}
path = tempfile.mkdtemp() + "/saved"
with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(path, saved)
    checkpointer.wait_until_finished()
    found = checkpointer.restore(path, {"w": jnp.zeros(3, jnp.int32), "n": jnp.zeros(1, jnp.int8)})
    print("saved", saved, "restored", found)
    np.testing.assert_array_equal(found["w"], [0, 0, 1])
    np.testing.assert_array_equal(found["n"], [-1])
    try:
        checkpointer.restore(path, {"w": jnp.zeros(4), "n": jnp.zeros(1, jnp.int32)})
    except ValueError as error:
        print("another shape:", str(error).splitlines()[0][:100])
    else:
        raise SystemExit("another shape was restored")
EOF
