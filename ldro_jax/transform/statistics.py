"""One forward pass of a loop of one's own, with what it gives besides losses."""

from collections.abc import Callable
from typing import Any, cast

import jax

from ldro_jax import interaction as interaction_lib
from ldro_jax.interaction import base
from ldro_jax.interaction.features import NEEDED
from ldro_jax.interaction.jacrev import pullback_gram
from ldro_jax.interaction.products import of_vector
from ldro_jax.measuring import shared as shared_lib
from ldro_jax.measuring.means import Rows, of_parts
from ldro_jax.runtime import checks, leaves
from ldro_jax.transform import forms


def statistics(
    losses_fn: Callable[..., Any],
    params: Any,
    batch: Any = None,
    *,
    has_aux: bool = False,
    num_tasks: int | None = None,
    interaction: str | base.Interaction = "auto",
    shared: Any = None,
) -> Any:
    """Makes the keyword arguments of ``update`` from one forward pass.

    It is for losses that come with something else, such as new running statistics, predictions or
    metrics, which ``update`` has no place to return::

        given, new_statistics = ldro.statistics(losses_fn, params, has_aux=True)
        updates, opt_state = tx.update(None, opt_state, params, **given)

    The interaction is measured when the weighting asks for it: without a batch by pulling each loss
    back through the same pass, N backward passes; with one in a pass of its own.

    Args:
      losses_fn: ``params -> losses [N]`` of all tasks, or their :class:`~ldro_jax.ldro.Rows`; with
        ``batch``, ``(params, task_batch) -> scalar``, the mean loss of one task.
      params: where to differentiate. Frozen ones count in the interaction unless ``shared`` leaves
        them out.
      batch: each leaf ``[task, example, ...]``.
      has_aux: whether the function returns a pair of that and something else.
      num_tasks: N, needed with :class:`~ldro_jax.ldro.Rows`.
      interaction: how to measure the interaction with ``batch``, as in
        :func:`ldro_jax.transform.weighted`; without one only whether it is ``"products"``, or
        ``"split"`` with :class:`~ldro_jax.ldro.Rows`.
      shared: the parameters that the interaction counts, as there.

    Returns:
      The keyword arguments, with ``present`` if rows tell it; with ``has_aux`` a pair of these and
      the something else, with ``batch`` stacked along a leading axis of tasks.

    Raises:
      ValueError: if the function doesn't return one floating-point loss for each task.
    """
    checks.function("losses_fn", losses_fn, example="params -> losses [N]")
    checks.flag("has_aux", has_aux)
    leaves.check_arrays("params", params)
    one = losses_fn if has_aux else lambda *given: (losses_fn(*given), ())

    def returned(params):
        if batch is None:
            return one(params)
        return jax.vmap(one, in_axes=(None, 0))(params, batch)

    def of_all(params):
        found, aux = returned(params)
        if isinstance(found, Rows) and (num_tasks is None or batch is not None):
            raise ValueError(
                "losses_fn returned Rows. For their tasks ldro.statistics needs num_tasks, and no "
                "batch."
            )
        return found, aux

    def losses_of(params):
        return forms.of_tasks(of_all(params)[0], cast(int, num_tasks))[0]

    strategy = interaction_lib.get(interaction)
    if strategy.of_features:
        raise ValueError(NEEDED)
    first, aux = forms.first_pass(of_all, params, cast(int, num_tasks))
    if first.losses.ndim != 1:
        raise ValueError(
            "losses_fn must return one loss for each task, [N], or with batch one number for a "
            f"task, but all together have the shape {list(first.losses.shape)}."
        )

    def matrix():
        own = None if shared is None else shared_lib.mask(shared, params)
        if batch is not None:
            loss_fn = shared_lib.of_counted(lambda *given: one(*given)[0], params, own)
            return strategy.matrix(*loss_fn, batch)
        if own is None:
            own = shared_lib.found(losses_of, params)
        if strategy.gives_products:
            return of_vector(strategy, *shared_lib.of_counted(losses_of, params, own))
        if strategy.parts > 1 and first.present is not None:
            rows = shared_lib.of_counted(lambda p: returned(p)[0], params, own)
            return of_parts(interaction_lib.jacobian_gram, strategy, cast(int, num_tasks), *rows)
        return pullback_gram(first.losses, lambda w: (shared_lib.counted(first.pullback(w), own),))

    given = {
        "losses": first.losses,
        "pullback": first.pullback,
        "interaction_fn": matrix,
        **({} if first.present is None else {"present": first.present}),
    }
    return (given, aux) if has_aux else given
