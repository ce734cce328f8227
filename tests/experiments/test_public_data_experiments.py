"""The experiments with public data, on made-up files, from their gin files to their reports."""

import pytest
from helpers import gin_files, public_files

pytest.importorskip("sklearn")

_TINY = [
    "TRAIN_STEPS=4",
    "SEEDS=(0,)",
    "Schedule.eval_interval=2",
    "MLP.features=(4,)",
]
# The solver of the smooth game takes seconds to compile.
_METHODS = {"yeast.gin": ("ldro", "L-DRO")}
_OWN = {
    "yeast.gin": ["Batches.size=8"],
    "chicago.gin": ["Batches.size=8"],
    "yeast_products.gin": ["Batches.size=8"],
    "moleculeace.gin": [
        "Batches.size=8",
        f"moleculeace.targets={public_files.PROTEINS}",
        "moleculeace.num_features=16",
    ],
}


@pytest.mark.usefixtures("unpainted")
@pytest.mark.parametrize("file", list(_OWN))
@pytest.mark.heavy  # as other files do
def test_runs_to_the_report(file, tmp_path):
    public_files.write(tmp_path)
    scope, name = _METHODS.get(file, ("smooth_ldro", "Smooth L-DRO"))
    methods = f"compare.methods=[@average/Method(), @{scope}/Method()]"
    bindings = [*_TINY, methods, *_OWN[file]]
    record = gin_files.to_report(file, tmp_path / "out", *bindings, data_dir=tmp_path)
    assert [run.method for run in record.runs] == ["Average", name]
    assert all(run.stopped is None for run in record.runs)
