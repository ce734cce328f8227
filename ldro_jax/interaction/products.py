"""Products of the interaction matrix with vectors, without the matrix.

With J the Jacobian of the task losses, ``A = J Jᵀ``. A product ``A v`` is then two steps: the
gradient of the v-weighted loss, ``d = Jᵀ v``, which is one backward pass, and how much each loss
changes along it, ``J d``, which is one pass forwards. Neither depends on the number of tasks, where
the matrix takes N gradients. A method that looks at A only through a few products, as online
Lookahead-DRO does with ``A w`` and the row of the worst task, needs no more.

On the same rows the two steps give the products of these rows' matrix. On different rows no noise
is in both, and the mean of the product over batches is that of the true gradients.

Lengths come from a random direction r, of independent signs. The change of loss i along it,
squared, has ``‖∇ℓ_i‖²`` as its mean; that on one half of the rows times that on the other has the
part of it that isn't noise.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ldro_jax.interaction import base, geometry
from ldro_jax.runtime import checks, equations
from ldro_jax.runtime import leaves as leaves_lib

# params -> (losses [N], which tasks have rows, bool [N])
Losses = Callable[[Any], tuple[jax.Array, jax.Array]]


class Products(NamedTuple):
    """How to ask for products of the interaction matrix A.

    Attributes:
      times: ``v [N] -> A v [N]``, and for which tasks there were rows to measure it on, bool
        ``[N]``.
      squares: ``key -> [2, N]``, two terms of A's diagonal as it is for a whole batch, estimated
        from one random direction: the first can be negative, its mean can't; the second is not.
        With them which tasks there were rows of, bool ``[N]``, and whether they are the diagonal
        itself and no estimates, a Python bool.
    """

    times: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    squares: Callable[[jax.Array], tuple[jax.Array, jax.Array, bool]]


def of_matrix(matrix: jax.Array) -> Products:
    """Those of a matrix ``[N, N]`` that is there."""
    everywhere = jnp.ones(len(matrix), bool)
    # A gradient that isn't finite belongs to no product but its own.
    matrix = jnp.where(jnp.isfinite(jnp.diagonal(matrix))[None, :], matrix, 0)

    def times(v):
        # In a lower precision (TPU, TF32) the worst task would be another one.
        return jnp.dot(matrix, v, precision=jax.lax.Precision.HIGHEST), everywhere

    def squares(key):
        del key
        diagonal = jnp.diagonal(matrix)
        return jnp.stack([diagonal, jnp.zeros_like(diagonal)]), everywhere, True

    return Products(times, squares)


def of_vector(
    strategy: base.Interaction, losses_fn: Callable[[Any], jax.Array], params: Any
) -> Products:
    """Those of the gradients of ``losses_fn``, from parameters to losses ``[N]``.

    Raises:
      ValueError: if the strategy halves the rows, which it knows nothing of here.
    """
    if strategy.multiple > 1:
        raise ValueError(
            "interaction.products(apart=True) measures on two halves of the rows, which losses_fn "
            "doesn't have. Use apart=False, or give loss_fn and batch."
        )

    def losses(params):
        found = losses_fn(params)
        return found, jnp.ones(found.shape, bool)

    return of_losses(losses, None, params)


def of_losses(
    first: Losses,
    second: Losses | None,
    params: Any,
    *,
    halves: tuple[Losses, Losses] | None = None,
    part: float | jax.Array = 1.0,
    preconditioner: Any = None,
) -> Products:
    """Those of the gradients of task losses.

    Args:
      first: ``params -> (losses [N], bool [N])``, which is pulled back.
      second: the same on other rows, which the gradient is pushed forward through; ``None`` for the
        same rows, which take one pass less.
      params: where they are differentiated.
      halves: two such functions of rows that have nothing in common, which lengths come from; by
        default the first and the second.
      part: the rows of a half over those of a batch: the squares of a batch's gradients have so
        much of the noise of theirs.
      preconditioner: P, like the parameters, for products with ``J P Jᵀ``.
    """
    if halves is None and second is not None:
        halves = first, second
    if preconditioner is not None:

        def moved(function):
            return geometry.in_units(function, params, preconditioner)[0]

        zero = jax.tree.map(jnp.zeros_like, preconditioner)
        others = halves and (moved(halves[0]), moved(halves[1]))
        return of_losses(moved(first), second and moved(second), zero, halves=others, part=part)

    def pushed(function, direction):
        _, change, there = jax.jvp(function, (params,), (direction,), has_aux=True)
        return change, there

    def check():
        traced = jax.make_jaxpr(first)(params)
        if any(equations.mentions(traced, f"custom_vjp_call{end}") for end in ("", "_jaxpr")):
            raise ValueError(
                "interaction='products' pushes gradients forward through the model, but it has a "
                "jax.custom_vjp in it, which JAX can only pull back. Write it as a jax.custom_jvp, "
                "or measure the matrix, with interaction='auto'."
            )

    def times(v):
        check()
        if second is None:
            losses, push, there = jax.linearize(first, params, has_aux=True)
            pull = jax.linear_transpose(push, params)
        else:
            losses, pull, there = jax.vjp(first, params, has_aux=True)
        v = jnp.where(there, v, 0)
        (direction,) = pull(v.astype(losses.dtype))
        product, measured = (
            (push(direction), there) if second is None else pushed(second, direction)
        )
        # Along the gradient of no row nothing would change.
        return product.astype(v.dtype), measured & (v != 0).any()

    def squares(key):
        check()
        direction = random_signs(key, params)
        if halves is None:
            change, there = pushed(first, direction)
            return jnp.stack([jnp.zeros_like(change), change**2]), there, False
        (one, there), (other, too) = (pushed(half, direction) for half in halves)
        both = (one**2 + other**2) / 2
        # With more rows than a batch has: their own noise.
        noisy = jnp.minimum(jnp.asarray(part, both.dtype), 1)
        return jnp.stack([(1 - noisy) * one * other, noisy * both]), there & too, False

    return Products(times, squares)


def random_signs(key: jax.Array, like: Any) -> Any:
    """A tree like the parameters of independent random signs, of which 32 come from one number."""
    leaves, structure = jax.tree.flatten(like)

    def signs(key, leaf):
        words = jax.random.bits(key, (-(-leaf.size // 32),), jnp.uint32)
        places = jnp.arange(32, dtype=jnp.uint32)
        bits = (words[:, None] >> places[None, :]) & jnp.uint32(1)
        return jnp.where(bits.reshape(-1)[: leaf.size].reshape(leaf.shape) == 1, 1, -1).astype(
            leaf.dtype
        )

    keys = jax.random.split(key, len(leaves))
    return structure.unflatten([signs(k, leaf) for k, leaf in zip(keys, leaves, strict=True)])


@leaves_lib.needs_arrays
def products(*, apart: bool = False, in_turn: bool = True, share: float = 0.25) -> base.Interaction:
    """Gives a weighting the products of A that it asks for, in place of the matrix.

    Each product costs a backward and a forward pass on a part of the rows, whatever N is. It is the
    cheap way where one input has labels of many tasks, and N gradients are N backward passes. With
    rows of their own, N tasks have N gradients for little more than one, so that the matrix is
    cheap, too; products then save memory. The model must be one that forward mode can
    differentiate: without a ``jax.custom_vjp``.

    Args:
      apart: pull one half of the rows back and push the other forward, so that no noise is in both.
        Otherwise both are all of them, and the products are those of their matrix, with its bias:
        a task's product with itself is too large by its gradient's noise.
      in_turn: measure one of the products that a method asks for in each step, and let it use what
        the others were last; otherwise all of them, which methods that ask for two make of the same
        step.
      share: on which share of a batch's rows, in (0, 1], where no number of rows is given. Where
        losses come with no rows, as from ``losses_fn``, all that they are of.

    Raises:
      ValueError: if ``share`` is out of range.
    """
    checks.flag("apart", apart)
    checks.flag("in_turn", in_turn)
    checks.number("share", share, "(0, 1]")

    def matrix(loss_fn, params, batch):
        size = jax.tree.leaves(batch)[0].shape[1]
        if apart and size < 2:
            raise ValueError(
                "interaction.products(apart=True) measures on two halves of each task's examples, "
                "but there is one. Give each task two or more."
            )
        parts = (jax.tree.map(lambda x, p=p: x[:, p : size // 2 * 2 : 2], batch) for p in (0, 1))
        first, second = (_of_tasks(loss_fn, part) for part in parts)
        if apart:
            return of_losses(first, second, params, part=share / 2)
        halves = (first, second) if size > 1 else None
        return of_losses(_of_tasks(loss_fn, batch), None, params, halves=halves, part=share / 2)

    return base.Interaction(
        matrix, multiple=2 if apart else 1, gives_products=True, in_turn=in_turn, share=share
    )


def _of_tasks(loss_fn: base.LossFn, batch: Any) -> Losses:
    def losses(params):
        found = jax.vmap(loss_fn, in_axes=(None, 0))(params, batch)
        return found, jnp.ones(found.shape, bool)

    return losses
