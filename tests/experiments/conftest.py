"""Experiments without what takes longer than they do."""

import pytest
import trained as trained_lib

from ldro_jax import reporting
from ldro_jax.training import writers


@pytest.fixture(autouse=True)
def _no_tensorboard(monkeypatch):
    # It imports TensorFlow.
    monkeypatch.setattr(writers, "tensorboard_writer", lambda directory: writers.NullWriter())


@pytest.fixture
def no_report(monkeypatch):
    monkeypatch.setattr(reporting, "write_report", lambda *args, **options: None)


@pytest.fixture
def trained(monkeypatch):
    return trained_lib.Trained(monkeypatch)
