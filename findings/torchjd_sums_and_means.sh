#!/usr/bin/env bash
# Half of TorchJD's aggregators sum over the tasks and half average, under one interface.
#
# Versions: torchjd 0.18.0 with torch 2.9.0 (Python 3.11 to 3.13).
# What one would guess: aggregators can be exchanged for each other at the same learning rate.
# What happens: three tasks with the same gradient g are aggregated to g by Mean, MGDA, IMTL-G and
# Aligned-MTL, and to 3 g by PCGrad, GradVac, GradDrop and ConFIG, as each paper has it. With N tasks the
# second kind trains at N times the rate, and a comparison at one rate compares rates. (NashMTL doesn't
# depend on the length of the gradients at all.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==2.9.0" "torchjd==0.18.0"
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import torch
from torchjd import aggregation

torch.manual_seed(0)
gradient = torch.randn(10)
rows = gradient.repeat(3, 1)
for names, factor in (
    (("Mean", "MGDA", "IMTLG", "AlignedMTL"), 1.0),
    (("PCGrad", "GradVac", "GradDrop", "ConFIG"), 3.0),
):
    for name in names:
        found = getattr(aggregation, name)()(rows)
        torch.testing.assert_close(found, factor * gradient, rtol=1e-4, atol=1e-5)
        print(f"{name}: {float(found.norm() / gradient.norm()):.3f} times the common gradient")
EOF
