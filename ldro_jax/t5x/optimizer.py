"""A T5X optimizer that chooses task weights first: any weighting before any optimizer."""

import ldro_jax.t5x.installed  # noqa: F401

# isort: split
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import serialization
from jax.sharding import PartitionSpec
from t5x import optimizers

from ldro_jax import transform
from ldro_jax.measuring.trained import merge
from ldro_jax.t5x import checkpoints
from ldro_jax.t5x import frozen as frozen_lib
from ldro_jax.weighting import base as weighting_base


class WeightedGradient(NamedTuple):
    """What :class:`WeightedOptimizer` takes as the gradient of a step.

    Attributes:
      gradient: of the weighted loss, like the parameters; zero for frozen ones.
      weighting: the state of the weighting after the step.
    """

    gradient: Any
    weighting: Any


class WeightedOptimizer(optimizers.OptimizerDef):
    """Chooses task weights with one transformation, and updates the parameters with another.

    The state of the weighting is saved with the optimizer's, at ``state/param_states/weighting``:
    a checkpoint is one of the optimizer alone, and this besides. Both are restored exactly; the
    weighting's is the same on every device. Steps are taken by
    :class:`~ldro_jax.t5x.trainer.LDROTrainer`.

    Args:
      weighting: a transformation of this library, such as :func:`ldro_jax.ldro.transform`.
      optimizer: an Optax optimizer, which brings its own learning rate, or a T5X optimizer such as
        ``t5x.adafactor.Adafactor``, which gets the trainer's.
      frozen: regular expressions of the parameters that stay as they are, bit for bit, such as
        ``("token_embedder/.*", "encoder/.*")``; see :mod:`ldro_jax.t5x.frozen`.

    Raises:
      TypeError: if one of them is something else, such as a name.
    """

    def __init__(
        self,
        weighting: transform.Weighted,
        optimizer: optax.GradientTransformation | optimizers.OptimizerDef,
        frozen: Sequence[str] = (),
    ):
        if isinstance(weighting, weighting_base.Weighting):
            raise TypeError(
                "WeightedOptimizer.weighting must be a transformation, but it is a Weighting. Bind "
                "it to @transform.weighted(), and transform.weighted.weighting to what it is now."
            )
        if not isinstance(weighting, transform.Weighted):
            raise TypeError(
                "WeightedOptimizer.weighting must be a transformation of this library by itself, "
                f"but it is {weighting!r}. Bind it to @ldro.transform(), or to "
                "@transform.weighted() for another weighting; what follows it belongs to "
                "WeightedOptimizer.optimizer."
            )
        if not isinstance(optimizer, optax.GradientTransformation | optimizers.OptimizerDef):
            raise TypeError(
                "WeightedOptimizer.optimizer must be an optimizer of Optax or T5X, but it is "
                f"{optimizer!r}. Bind it to an optimizer such as ldro_jax.optimizers.adam, or to "
                "@adafactor.Adafactor()."
            )
        if isinstance(frozen, str):
            raise TypeError(
                "WeightedOptimizer.frozen must be several regular expressions, but it is the text "
                f"{frozen!r}. Bind it to ({frozen!r},)."
            )
        self._frozen = tuple(frozen)
        if isinstance(optimizer, optimizers.OptaxWrapper):
            optimizer = optimizer.optax_optimizer
        if isinstance(optimizer, optax.GradientTransformation):
            optimizer = optimizers.OptaxWrapper(frozen_lib.masked(optimizer, self._frozen))
        self._inner: Any = optimizer
        self.weighting, self._weighting = weighting, optimizers.OptaxWrapper(weighting)
        super().__init__(optimizer.hyper_params)
        if hasattr(optimizer, "set_param_axes"):
            # T5X looks for the method.
            self.set_param_axes = optimizer.set_param_axes

    def trained(self, tree: Any) -> Any:
        """The part of a tree like the parameters that is trained; ``None`` for the others."""
        return frozen_lib.trained(tree, self._frozen)

    def weigh(self, train_state: Any, updates: Any = None, **statistics: Any) -> WeightedGradient:
        """Chooses the task weights of a step, for ``train_state.apply_gradient``.

        Args:
          train_state: a T5X training state with this optimizer.
          updates: the gradients of the tasks, ``[N, ...]``, if they are known already.
          **statistics: of the tasks, as :func:`ldro_jax.transform.weighted` takes them; gradients
            are those of the trained parameters.
        """
        params = train_state.params
        gradient, state = self.weighting.update(
            updates, train_state.param_states["weighting"], self.trained(params), **statistics
        )
        zeros = jax.tree.map(jnp.zeros_like, params)
        return WeightedGradient(merge(gradient, zeros), state)

    def num_tasks(self, train_state: Any) -> int:
        """Number of tasks of the weighting in a training state."""
        return transform.find_state(train_state.param_states["weighting"]).weights.size

    def update_hyper_params(self, **overrides: Any) -> Any:
        """T5X's: the hyperparameters with some of them set."""
        return self._inner.update_hyper_params(**overrides)

    def init_state(self, params: Any) -> optimizers.OptimizerState:
        """T5X's: the state before the first step."""
        frozen_lib.check_patterns(params, self._frozen)
        inner = self._inner.init_state(params)
        weighting = self._weighting.init_state(self.trained(params)).param_states
        return _state(inner.step, weighting, inner.param_states)

    def apply_gradient(self, hyper_params: Any, params: Any, state: Any, grads: Any) -> Any:
        """T5X's: the parameters and the state after a step with a :class:`WeightedGradient`.

        Raises ``TypeError`` for a plain gradient, whose weights can't be chosen any more.
        """
        if not isinstance(grads, WeightedGradient):
            raise TypeError(
                "WeightedOptimizer chooses the weights of task losses, but it got the gradient of "
                "one loss. Train with ldro_jax.t5x.trainer.LDROTrainer (train.trainer_cls)."
            )
        _, inner = _divided(state)
        moved, inner = self._inner.apply_gradient(hyper_params, params, inner, grads.gradient)
        params = merge(self.trained(moved), params)
        return params, _state(inner.step, grads.weighting, inner.param_states)

    def derive_logical_axes(self, optimizer: Any, param_logical_axes: Any) -> Any:
        """T5X's: where each array of the optimizer lies."""
        weighting, inner_state = _divided(optimizer.state)
        inner = self._inner.derive_logical_axes(
            optimizers.Optimizer(self._inner, inner_state, optimizer.target), param_logical_axes
        )
        # T5X restores an array without a specification in the dtype of the checkpoint's floats.
        state = _state(
            PartitionSpec(),
            jax.tree.map(_replicated, weighting.param_states),
            jax.tree.map(
                lambda leaf, axes: _replicated(leaf) if axes is None else axes,
                inner_state.param_states,
                inner.state.param_states,
            ),
        )
        return optimizers.Optimizer(optimizer.optimizer_def, state, param_logical_axes)

    def state_dict(self, target: Any, state: Any) -> Any:
        """T5X's: target and state as nested dictionaries without empty ones."""
        weighting, inner = _divided(state)
        saved = self._inner.state_dict(target, inner)
        weights = self._weighting.state_dict(target, weighting)["state"].get("param_states", {})
        states = {**saved["state"].get("param_states", {}), "weighting": weights}
        return serialization.to_state_dict(
            {
                "target": saved["target"],
                "state": {"step": saved["state"]["step"], "param_states": states},
            }
        )

    def restore_state(self, opt_target: Any, opt_state: Any, state_dict: Any) -> Any:
        """T5X's: target and state from nested dictionaries.

        Raises ``ValueError`` if these have no task weights.
        """
        target, step = state_dict["target"], state_dict["state"]["step"]
        saved = dict(state_dict["state"]["param_states"])
        if "weighting" not in saved:
            raise ValueError(checkpoints.without_weighting("What is to be restored"))

        def restored(optimizer, state, states):
            own = {"step": step, "param_states": states} if states else {"step": step}
            return optimizer.restore_state(opt_target, state, {"target": target, "state": own})

        weighting, inner = _divided(opt_state)
        _, weighting = restored(self._weighting, weighting, saved.pop("weighting"))
        params, inner = restored(self._inner, inner, saved)
        return params, _state(inner.step, weighting.param_states, inner.param_states)


def _replicated(leaf) -> PartitionSpec:
    return PartitionSpec(*[None] * leaf.ndim)


def _state(step, weighting, optimizer) -> optimizers.OptimizerState:
    return optimizers.OptimizerState(
        step=step, param_states={"weighting": weighting, "optimizer": optimizer}
    )


def _divided(state) -> list[optimizers.OptimizerState]:
    """The states of the weighting and of the wrapped optimizer."""
    parts = (state.param_states[name] for name in ("weighting", "optimizer"))
    return [optimizers.OptimizerState(state.step, part) for part in parts]
