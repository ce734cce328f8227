"""Quadratic programmes over the weights of N tasks, given the Gram matrix of their gradients.

Lengths of gradients may differ by any factor: the problems are solved in coefficients of the unit
gradients, from the cosines. Where gradients are linearly dependent many weights give the same
update. Tasks with the same gradient then share; otherwise rounding, and with it the order of the
tasks, has a say in which weights are found.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from ldro_jax.solvers import interior

_SEARCHES = 30
# Their loops would compile in every call outside of a jit.
_compiled = functools.partial(jax.jit, inline=True)


def dot(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    """A product in full precision, where an accelerator would round the factors."""
    return jnp.dot(matrix, vector, precision=lax.Precision.HIGHEST)


@_compiled
def on_simplex(
    matrix: jax.Array, linear: jax.Array, among: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    r"""Minimises :math:`½ w^⊤ Q w + b^⊤ w` over the simplex.

    Args:
      matrix: Q, ``[N, N]``, positive semidefinite.
      linear: b, ``[N]``.
      among: bool ``[N]``, the tasks that may have a weight; ``None`` for all.

    Returns:
      w, ``[N]``, which sum to one; and whether they are optimal.
    """
    cosines, norms, shares = scaled(matrix)
    # With w = shares · x, the rows of the matrix are of one size; the objective in units of it.
    unit = jnp.min(norms) ** 2
    slope = linear * shares
    size = jnp.maximum(unit, jnp.max(jnp.abs(slope)))
    size = jnp.where(size > 0, size, 1)
    hessian, slope = regular(cosines) * (unit / size), slope / size
    x, solved = _simplex(hessian, slope, shares, among)
    same = _same(cosines, norms) & (jnp.abs(slope[:, None] - slope[None, :]) <= _rounding(slope))
    return _shared(x, same), solved


@_compiled
def min_norm(matrix: jax.Array, among: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    r"""Minimises :math:`w^⊤ A w` over the simplex: the shortest convex combination of gradients.

    Args:
      matrix: A, ``[N, N]``, positive semidefinite.
      among: bool ``[N]``, the tasks that may have a weight; ``None`` for all.

    Returns:
      w, ``[N]``, which sum to one; and whether they are optimal.
    """
    cosines, norms, shares = scaled(matrix)
    weights, solved = _simplex(regular(cosines), jnp.zeros_like(norms), shares, among)
    return _shared(weights, _same(cosines, norms)), solved


@_compiled
def steepest(
    matrix: jax.Array, radius: jax.Array, among: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    r"""Maximises :math:`\min_i ⟨g_i, d⟩` over :math:`‖d − g_0‖ ≤ c ‖g_0‖`, :math:`g_0` the mean.

    Of the updates in which each task gains τ or more, in units of :math:`‖g_0‖` and the shortest
    gradient, the one nearest to :math:`g_0` is a quadratic programme, of which τ is the multiplier:
    one interior-point method finds it together with the τ for which the distance is c. Where that
    fails, Newton's method finds τ, as the distance is a convex function of it.

    Args:
      matrix: A, ``[N, N]``, positive semidefinite.
      radius: c, not negative.
      among: bool ``[N]``, the tasks that count; ``None`` for all.

    Returns:
      v, ``[N]``, not negative, with :math:`d = g_0 + Σ_i v_i g_i`; and whether that is optimal. A
      task without gradient is left out of the minimum. Where no update is good for all tasks, d is
      the nearest that harms none.
    """
    cosines, norms, shares = scaled(matrix)
    alive = lengths(matrix) > 0
    counted = jnp.ones_like(alive) if among is None else among
    relative = jnp.where(alive, norms / jnp.max(norms), 0)
    relative = relative / jnp.maximum(jnp.sum(counted, dtype=norms.dtype), 1)
    mean = dot(cosines, relative)
    length = jnp.sqrt(jnp.maximum(relative @ mean, jnp.finfo(norms.dtype).tiny))
    slope = jnp.clip(mean / length, -1, 1)
    hessian = regular(cosines)
    size = 1 + radius
    ones = jnp.ones_like(norms)

    def linear(gain):
        # What costs more than any update brings is not worth telling apart.
        counts = alive & counted
        return jnp.where(counts, jnp.minimum(slope - gain * shares, 2), 2) / size

    def of(point, solved):
        x = point.x * size
        return x, jnp.sqrt(jnp.maximum(x @ dot(cosines, x), 0)), solved

    def at(gain, needed=None):
        found = interior.minimise(
            lambda x: (dot(hessian, x) + linear(gain), hessian), ones, needed=needed
        )
        return of(*found)

    def harming(gain, x):
        return (gain > 0) & (jnp.min(jnp.where(alive, slope + dot(cosines, x), 0)) < 0)

    def advance(carry):
        gain, (x, distance, _), step = carry
        push = x @ jnp.where(alive, shares, 0)
        moved = gain - (distance - radius) * distance / jnp.where(push > 0, push, 1)
        # Without conflict the distance is zero, and says nothing of where it begins to grow.
        flat = (distance <= 1e-3 * radius) | (push <= 0)
        gain = jnp.where(flat, size, jnp.minimum(moved, size))
        return gain, at(gain), step + 1

    def unfinished(carry):
        _, (_, distance, _), step = carry
        return (jnp.abs(distance - radius) > tolerance * radius) & (step < _SEARCHES)

    tolerance = 1e-5 if norms.dtype == jnp.float32 else 1e-10
    zero = jnp.zeros_like(radius)
    # Mostly both are found together, from equal coefficients of about the right size. On the sphere
    # of the cosines themselves: stretched to it by 1e-5, x would cost a short gradient its gain.
    equal = radius / size / jnp.sqrt(jnp.maximum(ones @ dot(hessian, ones), 1))
    point, solved = interior.minimise(
        lambda x: (dot(hessian, x) + linear(zero), hessian),
        jnp.maximum(equal, 1e-3) * ones,
        jnp.where(alive & counted, shares, 0),
        sphere=(cosines, radius / size),
    )
    first = of(point, solved)
    gain = point.multiplier * size
    difficult = ~solved | unfinished((gain, first, 0)) | harming(gain, first[0])
    harmless = at(zero, difficult)
    gain, first = jax.tree.map(
        lambda a, b: jnp.where(difficult, a, b), (zero, harmless), (gain, first)
    )
    gain, (x, distance, solved), _ = lax.while_loop(
        unfinished, advance, (gain, first, jnp.zeros([], jnp.int32))
    )
    # Where the mean gradient is zero there is nothing to search.
    solved &= ~unfinished((gain, (x, distance, solved), 0)) | (relative @ mean <= 0)
    # Stretched to the radius exactly.
    x = x * (radius / jnp.where(distance > 0, distance, 1))
    lost = harming(gain, x)
    x = jnp.where(lost, harmless[0], x)
    solved = jnp.where(lost, harmless[2], solved)
    weights = jnp.where(alive & counted, x * (length * jnp.max(norms)) / norms, 0)
    return _shared(weights, _same(cosines, norms)), solved


@_compiled
def above(matrix: jax.Array, lower: jax.Array) -> tuple[jax.Array, jax.Array]:
    r"""Minimises :math:`v^⊤ A v` over :math:`v ≥ l`.

    Args:
      matrix: A, ``[N, N]``, positive semidefinite.
      lower: l, ``[N]``, not negative.

    Returns:
      v, ``[N]``, l where A is zero; and whether they are optimal.
    """
    cosines, norms, _ = scaled(matrix)
    alive = lengths(matrix) > 0
    hessian = regular(cosines)
    bound = jnp.where(alive, lower * norms, 0)
    size = jnp.max(bound)
    size = jnp.where(size > 0, size, 1)
    # x is what v has beyond its bound, in units of the gradients' lengths.
    slope = jnp.where(alive, dot(hessian, bound / size), 1)
    point, solved = interior.minimise(
        lambda x: (dot(hessian, x) + slope, hessian), jnp.ones_like(bound)
    )
    x = jnp.where(alive, _shared(point.x, _same(cosines, norms)), 0)
    return lower + x * size / norms, solved


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
    smallest = jnp.min(jnp.where(alive, norms, jnp.inf))
    smallest = jnp.where(jnp.isfinite(smallest), smallest, 1)
    norms = jnp.where(alive, norms, smallest)
    cosines = matrix / norms[:, None] / norms[None, :]
    both = alive[:, None] & alive[None, :]
    return jnp.where(both, jnp.clip(cosines, -1, 1), 0), norms, smallest / norms


def lengths(matrix: jax.Array) -> jax.Array:
    """Lengths of the gradients, ``[N]``, such that no cosine is above one.

    Those of a Gram matrix are the roots of its diagonal. A diagonal that was measured without bias,
    or at another time than the rest, can be too small for its row, and what divides by it would
    explode: both gradients of such a pair are taken to be as long as the root of their product.
    """
    norms = jnp.sqrt(jnp.maximum(jnp.diagonal(matrix), 0))
    sizes = jnp.abs(matrix)
    # By more than rounding, which is in units of the pair's longer one.
    longer = jnp.maximum(norms[:, None], norms[None, :])
    rounding = 64 * jnp.finfo(norms.dtype).eps
    too_short = sizes > 1.001 * norms[:, None] * norms[None, :]
    too_short &= sizes > rounding * longer * longer
    too_short &= ~jnp.eye(norms.size, dtype=bool)
    needed = jnp.where(too_short, jnp.sqrt(sizes), 0)
    return jnp.maximum(norms, jnp.maximum(jnp.max(needed, axis=0), jnp.max(needed, axis=1)))


def regular(cosines: jax.Array) -> jax.Array:
    """The cosines, a little more than positive definite, so that every problem has one solution."""
    ridge = 32 * jnp.finfo(cosines.dtype).eps
    return cosines + ridge * jnp.eye(cosines.shape[0], dtype=cosines.dtype)


def _simplex(hessian, slope, shares, among):
    """Minimises over w = shares · x, which sum to one; x has the same order of size in all."""
    if among is not None:
        slope, shares = jnp.where(among, slope, 1), jnp.where(among, shares, 0)
    start = jnp.ones_like(shares) / jnp.sum(shares)
    point, solved = interior.minimise(lambda x: (dot(hessian, x) + slope, hessian), start, shares)
    weights = point.x * shares
    return weights / jnp.sum(weights), solved


def _rounding(values):
    return 16 * jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(values))


def _same(cosines, norms):
    """Which tasks have the same gradient, as far as the matrix can tell, bool ``[N, N]``."""
    rounding = 16 * jnp.finfo(norms.dtype).eps
    ratio = norms[:, None] / norms[None, :]
    same = (cosines >= 1 - rounding) & (jnp.abs(ratio - 1) <= rounding)
    return same | jnp.eye(norms.size, dtype=bool)


def _shared(weights, same):
    """Means over tasks with the same gradient: their sum counts, and rounding has split it."""
    same = same.astype(weights.dtype)
    return dot(same, weights) / jnp.sum(same, axis=1)
