"""DoGE: domains whose gradients agree with those of all get more.

References:
  Fan, Pagliardini and Jaggi, *DoGE: Domain Reweighting with Generalization Estimation*, ICML 2024.
"""

import jax.numpy as jnp
import optax

from ldro_jax.runtime import checks
from ldro_jax.weighting import about, base, gram, products


@about.method(
    about.MIXTURES, weights="∝ w exp(r A1/μ)", paper="Fan 2024", state="w", usual={"rate": 0.01}
)
def doge(
    rate: optax.ScalarOrSchedule,
    *,
    regularization: optax.ScalarOrSchedule = 0.05,
    own_square: bool = True,
) -> base.Weighting:
    r""":math:`w ∝ w \exp(\mathrm{clip}(r \, A1 / \mathrm{mean}\, d, 0, 5r) / μ)`.

    It looks ahead as L-DRO does, with an even adversary instead of one who takes the worst task.

    Args:
      rate: r, the learning rate of the parameters in the paper.
      regularization: μ; the smaller, the faster the weights move.
      own_square: whether a task's alignment with itself counts, as in the paper. The authors'
        program leaves it out; on minibatches it is mostly noise.

    Raises:
      ValueError: if the rate is negative, or μ is not positive.
    """
    base.check_range("rate", rate)
    base.check_range("regularization", regularization, "(0, inf)")
    checks.flag("own_square", own_square)

    def direction(statistics, weights):
        del weights
        matrix = base.known_interaction(statistics)
        lengths = gram.lengths(matrix)
        mean = jnp.mean(lengths, where=base.known_tasks(statistics))
        if not own_square:
            matrix = jnp.fill_diagonal(matrix, 0, inplace=False)
        gain = gram.dot(matrix * gram.inverse_or_zero(mean), jnp.ones_like(lengths))
        return limited(statistics, gain)

    def limited(statistics, gain):
        size = base.value_at(rate, statistics)
        return jnp.clip(size * gain, 0, 5 * size) / base.value_at(regularization, statistics)

    def of_sums(statistics, sums, squares):
        mean = jnp.mean(jnp.sqrt(squares), where=base.known_tasks(statistics))
        return limited(statistics, sums * gram.inverse_or_zero(mean))

    made = base.exponentiated_gradient(direction, uses_interaction=True)
    if not own_square:
        return made
    return made._replace(by_products=products.along_sums(of_sums, made))
