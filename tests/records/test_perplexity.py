"""Perplexities against numbers from paper and pencil."""

import math

import numpy as np
import pytest

from ldro_jax.records.perplexity import perplexity, relative_perplexity


def test_guessing_among_k_tokens_has_perplexity_k():
    sizes = np.array([1.0, 2.0, 250.0, 32000.0])
    np.testing.assert_allclose(perplexity(np.log(sizes)), sizes, rtol=1e-12)


def test_what_is_too_large_is_infinite_and_what_is_missing_stays_missing():
    # A warning would be an error here.
    found = perplexity(np.array([1e4, np.inf, np.nan, -np.inf], np.float32))
    assert found[:2].tolist() == [math.inf] * 2 and math.isnan(found[2]) and found[3] == 0
    assert found.dtype == np.float64
    assert perplexity([]).shape == (0,)


def test_relative_perplexity_by_hand():
    found = relative_perplexity([30, 15, 20, 80], [20, 20, 20, 20])
    assert found.tolist() == [50, -25, 0, 300]


def test_relative_perplexity_has_no_unit_and_is_zero_for_the_model_itself():
    rng = np.random.default_rng(0)
    values, references = rng.uniform(10, 300, (2, 40))
    found = relative_perplexity(values, references)
    np.testing.assert_allclose(relative_perplexity(7 * values, 7 * references), found, rtol=1e-10)
    assert not relative_perplexity(references, references).any()
    # As a logarithm it is the difference of the two losses.
    np.testing.assert_allclose(np.log1p(found / 100), np.log(values) - np.log(references))


def test_a_missing_or_infinite_perplexity_stays_so():
    found = relative_perplexity([np.nan, np.inf, 10], [10, 10, np.nan])
    assert math.isnan(found[0]) and found[1] == math.inf and math.isnan(found[2])


@pytest.mark.parametrize(
    "values, references", [([1, 2], [1]), ([1, 2], 1.0), ([[1, 2]], [[1, 2]]), (3.0, 3.0)]
)
def test_a_reference_for_each_task_is_required(values, references):
    with pytest.raises(ValueError, match="one perplexity and one reference for each task"):
        relative_perplexity(values, references)


@pytest.mark.parametrize("bad", [0.0, -2.0])
def test_a_reference_must_be_positive(bad):
    with pytest.raises(ValueError, match=f"positive references; found {bad:g} for task 2"):
        relative_perplexity([1, 2, 3], [1, np.nan, bad])
