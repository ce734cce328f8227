#!/usr/bin/env bash
# MoleculeACE's 30 test sets leak as soon as the targets are trained together.
#
# Versions: MoleculeACE 3.0.0 (the files of its wheel), pandas 2.3.3 (Python 3.11 to 3.13).
# What one would guess: `split` of the 30 benchmark files can be used for a multitask model, as each
# file's test molecules are none of its training molecules.
# What happens: each file was split on its own. Of the 9,802 test rows 3,884 (40 %) have a molecule that
# is in the training rows of another target; of CHEMBL236, CHEMBL237 and CHEMBL2835, whose relatives
# are among the 30, 72 to 75 %. A shared network has seen them with the other target's label. And the
# label `y` isn't the usual pIC50 or pKi: it is -log10 of nM, so pKi - 9, and mostly negative.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "pandas==2.3.3"
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import io
import pathlib
import subprocess
import sys
import zipfile

import numpy as np
import pandas as pd

download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "MoleculeACE==3.0.0"]
subprocess.run(download, check=True)
wheel = zipfile.ZipFile(next(pathlib.Path().glob("MoleculeACE*.whl")))
tables = []
for name in wheel.namelist():
    if "/benchmark_data/CHEMBL" in name and name.count("/") == 3 and name.endswith(".csv"):
        table = pd.read_csv(io.BytesIO(wheel.read(name)))
        tables.append(table.assign(target=pathlib.Path(name).stem))
everything = pd.concat(tables)
test = everything[everything["split"] == "test"]
trained = set(everything.loc[everything["split"] == "train", "smiles"])
leaks = test["smiles"].isin(trained)
by_target = leaks.groupby(test["target"]).mean()
parts = [[set(t.loc[t["split"] == x, "smiles"]) for x in ("train", "test")] for t in tables]
own = [train & test_of for train, test_of in parts]
print(len(tables), "targets,", len(test), "test rows,", int(leaks.sum()), "seen with another target")
print(by_target.sort_values().tail(3).round(2).to_dict())
assert len(tables) == 30 and not any(own)
assert (len(test), int(leaks.sum())) == (9802, 3884)
assert by_target.idxmax() == "CHEMBL2835_Ki" and by_target.max() > 0.74
np.testing.assert_allclose(everything["y"], -np.log10(everything["exp_mean [nM]"]))
EOF
