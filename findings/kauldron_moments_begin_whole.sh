#!/usr/bin/env bash
# With Kauldron's FSDP every device first holds the whole state of the optimizer.
#
# Versions: kauldron 1.4.4 with jax 0.12.0.1, flax 0.12.12, optax 0.2.8 (Python 3.12), on four CPU devices.
# What one would guess: parameters that `FSDPSharding` spreads over the devices have moments that are spread like them,
# since `opt_state=None`, the default, is said to follow the model.
# What happens: Adam's moments begin as zeros that depend on no parameter, so XLA puts them on all devices whole. For
# 8 MB of parameters each of four devices has 2 MB of them, and 16 MB of moments; after the first step it is 4 MB.
# A model that fits while it is trained may not fit when it begins. With
# `ShardingStrategy(params=FSDPSharding(), opt_state=FSDPSharding())` the moments are spread from the beginning.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [[ -z "${PYTHON:-}" ]]; then
  PYTHON="$(pyenv prefix 3.12 2>/dev/null || true)/bin/python"
  [[ -x "$PYTHON" ]] || PYTHON=python3.12
fi
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "kauldron==1.4.4" "jax==0.12.0.1" "jaxlib==0.12.0.1" "flax==0.12.12" "optax==0.2.8" \
  "tensorflow-cpu==2.21.0" "google-cloud-aiplatform==2.7.0"
cd "$folder"
export XLA_FLAGS=--xla_force_host_platform_device_count=4
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'EOF'
import jax
import numpy as np
import optax
from flax import linen as nn
from kauldron import kd, kontext

BATCH = {"x": np.ones((8, 2048), np.float32), "y": np.ones((8, 1), np.float32)}


class Model(nn.Module):
    x: kontext.Key = "batch.x"

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.relu(nn.Dense(1024)(x)))


def held(tree):
    """Megabytes on the first device."""
    shards = [shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards]
    return sum(s.data.nbytes for s in shards if s.device == jax.devices()[0]) / 2**20


def trained(**sharding):
    """Megabytes of parameters and of the optimizer after no step, one and two."""
    trainer = kd.train.Trainer(
        train_ds=None,
        model=Model(),
        train_losses={"l2": kd.losses.L2(preds="preds", targets="batch.y")},
        optimizer=optax.adam(1e-3),
        sharding=kd.sharding.ShardingStrategy(params=kd.sharding.FSDPSharding(), **sharding),
        workdir="run",
    )
    spec = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), BATCH)
    state = trainer.trainstep.init(spec)
    found = [(held(state.params), held(state.opt_state))]
    for _ in range(2):
        state, _ = trainer.trainstep.step(state, BATCH)
        found.append((held(state.params), held(state.opt_state)))
    return np.round(found, 1).tolist()


left, told = trained(), trained(opt_state=kd.sharding.FSDPSharding())
print("MB of parameters and moments on a device, before and after each of two steps:")
print("opt_state left out:", left)
print("opt_state=FSDPSharding():", told)
assert left == [[2, 16], [2, 4], [2, 4]] and told == [[2, 4]] * 3
EOF
