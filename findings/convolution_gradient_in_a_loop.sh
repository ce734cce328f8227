#!/usr/bin/env bash
# XLA:CPU takes ten times and more for the gradient of a convolution's kernel inside a loop.
#
# Versions: jax and jaxlib 0.10.2 (Python 3.11 to 3.13); the same with 0.12.0.1.
# What one would guess: eight gradients taken by `jax.lax.map` cost what eight calls cost, and less
# memory than all at once by `jax.vmap`.
# What happens: inside a loop (`lax.map`, `lax.scan`, `while_loop`) the kernel's gradient, whose layout
# isn't that of a forward pass, isn't given to the fast library. The same eight gradients take 9.5 s in
# `lax.map`, 0.58 s as eight calls and 0.48 s unrolled (2 cores, other work beside it; 6.4 to 11.5 s
# against 0.13 to 0.56 s with 0.12.0.1). The forward pass in a loop is as fast as outside.
# So per-task gradients of a network with convolutions, one after another in a loop to save memory,
# are far slower on CPU than all at once.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "jax==0.10.2" "jaxlib==0.10.2"
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import time

import jax
import jax.numpy as jnp

kernel = jax.random.normal(jax.random.key(0), (3, 3, 32, 32))
images = jax.random.normal(jax.random.key(1), (8, 8, 32, 32, 32))


def loss(kernel, x):
    layout = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)
    return jnp.mean(jnp.tanh(y) ** 2)


def seconds(call):
    jax.block_until_ready(call())
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


gradient = jax.jit(jax.grad(loss))
in_loop = jax.jit(lambda xs: jax.lax.map(lambda x: jax.grad(loss)(kernel, x), xs))
calls = seconds(lambda: [gradient(kernel, x) for x in images])
loop = seconds(lambda: in_loop(images))
print(f"8 calls {calls:.2f} s, in lax.map {loop:.2f} s: {loop / calls:.0f} times as long")
assert loop > 4 * calls
EOF
