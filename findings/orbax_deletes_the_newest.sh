#!/usr/bin/env bash
# With `best_fn`, Orbax deletes the newest checkpoint while older ones stay.
#
# Versions: orbax-checkpoint 0.11.39 with jax 0.10.2 (Python 3.11 to 3.13); the same with 0.12.8.
# What one would guess: `max_to_keep=2` with `best_fn` keeps the best besides what a restart needs.
# What happens: it keeps the two best and nothing else. Where the metric falls (overfitting, or the
# worst of several tasks, which is noisy), each new checkpoint is deleted as soon as it is written;
# `latest_step()` answers 2 after five saves, and a run that is interrupted goes back to that step
# without a word, again and again.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "jax==0.10.2" "jaxlib==0.10.2" "orbax-checkpoint==0.11.39"
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import tempfile

import numpy as np
import orbax.checkpoint as ocp

options = ocp.CheckpointManagerOptions(max_to_keep=2, best_fn=lambda m: m["accuracy"])
with ocp.CheckpointManager(tempfile.mkdtemp(), options=options) as manager:
    for step, accuracy in enumerate([0.5, 0.9, 0.8, 0.7, 0.6]):
        state = ocp.args.StandardSave({"step": np.int32(step)})
        manager.save(step, args=state, metrics={"accuracy": accuracy})
    manager.wait_until_finished()
    print("saved steps 0 to 4; kept", list(manager.all_steps()), "newest", manager.latest_step())
    assert sorted(manager.all_steps()) == [1, 2]
EOF
