"""Tests in T5X's company, which is not as strict about dtypes and shapes as the other tests."""

import jax
import pytest


@pytest.fixture(autouse=True)
def _as_t5x_expects():
    # T5X computes in threads of its own, which a context manager would not reach.
    expected = {"jax_numpy_dtype_promotion": "standard", "jax_numpy_rank_promotion": "allow"}
    before = {name: getattr(jax.config, name) for name in expected}
    for name, value in expected.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
