"""A primal-dual interior-point method for convex problems with bounds and one equality.

The multiplier of the equality can also be what is asked for: that for which the solution has a
given length.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

_MAX_STEPS = 40


class Point(NamedTuple):
    """Primal x > 0, dual z > 0 of the bounds, and the multiplier of the equality."""

    x: jax.Array
    z: jax.Array
    multiplier: jax.Array


def minimise(
    derivatives: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    start: jax.Array,
    equality: jax.Array | None = None,
    *,
    sphere: tuple[jax.Array, jax.Array] | None = None,
    needed: jax.Array | None = None,
) -> tuple[Point, jax.Array]:
    r"""Minimises a convex function f over :math:`x ≥ 0`, and :math:`e^⊤ x = 1` if e is given.

    With a sphere :math:`x^⊤ Q x = r^2` in place of that equality, it finds the multiplier m and the
    x that minimises :math:`f(x) − m e^⊤ x` and lies on the sphere.

    Mehrotra's predictor-corrector, with the Hessian taken anew in every step. Variables should be
    scaled so that the entries of the gradient and of the Hessian's diagonal are at most about one.

    Args:
      derivatives: ``x [N] -> (gradient [N], Hessian [N, N])``, which must be positive definite.
      start: ``[N]``, positive.
      equality: e, ``[N]``, not negative, and not all zero.
      sphere: Q, ``[N, N]``, positive semidefinite, and r.
      needed: bool; if it isn't, what is returned is the start.

    Returns:
      The point, with x ``[N]``; and whether it satisfies the conditions of optimality, but for
      rounding.

    References:
      Mehrotra, `On the Implementation of a Primal-Dual Interior Point Method
      <https://doi.org/10.1137/0802028>`_, 1992.
    """
    target = jnp.finfo(start.dtype).eps / 10

    def advance(carry):
        point, step = carry
        x, z, multiplier = point
        gradient, hessian = derivatives(x)
        dual = gradient - z
        factor = jax.scipy.linalg.cho_factor(hessian + jnp.diag(z / x))
        if equality is not None:
            dual = dual - multiplier * equality
            normal = jax.scipy.linalg.cho_solve(factor, equality)

        def direction(product):
            """The Newton step for which x z changes by ``product`` to first order."""
            dx = jax.scipy.linalg.cho_solve(factor, product / x - dual)
            change = jnp.zeros_like(multiplier)
            if equality is not None:
                change = _change(x + dx, normal, equality, sphere)
                dx = dx + change * normal
            return Point(dx, (product - z * dx) / x, change)

        mean = x @ z / x.size
        d = direction(-x * z)
        affine = (x + _longest(x, d.x) * d.x) @ (z + _longest(z, d.z) * d.z) / x.size
        centring = jnp.clip((affine / mean) ** 3, 1e-4, 1) * mean
        d = direction(centring - x * z - d.x * d.z)
        length = 0.99 * jnp.minimum(_longest(x, d.x), _longest(z, d.z))
        new = jax.tree.map(lambda a, b: a + length * b, point, d)
        valid = jnp.isfinite(new.x).all() & jnp.isfinite(new.z).all()
        valid &= (new.x > 0).all() & (new.z > 0).all()
        point = jax.tree.map(lambda a, b: jnp.where(valid, a, b), new, point)
        return point, jnp.where(valid, step + 1, _MAX_STEPS)

    def unfinished(carry):
        point, step = carry
        more = (point.x @ point.z > target * point.x.size) & (step < _MAX_STEPS)
        return more if needed is None else more & needed

    gradient, _ = derivatives(start)
    if equality is None:
        multiplier = jnp.zeros((), start.dtype)
        z = jnp.maximum(jnp.abs(gradient), 0.1)
    else:
        multiplier = jnp.min(gradient / equality, where=equality > 0, initial=jnp.inf)
        z = gradient - multiplier * equality
        z = z + 0.1 * jnp.max(z) + 0.01
    point, _ = lax.while_loop(unfinished, advance, (Point(start, z, multiplier), 0))
    return point, _optimal(point, derivatives(point.x)[0], equality, sphere)


def _change(x, normal, equality, sphere):
    """How far x has to go along the normal until it satisfies the equality."""
    if sphere is None:
        return _off(x, equality, sphere) / (equality @ normal)
    matrix, radius = sphere
    product = _dot(matrix, normal)
    square, half = normal @ product, x @ product
    rest = x @ _dot(matrix, x) - radius**2
    # The larger root; where the line misses the sphere, the nearest point.
    return (jnp.sqrt(jnp.maximum(half**2 - square * rest, 0)) - half) / square


def _off(x, equality, sphere):
    if sphere is None:
        return 1 - equality @ x
    matrix, radius = sphere
    return radius - jnp.sqrt(x @ _dot(matrix, x))


def _dot(a, b):
    return jnp.dot(a, b, precision=lax.Precision.HIGHEST)


def _optimal(point, gradient, equality, sphere):
    """Whether the conditions hold to the root of the rounding, as the objective then does to it."""
    x, z, multiplier = point
    dual = gradient - z
    error = x @ z / x.size
    if equality is not None:
        dual = dual - multiplier * equality
        error = jnp.maximum(error, jnp.abs(_off(x, equality, sphere)))
    size = 1 + jnp.max(jnp.abs(gradient))
    return jnp.maximum(error, jnp.max(jnp.abs(dual)) / size) <= jnp.finfo(x.dtype).eps ** 0.5


def _longest(x, dx):
    """The longest step in [0, 1] that keeps x + step dx from being negative."""
    ratios = jnp.where(dx < 0, -x / jnp.where(dx < 0, dx, -1), jnp.inf)
    return jnp.minimum(1, jnp.min(ratios))
