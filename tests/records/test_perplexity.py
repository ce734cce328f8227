"""Perplexities against numbers from paper and pencil."""

import math

import numpy as np

from ldro_jax.records.perplexity import perplexity


def test_guessing_among_k_tokens_has_perplexity_k():
    sizes = np.array([1.0, 2.0, 250.0, 32000.0])
    np.testing.assert_allclose(perplexity(np.log(sizes)), sizes, rtol=1e-12)


def test_what_is_too_large_is_infinite_and_what_is_missing_stays_missing():
    # A warning would be an error here.
    found = perplexity(np.array([1e4, np.inf, np.nan, -np.inf], np.float32))
    assert found[:2].tolist() == [math.inf] * 2 and math.isnan(found[2]) and found[3] == 0
    assert found.dtype == np.float64
    assert perplexity([]).shape == (0,)
