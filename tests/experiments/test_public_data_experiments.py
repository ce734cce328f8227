"""The experiments with public data, on made-up files, from their gin files to their reports."""

import gin
import jax
import pytest
from helpers import public_files

from ldro_jax import configuration
from ldro_jax.experiments.arguments import Directories

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
    path = f"gin_configs/experiments/{file}"
    scope, name = _METHODS.get(file, ("smooth_ldro", "Smooth L-DRO"))
    methods = f"compare.methods=[@average/Method(), @{scope}/Method()]"
    try:
        experiment = configuration.load([path], [*_TINY, methods, *_OWN[file]])
        text = configuration.text()
        directories = Directories(tmp_path / "out", str(tmp_path), config_text=text)
        # Optax's Adam is not made for strict promotion.
        with jax.numpy_dtype_promotion("standard"):
            record = experiment(output_dir=directories)
    finally:
        gin.clear_config()
    assert [run.method for run in record.runs] == ["Average", name]
    assert all(run.stopped is None for run in record.runs)
    assert (tmp_path / "out" / "report.html").exists()
