#!/usr/bin/env bash
# Kauldron takes one step more than `num_train_steps`, and never saves the last one.
#
# Versions: kauldron 1.4.4 with jax 0.12.0.1, flax 0.12.12, optax 0.2.8 (Python 3.12).
# What one would guess: `num_train_steps=10` makes 10 updates, as `stop_after_steps=10` does, and the last checkpoint
# has what `train` returns.
# What happens: steps 0 to 10 are taken, so 11 updates, on 11 batches. A checkpoint is written before the step of its
# number, so that ckpt_10 has 10 updates, and no checkpoint has the 11 of the state that `train` returns. To train again
# in the same folder, though all is done, makes the eleventh again, and saves nothing. With `stop_after_steps=10` it is
# 10 updates, of which the last checkpoint, with one every 5 steps, has 5.
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
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'EOF'
import pathlib

import numpy as np
import optax
from flax import linen as nn
from kauldron import kd, kontext

ROWS = [{"x": np.ones(2, np.float32), "y": np.ones(1, np.float32)}] * 64


class Model(nn.Module):
    x: kontext.Key = "batch.x"

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(x)


def trained(folder, **steps):
    """The updates in the state that is returned, and the checkpoints."""
    data = kd.data.py.DataSource(data_source=ROWS, batch_size=8, shuffle=False, num_workers=0)
    state, _ = kd.train.Trainer(
        train_ds=data,
        model=Model(),
        train_losses={"l2": kd.losses.L2(preds="preds", targets="batch.y")},
        optimizer=optax.adam(1e-3),
        checkpointer=kd.ckpts.Checkpointer(save_interval_steps=5),
        profiler=kd.inspect.profile_utils.NoopProfiler(),
        workdir=pathlib.Path(folder).resolve(),
        **steps,
    ).train()
    saved = pathlib.Path(folder, "checkpoints").iterdir()
    steps = sorted(int(path.name.split("_")[1]) for path in saved)
    return int(optax.tree.get(state.opt_state, "count")), steps


whole = trained("whole", num_train_steps=10)
again = trained("whole", num_train_steps=10)
stopped = trained("stopped", num_train_steps=10, stop_after_steps=10)
print("num_train_steps=10: updates and checkpoints", whole, "and again in the same folder", again)
print("stop_after_steps=10:", stopped)
assert whole == again == (11, [0, 5, 10])
assert stopped == (10, [0, 5])
EOF
