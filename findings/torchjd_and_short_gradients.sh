#!/usr/bin/env bash
# Below a length of about 0.01 TorchJD's CAGrad returns zero, and UPGrad another direction.
#
# Versions: torchjd 0.18.0 with torch 2.9.0 (Python 3.11 to 3.13).
# What one would guess: an aggregator of gradients has a direction that doesn't depend on their common
# length, as the papers' do; `norm_eps` is there to avoid a division by zero.
# What happens: `norm_eps=1e-4` is compared with the size of the Gram matrix, so with squared lengths.
# Where three gradients of one length have 0.003, CAGrad's update is exactly 0 (training stops), and
# UPGrad's and DualProj's are the mean of the gradients, conflicts and all. Losses that are
# means over many outputs, fine-tuning, and the end of training have such gradients. With
# `norm_eps=0.0` (UPGrad and DualProj take it by way of `QuadprogProjector`) the direction stays.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==2.9.0" "torchjd[quadprog_projector,cagrad]==0.18.0" qpsolvers==4.13.0 quadprog==0.1.14 cvxpy==1.9.3 clarabel==0.11.1
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import torch
from torchjd import aggregation
from torchjd.linalg import QuadprogProjector

torch.manual_seed(0)
rows = torch.randn(3, 10)
rows /= rows.norm(dim=1, keepdim=True)
for length in (1.0, 0.03, 0.003):
    found = {
        "CAGrad": aggregation.CAGrad(c=0.5)(rows * length) / length,
        "UPGrad": aggregation.UPGrad()(rows * length) / length,
    }
    print(f"gradients of length {length}:", {k: round(float(v.norm()), 4) for k, v in found.items()})
    if length == 1.0:
        first = found
    else:
        same = [torch.allclose(found[k], first[k], rtol=1e-3) for k in found]
        assert same == [length > 0.01] * 2, same
assert not found["CAGrad"].any()
torch.testing.assert_close(found["UPGrad"], rows.mean(0), rtol=1e-3, atol=1e-5)
for name, exact in {
    "CAGrad": aggregation.CAGrad(c=0.5, norm_eps=0.0),
    "UPGrad": aggregation.UPGrad(projector=QuadprogProjector(norm_eps=0.0)),
}.items():
    torch.testing.assert_close(exact(rows * length) / length, first[name], rtol=1e-3, atol=1e-5)
EOF
