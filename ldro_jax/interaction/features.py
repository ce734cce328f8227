"""The interaction at the features that all tasks share, in place of the parameters."""

from ldro_jax.interaction import base

NEEDED = (
    "interaction='features' needs one input with labels of several tasks, and features that are "
    "named: features_fn(params) -> z beside losses_fn(params, z) -> [N], or in the trainer a Linen "
    "model of one table that calls self.perturb('features', z)."
)


def features() -> base.Interaction:
    """Measures ``⟨∂ℓ_i/∂z, ∂ℓ_j/∂z⟩``, with the features z of all rows, as MGDA-UB does.

    The losses are pulled back through what comes after z alone, so that it costs little beside a
    step if that is small, as heads are.

    It is another matrix than that of the gradients of the parameters θ. With J = ∂z/∂θ these are
    ``⟨Jᵀ ∂ℓ_i/∂z, Jᵀ ∂ℓ_j/∂z⟩``, so that a weighted gradient of the parameters before z is at most
    ‖J‖ times as long as that at z. That is what MGDA needs of it, and all: no entry of one matrix
    bounds the same entry of the other, and tasks that agree at z can be in conflict in θ. What the
    step on one row does for other rows isn't in it, nor are parameters after z, and its scale isn't
    that of a step, so that a lookahead's rate has another meaning.

    In a loop of one's own z comes from ``features_fn``, see :func:`ldro_jax.transform.weighted`; in
    the trainer it is what the Linen model names, in one table of rows with several labels.

    References:
      Sener and Koltun, *Multi-Task Learning as Multi-Objective Optimization*, NeurIPS 2018.
    """

    def matrix(loss_fn, params, batch):
        del loss_fn, params, batch
        raise ValueError(NEEDED)

    return base.Interaction(matrix, of_features=True)
