#!/usr/bin/env bash
# Under `jax.set_mesh` Tunix trains on the whole batch on every device.
#
# Versions: google-tunix 0.1.7 with jax 0.10.2, flax 0.12.8, optax 0.2.8 (Python 3.11); the same with jax
# 0.12.0.1 and flax 0.12.12 (Python 3.12). On four CPU devices.
# What one would guess: `with jax.set_mesh(mesh):` does what `with mesh:` does, as JAX itself asks for it in its place,
# so that batches are spread over `data_sharding_axis`.
# What happens: Tunix looks for the mesh where `with mesh:` alone puts it. Under `jax.set_mesh` it finds none, and
# leaves batches as they are, whole: each of four devices computes all 8 rows instead of 2. The result is the same, so
# that nothing shows it but the time and the memory.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "google-tunix==0.1.7" "jax==0.10.2" "jaxlib==0.10.2" "flax==0.12.8" "optax==0.2.8"
cd "$folder"
export XLA_FLAGS=--xla_force_host_platform_device_count=4
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'EOF'
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType
from tunix.sft import peft_trainer


class Model(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(jnp.ones((4, 4)))


def trained(context):
    """The rows of the batch that a device has, and the parameters after two steps."""
    rows = set()

    def loss(model, x):
        out = x @ model.w[...]
        shape = out.shape
        jax.debug.inspect_array_sharding(out, callback=lambda s: rows.add(s.shard_shape(shape)[0]))
        return (out**2).mean()

    options = {"eval_every_n_steps": 100, "data_sharding_axis": ("fsdp",)}
    with context:
        config = peft_trainer.TrainingConfig(**options)
        trainer = peft_trainer.PeftTrainer(Model(), optax.sgd(0.01), config).with_loss_fn(loss)
        trainer.train([{"x": np.ones((8, 4), np.float32)}] * 2)
    return rows, np.asarray(trainer.model.w[...])


mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(AxisType.Auto,))
spread, expected = trained(mesh)
whole, found = trained(jax.set_mesh(mesh))
print(f"rows of 8 on each of 4 devices: with mesh {spread}, with jax.set_mesh(mesh) {whole}")
assert spread == {2} and whole == {8}
np.testing.assert_allclose(found, expected, rtol=1e-6)
EOF
