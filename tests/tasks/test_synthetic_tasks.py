"""The paper's two-parameter problem against its closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldro_jax.tasks import synthetic


@pytest.mark.parametrize(
    ("r", "phi", "expected"),
    [(0, 0, (2.25, 0)), (0, np.pi, (-0.25, 0)), (1, np.pi / 2, (1, 2.25)), (-1, 0, (3.25, 0))],
)
def test_position(r, phi, expected):
    found = synthetic.position(jnp.array([r, phi], jnp.float32))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("r", [-2.0, 0.0, 0.7])
@pytest.mark.parametrize("phi", [-1.0, 0.4, 3.0])
def test_the_outlier_is_never_nearer_than_the_radius(r, phi):
    loss = synthetic.task_loss(jnp.array([r, phi]), jnp.array(synthetic.OUTLIER))
    assert loss == pytest.approx((1.25 + r**2) ** 2, rel=1e-5)


def test_gradient_against_the_closed_form():
    r, phi = 0.6, 1.2
    point = np.array([-1.1, 0.2])
    radius = 1.25 + r**2
    direction = np.array([np.cos(phi), np.sin(phi)])
    tangent = np.array([-np.sin(phi), np.cos(phi)])
    offset = np.array([1.0, 0.0]) + radius * direction - point
    expected = [2 * offset @ direction * 2 * r, 2 * offset @ tangent * radius]
    found = jax.grad(synthetic.task_loss)(jnp.array([r, phi]), jnp.asarray(point, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_points():
    points = synthetic.points()
    assert points.shape == (10, 2) and points.dtype == np.float32
    np.testing.assert_array_equal(points[-1], synthetic.OUTLIER)
    assert np.linalg.norm(points[:-1] - [-1, 0], axis=1).max() < 0.4
    np.testing.assert_array_equal(points, synthetic.points())
    assert synthetic.points(num_similar=3, spread=0.0).tolist() == [[-1, 0]] * 3 + [[1, 0]]
