#!/usr/bin/env bash
# Forward mode through a jax.custom_vjp traces, and fails only when it is lowered.
#
# Versions: jax 0.10.2 (Python 3.11 to 3.13); the same with jax 0.12.0.1.
# What one would guess: `jax.jvp` of a function with a `jax.custom_vjp` in it raises its TypeError while
# it is traced, so that `jax.eval_shape` or `jax.make_jaxpr` tells whether a model can be pushed forward.
# What happens: outside of a jit `jax.jvp` raises at once. While tracing it doesn't: `eval_shape` gives a
# shape, `make_jaxpr` a program and `jit(…).trace` succeeds. The TypeError comes at `lower`, outside of
# the frames of whoever called `jvp`, so that a `try` around it catches nothing, and a check by shapes
# before a long run passes. Look for `custom_vjp_call` in the traced program instead.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "jax==0.10.2" "jaxlib==0.10.2"
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import jax


@jax.custom_vjp
def doubled(x):
    return 2 * x


doubled.defvjp(lambda x: (doubled(x), None), lambda _, g: (2 * g,))


def pushed(x):
    try:
        return jax.jvp(doubled, (x,), (1.0,))[1]
    except TypeError:
        print("  jvp itself raised")
        raise


ways = {
    "outside of a jit": lambda: pushed(1.0),
    "eval_shape": lambda: jax.eval_shape(pushed, 1.0),
    "make_jaxpr": lambda: jax.make_jaxpr(pushed)(1.0),
    "jit, traced": lambda: jax.jit(pushed).trace(1.0),
    "jit, lowered": lambda: jax.jit(pushed).lower(1.0),
}
raised = {}
for name, run in ways.items():
    try:
        run()
        raised[name] = False
    except TypeError as error:
        raised[name] = True
    print(f"{name}: {'TypeError' if raised[name] else 'no error'}")
assert raised == {
    "outside of a jit": True,
    "eval_shape": False,
    "make_jaxpr": False,
    "jit, traced": False,
    "jit, lowered": True,
}
EOF
