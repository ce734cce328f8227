"""DoReMi: domains on which the model is worse than a reference get more.

References:
  Xie, Pham, Dong, Du, Liu, Lu, Liang, Le, Ma and Yu, *DoReMi: Optimizing Data Mixtures Speeds Up
  Language Model Pretraining*, NeurIPS 2023.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ldro_jax.weighting import about, base


@about.method(
    about.WORST,
    weights="∝ w exp(η excess over a reference)",
    paper="Xie 2023",
    state="w",
    usual=lambda numbers: {"reference_losses": numbers / 10, "weight_lr": 0.5},
)
def doremi(
    reference_losses: Sequence[float] | None,
    weight_lr: optax.ScalarOrSchedule = 1.0,
    *,
    share: optax.ScalarOrSchedule = 1e-3,
) -> base.Weighting:
    r""":math:`w ← (1 − ε) \, \mathrm{softmax}(\log w + η [ℓ − ℓ_{ref}]_+) + ε / N`.

    The paper takes the positive part for each token before the mean over a domain's tokens, which
    needs the losses of a reference model on the same tokens: with ``None`` for the references the
    step is told that mean (``excess``, at :func:`ldro_jax.transform.weighted`). With one reference
    loss for each task the positive part is that of the mean. The paper trains a second model with
    the mean of the weights over all steps.

    Args:
      reference_losses: of a model that was trained before, on all tasks or on each alone, ``[N]``;
        or ``None``.
      weight_lr: η, the learning rate of the weights.
      share: ε in [0, 1], what is spread evenly in every step.

    Raises:
      ValueError: if a number is out of range, or there isn't a reference for each task.
    """
    told = reference_losses is None
    references = np.zeros(0)
    if not told:
        references = base.numbers_per_task("reference_losses", reference_losses)
    base.check_range("weight_lr", weight_lr)
    base.check_range("share", share, "[0, 1]")

    def update(statistics, state):
        known, losses = base.known_tasks(statistics), statistics.losses
        if told:
            excess = statistics.excess
        else:
            base.check_per_task("reference_losses", references, losses.size)
            reference = base.times_signal(statistics, jnp.asarray(references, losses.dtype))
            excess = jnp.maximum(losses - reference, 0)
        step = base.value_at(weight_lr, statistics) * excess
        tiny = jnp.finfo(losses.dtype).tiny
        logits = jnp.log(jnp.maximum(state.weights, tiny)) + step
        even = base.value_at(share, statistics)
        weights = (1 - even) * jax.nn.softmax(logits, where=known)
        weights = jnp.where(known, weights + even / base.number_known(statistics), 0)
        return weights, base.weights_state(weights, known)

    return base.Weighting(base.uniform_state, update, uses_excess=told)
