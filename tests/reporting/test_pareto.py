"""Frontiers and the area they dominate, against brute force on small grids of integers."""

import itertools

import numpy as np
import pytest

from ldro_jax.reporting.pareto import hypervolume, non_dominated

SIZE = 7


def points_for(seed):
    """Few different coordinates, so that ties and equal points are common."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, SIZE + 1, size=(int(rng.integers(0, 12)), 2)).astype(float)


def counted_cells(points, reference):
    """The unit cells between the reference and any point, one by one: the area of integer points.

    A cell is named by its upper right corner.
    """
    cells = itertools.product(range(reference[0] + 1, SIZE + 1), range(reference[1] + 1, SIZE + 1))
    return sum(any(x <= p[0] and y <= p[1] for p in points) for x, y in cells)


def unbeaten(points, higher_is_better):
    """The definition of the frontier, pair by pair."""
    sign = 1 if higher_is_better else -1
    rows = {tuple(float(v) for v in p) for p in points}
    return sorted(
        p
        for p in rows
        if not any(
            q != p and sign * q[0] >= sign * p[0] and sign * q[1] >= sign * p[1] for q in rows
        )
    )


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("higher_is_better", [True, False])
def test_the_frontier_is_what_no_other_point_beats(seed, higher_is_better):
    points = points_for(seed)
    found = non_dominated(points, higher_is_better)
    assert [tuple(p) for p in found] == unbeaten(points, higher_is_better)


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("reference", [(0, 0), (2, 1), (SIZE, SIZE)])
def test_the_area_is_the_number_of_cells(seed, reference):
    points = points_for(seed)
    # Sums of small integers are exact in floating point.
    assert hypervolume(points, reference) == counted_cells(points, reference)


@pytest.mark.parametrize("seed", range(10))
def test_lower_is_better_is_the_mirror_image(seed):
    points = points_for(seed)
    assert hypervolume(-points, (-2, -1), False) == counted_cells(points, (2, 1))
    assert hypervolume(SIZE - points, (SIZE, SIZE), False) == counted_cells(points, (0, 0))


@pytest.mark.parametrize("seed", range(10))
def test_dominated_points_copies_order_and_nan_change_nothing(seed):
    points = np.concatenate([points_for(seed), [[3.0, 4.0]]])
    area = hypervolume(points, (0, 0))
    rng = np.random.default_rng(seed)
    for changed in (
        np.concatenate([points, [[3.0, 4.0], [2.0, 4.0], [1.0, 0.5]]]),
        np.concatenate([points, points]),
        rng.permutation(points),
        np.concatenate([points, [[np.nan, 9.0], [9.0, np.nan], [np.inf, 1.0]]]),
        non_dominated(points, True),
    ):
        assert hypervolume(changed, (0, 0)) == area


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("higher_is_better", [True, False])
def test_more_points_never_dominate_less(seed, higher_is_better):
    points = np.random.default_rng(seed).normal(size=(20, 2))
    areas = [hypervolume(points[:n], (0.1, -0.2), higher_is_better) for n in range(21)]
    assert areas[0] == 0.0 and areas[-1] > 0.0
    # The columns of another frontier are added in another order: rounding to the last bits.
    assert np.all(np.diff(areas) >= -1e-12)


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_the_area_scales_with_both_units(scale):
    points = np.array([[1.0, 3.0], [2.0, 1.0]])
    assert hypervolume(scale * points, (0, 0)) == pytest.approx(4 * scale**2, rel=1e-12)


def test_a_point_that_does_not_beat_the_reference_has_no_area():
    assert hypervolume([[0.5, 0.9], [0.9, 0.5], [0.5, 0.5]], (0.5, 0.5)) == 0.0
    assert hypervolume([[0.5, 0.9], [0.75, 0.75]], (0.5, 0.5)) == 0.0625
    assert hypervolume(np.zeros((0, 2)), (0, 0)) == 0.0


@pytest.mark.parametrize("reference", [(0,), 0.0, (0, 0, 0), (np.nan, 0), (0, np.inf)])
def test_a_reference_that_is_no_point_is_explained(reference):
    with pytest.raises(ValueError, match="Expected a reference of two finite numbers; found"):
        hypervolume([[1.0, 1.0]], reference)
