"""Most of these tests write no TensorBoard events: importing TensorFlow would take longer."""

import pytest

from ldro_jax.training import writers


@pytest.fixture(autouse=True)
def _no_tensorboard(request, monkeypatch):
    if "tensorboard" not in request.node.name:
        monkeypatch.setattr(writers, "tensorboard_writer", lambda directory: writers.NullWriter())
