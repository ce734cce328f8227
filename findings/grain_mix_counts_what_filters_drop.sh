#!/usr/bin/env bash
# A mixture of filtered data sets doesn't have the weights that it was given.
#
# Versions: grain 0.2.18 (Python 3.11).
# What one would guess: `MapDataset.mix` of two data sets with equal weights has as many rows of the one as of the
# other, whatever was filtered out of them before; `IterDataset.mix` is the same for streams.
# What happens: a filtered MapDataset keeps its length, with None where a row was dropped, and `mix` counts these
# places, which are only left out when rows are read. Of two languages, of which one keeps all rows and the other one
# in five, weights of 0.5 and 0.5 give 83 % and 17 %, though both are repeated. `IterDataset.mix`, so with
# `.to_iter_dataset()` before the mixing instead of behind it, gives 50 % and 50 %.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "grain==0.2.18"
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import collections
import itertools

import grain


def part(language, keep):
    rows = grain.MapDataset.source([(language, number) for number in range(1000)])
    return rows.filter(lambda row: row[1] % 10 < keep).repeat()


def shares(dataset, rows=6000):
    counts = collections.Counter(language for language, _ in itertools.islice(iter(dataset), rows))
    return {language: round(count / rows, 2) for language, count in counts.items()}


parts, weights = [part("fr", keep=10), part("sw", keep=2)], [0.5, 0.5]
places = grain.MapDataset.mix(parts, weights)
streams = grain.IterDataset.mix([p.to_iter_dataset() for p in parts], weights)
print("places 4 to 7:", [places[i] for i in range(4, 8)])
print("MapDataset.mix", shares(places), "and as a stream", shares(places.to_iter_dataset()))
print("IterDataset.mix", shares(streams))
assert [places[i] for i in range(4, 8)] == [("fr", 2), None, ("fr", 3), None]
assert shares(places) == shares(places.to_iter_dataset()) == {"fr": 0.83, "sw": 0.17}
assert shares(streams) == {"fr": 0.5, "sw": 0.5}
EOF
