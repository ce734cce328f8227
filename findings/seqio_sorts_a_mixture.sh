#!/usr/bin/env bash
# The tasks of a seqio mixture are in the order of their names, not in the one that was given.
#
# Versions: seqio 0.0.20 (Python 3.11 and 3.12).
# What one would guess: `Mixture.tasks` has the tasks as they were listed, so that task i has weight i.
# What happens: they are sorted as texts: `["lm_2", "lm_10", "lm_1"]` comes back as lm_1, lm_10, lm_2. A
# vector of weights or losses that was made beside the list belongs to other tasks, without an error,
# and one more language moves those behind it: names have to be saved with the weights.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "seqio==0.0.20" "tensorflow==2.20.0" "tensorflow-datasets==4.9.10"
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import seqio
import tensorflow as tf

names = ["lm_2", "lm_10", "lm_1"]
for name in names:
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensors({"targets": [1]}),
        splits=["train"],
    )
    feature = seqio.Feature(seqio.PassThroughVocabulary(10), add_eos=False)
    seqio.TaskRegistry.add(
        name, source=source, preprocessors=[], output_features={"targets": feature}
    )
mixture = seqio.MixtureRegistry.add("all", names, default_rate=1.0)
found = [task.name for task in mixture.tasks]
print("given", names, "found", found)
assert found == sorted(names) != names
EOF
