"""Quadratic programmes over the weights of N tasks, given the Gram matrix of their gradients."""

import jax
import jax.numpy as jnp
from jax import lax

from ldro_jax.solvers import interior

_HIGHEST = lax.Precision.HIGHEST
_SEARCHES = 40


def on_simplex(matrix: jax.Array, linear: jax.Array) -> jax.Array:
    r"""Minimises :math:`½ w^⊤ Q w + b^⊤ w` over the simplex.

    Args:
      matrix: Q, ``[N, N]``, positive semidefinite.
      linear: b, ``[N]``.

    Returns:
      w, ``[N]``, which sum to one. Of several minima one that treats duplicated tasks alike.
    """
    cosines, _, shares = scaled(matrix)
    # With w = shares · x, the rows of the matrix are of one size; the objective in units of it.
    unit = _smallest(lengths(matrix)) ** 2
    slope = linear * shares
    size = jnp.maximum(unit, jnp.max(jnp.abs(slope)))
    size = jnp.where(size > 0, size, 1)
    quadratic, slope = regular(cosines) * (unit / size), slope / size
    x = _simplex(lambda x: (jnp.dot(quadratic, x, precision=_HIGHEST) + slope, quadratic), shares)
    return x


def min_norm(matrix: jax.Array) -> jax.Array:
    r"""Minimises :math:`w^⊤ A w` over the simplex: the shortest convex combination of gradients.

    Args:
      matrix: A, ``[N, N]``, positive semidefinite.

    Returns:
      w, ``[N]``, which sum to one.
    """
    cosines, _, shares = scaled(matrix)
    quadratic = regular(cosines)
    return _simplex(lambda x: (jnp.dot(quadratic, x, precision=_HIGHEST), quadratic), shares)


def steepest(matrix: jax.Array, radius: jax.Array) -> jax.Array:
    r"""Minimises :math:`w^⊤ A u + c \sqrt{u^⊤ A u} \sqrt{w^⊤ A w}` over the simplex, u uniform.

    With :math:`2 \sqrt{q} = \min_s q / s + s` it is a search for s, of a quadratic programme each.

    Args:
      matrix: A, ``[N, N]``, positive semidefinite.
      radius: c, not negative.

    Returns:
      w, ``[N]``, which sum to one.
    """
    cosines, norms, shares = scaled(matrix)
    quadratic = regular(cosines)
    # Cosines of the angles between each gradient and their mean.
    relative = norms / jnp.max(norms)
    mean = jnp.dot(cosines, relative, precision=_HIGHEST)
    length = jnp.sqrt(jnp.maximum(relative @ mean, jnp.finfo(norms.dtype).tiny))
    slope = jnp.clip(mean / length, -1, 1)

    def excess(log_s):
        """How much longer the solution for s is than s, as a logarithm, and the solution."""
        curvature = radius * jnp.exp(-log_s)
        size = jnp.maximum(curvature, 1)
        hessian, linear = quadratic * (curvature / size), slope / size
        hessian = hessian + regular(jnp.zeros_like(hessian))
        x = interior.minimise(
            lambda x: (jnp.dot(hessian, x, precision=_HIGHEST) + linear, hessian), start, shares
        )
        squared = x @ jnp.dot(quadratic, x, precision=_HIGHEST)
        return jnp.log(squared) / 2 - log_s, x

    def narrow(carry):
        low, high, above, below, _, step = carry
        # Regula falsi, or half-way where it would hardly move (Illinois).
        middle = low + (high - low) * jnp.clip(above / (above - below), 0.1, 0.9)
        found, x = excess(middle)
        longer = found > 0
        return (
            jnp.where(longer, middle, low),
            jnp.where(longer, high, middle),
            jnp.where(longer, found, above / 2),
            jnp.where(longer, below / 2, found),
            x,
            jnp.where(jnp.abs(found) < tolerance, _SEARCHES, step + 1),
        )

    start = 1 / (shares.size * shares)
    tolerance = 1e-4 if norms.dtype == jnp.float32 else 1e-10
    # Below the first the shortest combination is all but zero; nothing is longer than the second.
    low = jnp.log(jnp.asarray(8 * jnp.finfo(norms.dtype).eps ** 0.5, norms.dtype))
    high = -jnp.log(jnp.min(shares)) + 1
    (above, x), (below, _) = excess(low), excess(high)
    done = jnp.where(above <= 0, _SEARCHES, 0)
    *_, x, _ = lax.while_loop(
        lambda carry: carry[-1] < _SEARCHES, narrow, (low, high, above, below, x, done)
    )
    return _normalised(x, shares)


def above(matrix: jax.Array, lower: jax.Array) -> jax.Array:
    r"""Minimises :math:`v^⊤ A v` over :math:`v ≥ l`.

    Args:
      matrix: A, ``[N, N]``, positive semidefinite.
      lower: l, ``[N]``, not negative.

    Returns:
      v, ``[N]``; l where A is zero.
    """
    cosines, norms, _ = scaled(matrix)
    quadratic = regular(cosines)
    bound = lower * norms
    size = jnp.max(bound)
    bound = bound / jnp.where(size > 0, size, 1)
    # x is what v has beyond its bound, in units of the gradients' lengths.
    slope = jnp.dot(quadratic, bound, precision=_HIGHEST)
    x = interior.minimise(
        lambda x: (jnp.dot(quadratic, x, precision=_HIGHEST) + slope, quadratic),
        jnp.ones_like(bound),
    )
    return lower + x * jnp.where(size > 0, size, 0) / norms


def scaled(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A Gram matrix in units of its rows.

    Args:
      matrix: ``[N, N]``.

    Returns:
      The cosines ``[N, N]``, zero in the row and column of a zero gradient; the norms ``[N]``, for
      a zero gradient that of the shortest other; and the smallest norm over each, ``[N]``.
    """
    norms = lengths(matrix)
    alive = norms > 0
    smallest = _smallest(norms)
    norms = jnp.where(alive, norms, smallest)
    cosines = matrix / norms[:, None] / norms[None, :]
    both = alive[:, None] & alive[None, :]
    return jnp.where(both, jnp.clip(cosines, -1, 1), 0), norms, smallest / norms


def lengths(matrix: jax.Array) -> jax.Array:
    """Lengths of the gradients, such that no cosine is above one.

    Those of a Gram matrix are the roots of its diagonal. A diagonal that was measured without bias,
    or at another time than the rest, can be too small for its row, and what divides by it would
    explode: both gradients of such a pair are taken to be as long as the root of their product.

    Args:
      matrix: ``[N, N]``.

    Returns:
      ``[N]``.
    """
    norms = jnp.sqrt(jnp.maximum(jnp.diagonal(matrix), 0))
    sizes = jnp.abs(matrix)
    # Both by more than rounding.
    largest = jnp.max(norms)
    too_short = sizes > 1.001 * norms[:, None] * norms[None, :]
    rounding = 64 * jnp.finfo(norms.dtype).eps * largest
    too_short &= sizes / jnp.where(largest > 0, largest, 1) > rounding
    too_short &= ~jnp.eye(norms.size, dtype=bool)
    needed = jnp.where(too_short, jnp.sqrt(sizes), 0)
    return jnp.maximum(norms, jnp.maximum(jnp.max(needed, axis=0), jnp.max(needed, axis=1)))


def _smallest(norms):
    smallest = jnp.min(jnp.where(norms > 0, norms, jnp.inf))
    return jnp.where(jnp.isfinite(smallest), smallest, 1)


def regular(cosines: jax.Array) -> jax.Array:
    """The cosines, a little more than positive definite, so that every problem has one solution.

    Args:
      cosines: ``[N, N]``.

    Returns:
      ``[N, N]``.
    """
    ridge = 32 * jnp.finfo(cosines.dtype).eps
    return cosines + ridge * jnp.eye(cosines.shape[0], dtype=cosines.dtype)


def _simplex(derivatives, shares):
    return _normalised(interior.minimise(derivatives, 1 / (shares.size * shares), shares), shares)


def _normalised(x, shares):
    weights = x * shares
    return weights / jnp.sum(weights)
