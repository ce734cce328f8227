#!/usr/bin/env bash
# A mixture of Grain ends when its smallest part does, and says so nowhere.
#
# Versions: grain 0.2.18 (Python 3.11 to 3.13).
# What one would guess: without weights a mixture has all rows, in proportion to the sizes; and it is
# drawn at random.
# What happens: `MapDataset.mix` gives equal weights, takes the parts in turn, always in the same order,
# and is over when the first part would begin anew: of 100 rows of one language and 10 of another it
# has 20, and an epoch leaves out 90 % of the first. The weights decide how long an epoch is: with
# .9/.1 it has 100. Parts have to be repeated (`.repeat()`) before they are mixed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "grain==0.2.18"
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import collections

import grain

french = grain.MapDataset.source(["fr"] * 100)
swahili = grain.MapDataset.source(["sw"] * 10)
plain = grain.MapDataset.mix([french, swahili])
counts = collections.Counter(plain[i] for i in range(len(plain)))
print("100 rows and 10 rows mixed:", dict(counts), "in the order", [plain[i] for i in range(6)])
assert counts == {"fr": 10, "sw": 10}
assert [plain[i] for i in range(6)] == ["fr", "sw"] * 3
assert len(grain.MapDataset.mix([french, swahili], weights=[0.9, 0.1])) == 100
assert len(grain.MapDataset.mix([french, swahili.repeat()])) == 200
EOF
