#!/usr/bin/env bash
# Adam's mean of squared gradients never comes down again in bfloat16.
#
# Versions: optax 0.2.8 with jax 0.10.2 (Python 3.11 to 3.13); the same with jax 0.12.0.1.
# What one would guess: it is less exact, by the 0.4 % of bfloat16's rounding.
# What happens: `optax.adam` keeps both moments in the dtype of the parameters, and `mu_dtype` changes
# the first alone. With b2 = 0.999 each step takes a thousandth off the second, which is less than half
# of bfloat16's step, so it is rounded away: once it has been large it stays. After 3,000 steps with a
# gradient of 1 it is 0.5 instead of 0.95, and after 10,000 more with a gradient of 0.01 it still is,
# so that the updates are 1/60 of those in float32. A task whose gradients were large at first trains
# on with a vanishing rate.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "jax==0.10.2" "jaxlib==0.10.2" "optax==0.2.8"
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import jax
import jax.numpy as jnp
import optax


def trained(dtype):
    """The second moment after large gradients, after small ones, and the last update."""
    params = jnp.ones(3, dtype)
    optimizer = optax.adam(1e-3, mu_dtype="float32")
    state, found = optimizer.init(params), []
    for gradient, steps in ((1.0, 3_000), (0.01, 10_000)):

        def step(state, _):
            update, state = optimizer.update(jnp.full(3, gradient, dtype), state, params)
            return state, update[0]

        state, updates = jax.lax.scan(step, state, length=steps)
        found.append(float(state[0].nu[0]))
    return *found, float(updates[-1])


full, half = trained(jnp.float32), trained(jnp.bfloat16)
print("float32: second moment %.3g, then %.3g; last update %.3g" % full)
print("bfloat16: second moment %.3g, then %.3g; last update %.3g" % half)
assert half[0] == half[1] == 0.5
assert full[1] < 1e-3
assert abs(half[2]) < abs(full[2]) / 20
EOF
