#!/usr/bin/env bash
# Grain: batching after the iteration has begun takes many times as long as batching before.
#
# Versions: Grain 0.2.18, NumPy 2.3.5 (Python 3.11 to 3.13).
# What one would guess: both read the same rows with the same threads, and `batch` only stacks them, so
# that it hardly matters where it stands; documentation shows both.
# What happens: what turns a MapDataset into an iterator prefetches up to 500 elements, and before each one
# asks all that wait whether they are done, for a figure of monitoring that nobody need look at. If the
# elements are rows, that is up to 500 questions a row; if they are batches, it is 500 a batch. Rows
# that cost nothing themselves come several times slower.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "grain==0.2.18" "numpy==2.3.5"
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import time

import grain
import numpy as np

ROWS = np.arange(64_000, dtype=np.float32)


def seconds(iterator, batches=300):
    next(iterator)
    began = time.process_time()
    for _ in range(batches):
        assert next(iterator).shape == (32,)
    return time.process_time() - began


rows = grain.MapDataset.source(ROWS).seed(0).shuffle()
before = seconds(iter(rows.batch(32)))
after = seconds(iter(rows.to_iter_dataset().batch(32)))
few = grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)
short = seconds(iter(rows.to_iter_dataset(few).batch(32)))
print(f"CPU of 300 batches of 32 rows: before {before:.2f} s, after {after:.2f} s ({after / before:.1f} x),")
print(f"after, with 8 prefetched {short:.2f} s ({short / before:.1f} x)")
assert after > 4 * before
assert short < 0.7 * after
EOF
