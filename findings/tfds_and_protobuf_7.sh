#!/usr/bin/env bash
# TFDS 4.9.9 reads no data set beside protobuf 7, which pip puts beside it.
#
# Versions: tensorflow-datasets 4.9.9 with protobuf 7.35.0; 4.9.10 reads it, and so does 4.9.9 with protobuf
# 6.33.6 (Python 3.11).
# What one would guess: what pip resolves works; 4.9.9 asks for `protobuf>=3.20`, and data that was
# written years ago is read by all versions.
# What happens: every directory, also a standard one, ends in `'FieldDescriptor' object has no attribute
# 'label'`, an attribute that protobuf 7 took away.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "tensorflow-datasets==4.9.9" "protobuf==7.35.0"
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import json
import pathlib
import subprocess
import sys

PROGRAM = """
import tensorflow_datasets as tfds
print(tfds.builder_from_directory("digits3/1.0.0").info.splits["train"].num_examples)
"""
folder = pathlib.Path("digits3/1.0.0")
folder.mkdir(parents=True)
split = {"name": "train", "shardLengths": ["3"], "numBytes": "30"}
split["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
info = {"name": "digits3", "version": "1.0.0", "fileFormat": "array_record", "splits": [split]}
(folder / "dataset_info.json").write_text(json.dumps(info))
label = {"pythonClassName": "tensorflow_datasets.core.features.class_label_feature.ClassLabel"}
label["classLabel"] = {"numClasses": "3"}
kind = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
features = {"pythonClassName": kind, "featuresDict": {"features": {"label": label}}}
(folder / "features.json").write_text(json.dumps(features))


def read():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    return (done.stdout or done.stderr).strip().splitlines()[-1]


broken = read()
print("4.9.9, protobuf 7.35.0:", broken)
assert "has no attribute 'label'" in broken
for package in ("tensorflow-datasets==4.9.10", "tensorflow-datasets==4.9.9 protobuf==6.33.6"):
    install = [sys.executable, "-m", "pip", "install", "--quiet", *package.split()]
    subprocess.run(install, check=True)
    print(package, "rows:", read())
    assert read() == "3"
EOF
