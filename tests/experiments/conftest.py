"""Experiments without what takes longer than they do."""

import pytest
from helpers import trained as trained_lib

from ldro_jax import reporting


@pytest.fixture
def no_report(monkeypatch):
    monkeypatch.setattr(reporting, "write_report", lambda *args, **options: None)


@pytest.fixture
def trained(monkeypatch):
    return trained_lib.Trained(monkeypatch)
