#!/usr/bin/env bash
# LibMTL's CAGrad on PyPI works for three tasks, and for no other number.
#
# Versions: LibMTL 1.1.5, the newest on PyPI, with torch 2.9.0 (Python 3.11 to 3.13). As in
# libmtl_gradient_vaccine.sh, a name that torchvision no longer has is given back.
# What one would guess: CAGrad (Liu et al., NeurIPS 2021) takes any number of tasks, and so does the class,
# whose start and bounds are made for `task_num` of them.
# What happens: its objective reshapes to a row and a column of three. With two tasks, or four, the first
# backward ends in NumPy's "cannot reshape array"; with three it works. On its repository's main branch
# it takes any number.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==2.9.0" "torchvision==0.24.0" "LibMTL==1.1.5" "scipy==1.16.3"
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import sys
import types

import torch
import torch.hub

gone = types.ModuleType("torchvision.models.utils")
gone.load_state_dict_from_url = torch.hub.load_state_dict_from_url
sys.modules[gone.__name__] = gone
from LibMTL.weighting import CAGrad


class Model(CAGrad):
    """Linear losses of one shared vector."""

    def __init__(self, tasks):
        super().__init__()
        self.shared = torch.nn.Parameter(torch.zeros(4))
        self.task_num, self.rep_grad, self.device = tasks, False, "cpu"

    def get_share_params(self):
        return [self.shared]

    def zero_grad_share_params(self):
        self.zero_grad(set_to_none=False)


torch.manual_seed(0)
said = {}
for tasks in (2, 3, 4):
    model = Model(tasks)
    rows = torch.randn(tasks, 4)
    try:
        model.backward([row @ model.shared for row in rows], calpha=0.5, rescale=1)
        said[tasks] = "works"
    except ValueError as error:
        said[tasks] = str(error)
    print(tasks, "tasks:", said[tasks])
assert said[3] == "works"
assert "cannot reshape" in said[2] and "cannot reshape" in said[4]
EOF
