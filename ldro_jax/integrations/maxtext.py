"""MaxText's pretraining with task weights: its loss, optimizer and step, within a ``with``."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from maxtext.optimizers import optimizers
from maxtext.trainers.pre_train import train
from maxtext.utils import max_utils

from ldro_jax.measuring.means import Rows
from ldro_jax.runtime import checks
from ldro_jax.transform.state import find_state
from ldro_jax.transform.tap import tap
from ldro_jax.transform.weighted import Weighted

# What can't be weighed, and what the configuration says where it isn't used.
_UNUSED = {
    "gradient_accumulation_steps": 1,
    "skip_step_on_spikes": False,
    "log_step_diagnostics": False,
    "num_vocab_tiling": 1,
    "enable_diloco": False,
    "training_objective": "causal_lm",
}


@contextlib.contextmanager
def weighted(weighting: Weighted, tasks_of: Callable[[Any], Any]) -> Iterator[None]:
    """Within it, ``train.main`` of MaxText weighs tasks.

    All else is as in MaxText: its data, configuration, sharding, and checkpoints, which hold the
    weights. The loss of a task is the mean over its tokens that count, with what MaxText adds for
    all, such as balancing experts. The gradient is computed once; what the log calls its norm and
    ``gradient_clipping_threshold`` clips is the weighted one. The log has the loss and the weight
    of each task, ``tasks/loss_0`` and ``tasks/weight_0``. Evaluations are MaxText's own.

    Args:
      weighting: such as ``ldro.transform(num_tasks=5)``.
      tasks_of: from a batch of MaxText, a dict of ``inputs``, ``targets`` and the like,
        ``[rows, tokens]``, the task of each row, integers ``[rows]``; or of each token,
        ``[rows, tokens]``, where rows are packed from several.

    Raises:
      ValueError: if an argument isn't as expected; and from within, before the training, if the
        configuration has what can't be weighed.

    Example::

      from maxtext.trainers.pre_train import train
      from ldro_jax.integrations import maxtext

      # The first token of a row says of which language it is.
      with maxtext.weighted(ldro.transform(5), lambda batch: batch["inputs"][:, 0] - 3):
          train.main(["train", "base.yml", ...])
    """
    checks.instance("weighting", weighting, Weighted, "ldro.transform(num_tasks=5)")
    checks.function("tasks_of", tasks_of, example="(batch) -> the task of each row")
    loss_of, optimizer_of, step_of = train.loss_fn, optimizers.get_optimizer, train.train_step
    logged: dict[str, Any] = {}

    def task_losses(model, config, data, *args, **kwargs):
        found = []
        plain_entropy = max_utils.cross_entropy_with_logits

        def entropy(*args, **kwargs):
            found.append(plain_entropy(*args, **kwargs))
            return found[-1]

        with _replaced(max_utils, "cross_entropy_with_logits", entropy):
            _, aux = loss_of(model, config, data, *args, **kwargs)
        if not found:
            raise ValueError(
                "MaxText computed no loss of the next token. While an indexer warms up, train "
                "without weights."
            )
        if jax.tree.leaves(nnx.state(model, _overwritten())):
            raise ValueError(
                "Tasks can't be weighed in MaxText with this quantization: the gradient of its "
                "scales is their next value. Use another."
            )
        losses, _ = found[-1]
        for_all = aux["moe_lb_loss"] + aux["mtp_loss"] + aux["indexer_loss"]
        return Rows(losses + for_all, tasks_of(data), data["targets_segmentation"] != 0), aux

    num_tasks = weighting.plan.num_tasks
    tapped = tap(task_losses, num_tasks, has_aux=True, gradient=False)

    def loss_fn(*args, is_train=True, **kwargs):
        loss = tapped.loss if is_train else loss_of
        return loss(*args, is_train=is_train, **kwargs)

    def get_optimizer(config, *args, **kwargs):
        for name, unused in _UNUSED.items():
            if getattr(config, name, unused) != unused:
                raise ValueError(
                    f"Tasks can't be weighed in MaxText with {name}={getattr(config, name)}. "
                    f"Set it to {unused}."
                )

        weigh, threshold = tapped(weighting), config.gradient_clipping_threshold

        def update_fn(updates, state, params=None, **extra_args):
            updates, state = weigh.update(updates, state, params, **extra_args)
            # MaxText casts the gradient that isn't used.
            updates = jax.tree.map(
                lambda x: x.astype(config.grad_dtype) if x.dtype == jnp.float32 else x, updates
            )
            norm, found = optax.tree.norm(updates), find_state(state)
            logged["learning/raw_grad_norm"] = logged["learning/grad_norm"] = norm
            if threshold > 0:
                logged["learning/grad_norm"] = jnp.minimum(norm, threshold)
            for task in range(num_tasks):
                logged[f"tasks/loss_{task}"] = found.losses[task]
                logged[f"tasks/weight_{task}"] = found.weights[task]
            return updates, state

        return optax.chain(
            optax.GradientTransformationExtraArgs(weigh.init, update_fn),
            optax.clip_by_global_norm(threshold) if threshold > 0 else optax.identity(),
            optimizer_of(config, *args, **kwargs),
        )

    def train_step(*args, **kwargs):
        after, metrics = step_of(*args, **kwargs)
        metrics["scalar"].update(logged)
        logged.clear()
        return after, metrics

    with contextlib.ExitStack() as stack:
        for module, name, value in (
            (train, "loss_fn", loss_fn),
            (train, "train_step", train_step),
            (optimizers, "get_optimizer", get_optimizer),
        ):
            stack.enter_context(_replaced(module, name, value))
        yield


def _overwritten() -> Any:
    """The kind of variables whose gradient, of any loss, is their next value."""
    return nnx.variablelib.variable_type_from_name("_overwrite_with_gradient", allow_register=True)


@contextlib.contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
