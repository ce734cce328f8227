#!/usr/bin/env bash
# Grain shuffles a small data set hundreds of times as slowly as a large one.
#
# Versions: grain 0.2.18 (Python 3.11).
# What one would guess: a row of a shuffled data set costs the same, or less, the fewer rows there are.
# What happens: `MapDataset.shuffle` finds the place of each row by a permutation of numbers of 16 bits at least, and
# asks again until the place is one of the data set's. Of 8 rows each costs about 7 ms, of 100 rows 0.6 ms, of 100,000
# rows 0.02 ms, so that an epoch over few rows takes about 60 ms, however few they are. In a mixture of tasks the
# smallest one is the slowest to read; reading threads hide it, at a core's cost. An order that NumPy draws once, as a
# source of its own, doesn't.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "grain==0.2.18"
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import time

import grain


def seconds_a_row(rows, reads=64):
    shuffled = grain.MapDataset.range(rows).shuffle(seed=0)
    began = time.perf_counter()
    for i in range(reads):
        shuffled[i % rows]
    return (time.perf_counter() - began) / reads


found = {rows: seconds_a_row(rows) for rows in (4, 8, 100, 1_000, 100_000)}
for rows, seconds in found.items():
    print(f"{rows:,} rows: {1e6 * seconds:,.0f} µs a row, {seconds / found[100_000]:.1f} × that of 100,000")
assert found[8] > 50 * found[100_000] and found[4] > found[8] > found[100] > found[1_000]
EOF
