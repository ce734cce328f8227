#!/usr/bin/env bash
# A program that jax 0.6.0 takes from its persistent compilation cache computes something else.
#
# Versions: jax and jaxlib 0.6.0 on CPU (Python 3.11); right with 0.6.1, 0.6.2 and 0.7.0.
# What one would guess: the cache saves time, and the numbers are those of the program that was put in.
# What happens: a draw from a Dirichlet distribution beside a constant is right when it is compiled, and
# even weights of 1/8 when it is loaded, in the same process or a later one, without a word.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "jax==${JAX:-0.6.0}" "jaxlib==${JAX:-0.6.0}"
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'EOF'
import jax
import jax.numpy as jnp

jax.config.update("jax_compilation_cache_dir", "programs")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@jax.jit
def weights(concentration):
    number = jnp.asarray(3)
    drawn = jax.random.dirichlet(jax.random.fold_in(jax.random.key(0), number), concentration)
    return jnp.where(number == 0, 1 / 8, drawn)


compiled = weights(jnp.ones(8))
jax.clear_caches()
loaded = weights(jnp.ones(8))
print("compiled:", compiled)
print("loaded:  ", loaded)
assert jnp.array_equal(loaded, jnp.full(8, 1 / 8)) and not jnp.allclose(compiled, loaded)
EOF
