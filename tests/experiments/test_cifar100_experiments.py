"""Every CIFAR-100 experiment, from its gin file to its report, on a few steps of little data."""

import pathlib

import gin
import numpy as np
import pytest
from helpers import gin_files

from ldro_jax.tasks import cifar100

_REAL = pathlib.Path(__file__).parents[2].parent / "shared" / "data" / "tfds"
_TINY = [
    "TRAIN_EPOCHS=2",
    "STEPS_PER_EPOCH=2",
    "SEEDS=(0,)",
    "CNN.filters=(4, 4)",
    "CNN.features=(8,)",
    "Batches.size=23",
]
# Each experiment, with its numbers of methods and of settings.
_EXPERIMENTS = {
    "cifar100_cpu.gin": (5, 10),
    "cifar100_pareto.gin": (6, 27),
    "cifar100_interval.gin": (3, 27),
    "cifar100_renormalization.gin": (2, 6),
    "cifar100_interpolated.gin": (5, 19),
    "cifar100_large.gin": (4, 16),
    "cifar100_overhead.gin": (3, 6),
}


@pytest.fixture(autouse=True)
def _no_gin_bindings_left():
    yield
    gin.clear_config()


def generated(dataset, data_dir):
    """What is read from a TFDS directory, generated: four training images of each class."""
    del dataset, data_dir
    rng = np.random.default_rng(0)

    def part(per_class):
        label = np.tile(np.arange(100), per_class)
        image = rng.integers(0, 256, (label.size, 32, 32, 3), np.uint8)
        return {"image": image, "label": label, "coarse_label": label % 20}

    names = tuple(f"coarse {i}" for i in range(20))
    return {"train": part(4), "test": part(1), "task_names": names, "num_classes": 100}


# One method of five, one setting.
_SHORT = [
    "compare.methods=[@ldro/grid()]",
    "ldro/grid.values={'lookahead_lr': (0.1,), 'weight_lr': (0.01,)}",
]


def _run(file, output_dir, bindings, data_dir=None):
    record = gin_files.run(file, output_dir, *_TINY, *bindings, data_dir=data_dir)
    report = (output_dir / "report.html").read_text(encoding="utf-8")
    return record, report


@pytest.mark.usefixtures("unpainted")
def test_an_experiment_runs_on_a_subset_of_the_images(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar100, "_read", generated)
    bindings = ["cifar100.load.max_train_per_class=2", "cifar100.load.validation_per_class=1"]
    record, report = _run("cifar100_cpu.gin", tmp_path, [*bindings, *_SHORT])
    assert len(record.runs) == 1 and all(run.seconds_per_step > 0 for run in record.runs)
    assert all(np.isfinite(run.losses.values).all() for run in record.runs)
    assert "coarse 7" in record.task_names and "coarse 7" in report


@pytest.mark.heavy
@pytest.mark.parametrize("file", _EXPERIMENTS)
def test_an_experiment_runs_to_its_report(file, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar100, "_read", generated)
    # Together, a sweep is one program for each method.
    bindings = ["cifar100.load.validation_per_class=1", "Batches.runs_together=9"]
    record, report = _run(file, tmp_path, bindings)
    num_methods, num_settings = _EXPERIMENTS[file]
    assert len({run.method for run in record.runs}) == num_methods
    assert len(record.runs) == num_settings
    for run in record.runs:
        assert run.stopped is None and np.isfinite(run.losses.values).all()
        assert [(e.step, e.split, e.metric) for e in run.evaluations] == [
            (step, split, metric)
            for step in (2, 4)
            for split in ("validation", "test")
            for metric in ("accuracy", "within-task accuracy")
        ]
    for title in ("Pareto frontiers", "Chosen on validation", "Worst task over time"):
        assert title in report
    assert (tmp_path / "figures" / "pareto_frontiers.png").stat().st_size > 10_000


# Most of it is TensorFlow.
@pytest.mark.heavy
@pytest.mark.skipif(not _REAL.is_dir(), reason=f"needs CIFAR-100 as a TFDS directory in {_REAL}")
@pytest.mark.usefixtures("unpainted")
def test_an_experiment_runs_on_a_subset_of_the_real_images(tmp_path):
    bindings = [
        "cifar100.load.max_train_per_class=4",
        "cifar100.load.max_test_per_class=2",
        *_SHORT,
    ]
    record, report = _run("cifar100_cpu.gin", tmp_path, bindings, data_dir=str(_REAL))
    assert "large omnivores and herbivores" in record.task_names
    assert "large omnivores and herbivores" in report
    assert len(record.runs) == 1 and all(run.seconds_per_step > 0 for run in record.runs)
