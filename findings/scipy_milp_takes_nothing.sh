#!/usr/bin/env bash
# scipy.optimize.milp calls the choice of nothing optimal, with a gap of zero, where values are small.
#
# Versions: SciPy 1.17.1 with the HiGHS that comes with it (Python 3.11).
# What one would guess: to multiply all values of a knapsack by 1e-8 changes no choice, since the only
# tolerance that `milp` has, `mip_rel_gap`, is relative; and `mip_gap` of the result says if it did.
# What happens: of 30 things with values of up to 1e-8 it takes none, though the same things with values of
# up to 1 fill the sack, and says `success=True`, "HiGHS Status 7: Optimal" and `mip_gap=0.0`. With 1e-7 it
# takes none either, and the gap is `inf`. HiGHS compares with absolute tolerances (1e-7 for the duals), and
# `milp` passes none of them on. Differences of losses are easily as small: scale the costs to about 1 first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "scipy==1.17.1"
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

rng = np.random.default_rng(0)
weights, values = rng.integers(1, 30, 30), rng.random(30)
filled = LinearConstraint(weights[None], 0, 100)
found = {}
for scale in (1.0, 1e-5, 1e-6, 1e-7, 1e-8):
    result = milp(-scale * values, constraints=filled, integrality=np.ones(30), bounds=Bounds(0, 1))
    taken = np.round(result.x)
    found[scale] = result.success, int(taken.sum()), float(result.mip_gap)
    print(f"values × {scale:g}: {int(taken.sum())} things worth {values @ taken:.3f} × {scale:g}; "
          f"success {result.success}, gap {result.mip_gap}, {result.message}")
many = found[1.0][1]
assert many > 5 and found[1e-6] == (True, many, 0.0)
assert found[1e-8] == (True, 0, 0.0)
assert found[1e-7][:2] == (True, 0)
EOF
