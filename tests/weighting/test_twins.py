"""Tasks that are the same get the same weight, and no weight depends on the tasks' order."""

import functools

import jax
import numpy as np
import pytest
from helpers import gram_methods
from helpers.gram_methods import N

TWINS, TRIPLETS = [1, 6], [0, 3, 5]
# Those that draw an order of the tasks give twins the same in distribution only.
NAMES = [name for name in gram_methods.NAMES if name not in gram_methods.RANDOM]


def cases():
    """Matrices and losses with twins and triplets, which leave five directions at most."""
    for seed in range(gram_methods.CASES):
        rows = gram_methods.gradients(seed, spread=float(seed % 3), dims=[24, 6][seed % 2])
        losses = gram_methods.losses()
        for same in (TWINS, TRIPLETS):
            rows[same], losses[same] = rows[same[0]], losses[same[0]]
        yield rows @ rows.T, losses


@functools.cache
def weights_of(name, dtype, order=tuple(range(N))):
    order = list(order)
    matrices, losses = (np.array(part) for part in zip(*cases(), strict=True))
    with jax.enable_x64(dtype == "float64"):
        permuted = matrices[:, order][:, :, order]
        return gram_methods.first_weights(name, permuted, losses[:, order], dtype)[0]


def sizes(weights):
    return np.abs(weights).sum(axis=1, keepdims=True)


@pytest.mark.parametrize("name", NAMES)
def test_twins_have_the_same_weight(name, dtype):
    # Measured: 2e-6 where a singular matrix is inverted; for MGDA 0.02 if twins didn't share.
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    weights = weights_of(name, dtype)
    for same in (TWINS, TRIPLETS):
        assert (np.ptp(weights[:, same], axis=1) <= tolerance * sizes(weights)[:, 0]).all()


@pytest.mark.parametrize("name", NAMES)
def test_an_order_of_the_tasks_makes_no_difference(name, dtype):
    order = np.random.default_rng(1).permutation(N)
    weights = weights_of(name, dtype)
    permuted = weights_of(name, dtype, tuple(order))
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    assert (np.abs(permuted - weights[:, order]) <= tolerance * sizes(weights)).all()


@pytest.mark.parametrize("name", NAMES)
def test_it_is_so_for_each_matrix_alone(name):
    method, statistics = gram_methods.alone(name)
    for matrix, losses in list(cases())[:2]:
        weights, _ = method.update(statistics(matrix, losses), method.init(N, np.float32))
        for same in (TWINS, TRIPLETS):
            assert np.ptp(np.asarray(weights)[same]) <= 1e-5 * np.abs(weights).sum()
