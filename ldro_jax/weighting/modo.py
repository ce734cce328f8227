"""MoDo: MGDA's weights by stochastic gradient steps, without the bias of squared noise.

References:
  Chen, Fernando, Ying and Chen, *Three-Way Trade-Off in Multi-Objective Learning: Optimization,
  Generalization and Conflict-Avoidance*, NeurIPS 2023.
"""

import jax.numpy as jnp
import optax

from ldro_jax.weighting import about, base, gram, products


@about.method(
    about.GRADIENTS,
    weights="Π(w − γA′w), A′ of two batches",
    paper="Chen 2023",
    state="w",
    usual={"weight_lr": 0.05, "ridge": 0.1},
)
def modo(
    weight_lr: optax.ScalarOrSchedule = 0.01, *, ridge: optax.ScalarOrSchedule = 0.0
) -> base.Weighting:
    r""":math:`w ← Π(w − γ (A'w + ρw))`, projected onto the simplex.

    A' is the product of the gradients of two batches, so that its mean is that of the true
    gradients. Here the two are the halves of a batch, by the strategy ``interaction="split"``,
    which this method asks for by default; with ``interaction="products"``, halves of a part of it.

    Args:
      weight_lr: γ, the learning rate of the weights.
      ridge: ρ, a pull to even weights.

    Raises:
      ValueError: if a number is negative or not finite.
    """
    base.check_range("weight_lr", weight_lr)
    base.check_range("ridge", ridge)

    def last(statistics, state):
        w = jnp.where(base.known_tasks(statistics), state.weights, 0)
        return w / jnp.sum(w)

    def moved(statistics, w, product):
        slope = product + base.value_at(ridge, statistics) * w
        known = base.known_tasks(statistics)
        weights = base.onto_simplex(w - base.value_at(weight_lr, statistics) * slope, known)
        return weights, base.weights_state(weights, known)

    def update(statistics, state):
        w = last(statistics, state)
        return moved(statistics, w, gram.dot(base.known_interaction(statistics), w))

    def by_products(statistics, state):
        held, state = state
        w = last(statistics, state)
        held = statistics.products.measured(held, (lambda values: w,))
        weights, state = moved(statistics, w, held.filled()[0])
        return weights, (held, state)

    def init_by_products(num_tasks, dtype=jnp.float32):
        return products.Held.nothing(1, num_tasks, dtype), base.uniform_state(num_tasks, dtype)

    made = base.Weighting(
        base.uniform_state, update, uses_interaction=True, default_interaction="split"
    )
    return made._replace(by_products=products.form(init_by_products, by_products, made))
