"""Independent references in NumPy and float64, transcribed from the papers, never from the library.

The gradients come from one `jax.grad` per task, or from a closed form.
"""

import functools

import jax
import numpy as np


def normalized(interaction):
    """Columns over the norm of their task's gradient; the column of a zero gradient is zero."""
    interaction = np.asarray(interaction, np.float64)
    result = np.zeros_like(interaction)
    for j in range(interaction.shape[1]):
        if interaction[j, j] > 0:
            result[:, j] = interaction[:, j] / np.sqrt(interaction[j, j])
    return result


def lookahead_step(losses, interaction, weights, lookahead_lr, weight_lr):
    """Algorithm 2 of Michel et al., on the whole payoff matrix: the loss term is left in."""
    payoff = np.outer(losses, np.ones(len(losses))) - lookahead_lr * interaction
    best_response = np.zeros(len(losses))
    best_response[np.argmax(payoff @ weights)] = 1
    moved = weights * np.exp(-weight_lr * (best_response @ payoff))
    return moved / moved.sum()


def group_dro_step(losses, weights, weight_lr, references=0.0):
    """Algorithm 1 of Sagawa et al.; with references, on the baselined loss of Oren et al."""
    moved = weights * np.exp(weight_lr * (np.asarray(losses, np.float64) - references))
    return moved / moved.sum()


def lookahead_dro(
    losses_and_gradients,
    params,
    *,
    lookahead_lr,
    weight_lr,
    interval,
    learning_rate,
    steps,
    normalize=True,
    lagged=False,
):
    """Algorithm 3 of Michel et al. with plain gradient descent: A every k steps, w in every step.

    Its listing lost the indentation after the `if`; by the text only A is periodic. With `lagged`
    the weights see the A of one step before, zero in the first.

    Args:
      losses_and_gradients: `params [D] -> (losses [N], gradients [N, D])`.
      params: [D], the start.

    Returns:
      The weights and the parameters after every step, [steps, N] and [steps, D].
    """
    losses, _ = losses_and_gradients(params)
    interaction = np.zeros((len(losses), len(losses)))
    weights = np.full(len(losses), 1 / len(losses))
    trajectory = []
    for step in range(steps):
        losses, gradients = losses_and_gradients(params)
        previous = interaction
        if step % interval == 0:
            interaction = gradients @ gradients.T
            if normalize:
                interaction = normalized(interaction)
        seen = previous if lagged else interaction
        weights = lookahead_step(losses, seen, weights, lookahead_lr, weight_lr)
        params = params - learning_rate * (weights @ gradients)
        trajectory.append((weights, params))
    return tuple(np.array(part) for part in zip(*trajectory, strict=True))


@functools.cache
def _gradient_fn(loss_fn):
    return jax.jit(jax.grad(loss_fn))


def task_gradients(loss_fn, params, batch):
    """The gradient of each task, one after another: [N, D], all parameters in one vector."""
    rows = []
    for task in range(len(jax.tree.leaves(batch)[0])):
        gradient = _gradient_fn(loss_fn)(params, jax.tree.map(lambda x, task=task: x[task], batch))
        leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(gradient)]
        rows.append(np.concatenate(leaves))
    return np.array(rows)


def gram(loss_fn, params, batch):
    """Inner products of the task gradients, [N, N]."""
    gradients = task_gradients(loss_fn, params, batch)
    return gradients @ gradients.T


def weighted_gradient(loss_fn, params, batch, weights):
    """The gradient of the weighted loss, [D]."""
    return np.asarray(weights, np.float64) @ task_gradients(loss_fn, params, batch)
