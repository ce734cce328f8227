"""Made-up files of the formats of the public data, a few rows each."""

import numpy as np
import pandas as pd

from ldro_jax.problems import public_data
from ldro_jax.tasks.grouped import census

PROTEINS = ("CHEMBL204_Ki", "CHEMBL218_EC50")
GENES, DAYS = 90, 104


def write(folder):
    """Writes them all."""
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(GENES, 103))
    labels = signal[:, :14] + rng.normal(size=(GENES, 14)) > 0
    columns = [f"Att{i + 1}" for i in range(103)] + [f"Class{i + 1}" for i in range(14)]
    yeast = pd.DataFrame(np.hstack([signal, labels]), columns=columns)
    yeast.to_csv(folder / "yeast.csv.gz", index=False)

    known = [*public_data.STATIONS, *public_data._WEATHER, *public_data._GAMES]
    days = np.sin(np.arange(DAYS) * 2 * np.pi / 7)[:, None] + rng.normal(size=(DAYS, len(known)))
    chicago = pd.DataFrame(days, columns=known)
    chicago["date"] = pd.date_range("2001-01-22", periods=DAYS).strftime("%Y-%m-%d")
    chicago.to_csv(folder / "chicago.csv", index=False)

    (folder / "moleculeace").mkdir()
    for number, name in enumerate(PROTEINS):
        size = 50 + 20 * number
        # The first ten are the same for both, and only the first protein's are tested.
        chains = ["C" * (i + 1) + "Nc1O=("[i % 6] for i in range(size)]
        smiles = [s if i < 10 else s + "SF"[number] for i, s in enumerate(chains)]
        tested = np.arange(size) < (10 if number == 0 else 0)
        tested |= np.arange(size) % 5 == 4
        tested[:10] = number == 0
        table = {
            "smiles": smiles,
            "y": [s.count("C") / 10 + rng.normal() for s in smiles],
            "split": np.where(tested, "test", "train"),
        }
        pd.DataFrame(table).to_csv(folder / "moleculeace" / f"{name}.csv", index=False)
    write_adults(folder, adults())


def adults(rows=400):
    rng = np.random.default_rng(0)
    columns = {name: rng.integers(1, 90, rows) for name in census._CONTINUOUS}
    columns["fnlwgt"] = rng.integers(0, 9999, rows)
    sets = [
        list(census._INCOME.values()),
        *(list(x.values()) for x in census._PROTECTED.values()),
        ["workclass_Private", "workclass_State-gov"],
        ["relationship_Husband", "relationship_Wife", "relationship_Unmarried"],
    ]
    for names in sets:
        chosen = rng.integers(len(names), size=rows)
        columns.update({name: (chosen == i).astype(int) for i, name in enumerate(names)})
    return pd.DataFrame(columns)


def write_adults(folder, table):
    table.to_csv(folder / "adult.csv.zip", index=False, compression="zip")
