"""A model, its data and a method as compiled programs: start, train, evaluate."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from ldro_jax import transform
from ldro_jax.evaluation import accuracy
from ldro_jax.records import results
from ldro_jax.tasks import base
from ldro_jax.training import step as step_lib
from ldro_jax.training.method import Method
from ldro_jax.training.schedule import Schedule

SPLITS = ("validation", "test")


class Trial(NamedTuple):
    """What tells one run from others of the same program.

    Attributes:
      method: with its own rates.
      seed: of the parameters and the batches.
    """

    method: Method
    seed: int


class Program:
    """A model, its data and a method, compiled once for all rates and seeds.

    Runs that share a program can be trained together, as one jitted function of stacked states: a
    ``vmap`` on accelerators, where one small model leaves most of the device idle, and a loop on
    CPU.

    Args:
      method: how to weigh the tasks; any whose :meth:`Method.program` is the same can be trained.
      data: what to train and evaluate on.
      model: the network, from inputs ``[B, ...]`` to logits ``[B, classes]``.
      optimizer: the Optax optimizer to chain after the weighting.
      batch_size: examples of all tasks in a batch.
      sampler: ``"balanced"``, the same number of examples from every task, or ``"uniform"``, plain
        random batches.
      schedule: lengths and intervals.
      together: how runs are trained together, ``"vmap"`` or ``"map"``; by default what suits the
        backend.

    Raises:
      ValueError: if a setting of the method or of the batches is out of range.
    """

    def __init__(
        self,
        method: Method,
        data: base.MultitaskData,
        model: nn.Module,
        optimizer: optax.GradientTransformation,
        *,
        batch_size: int,
        sampler: str = "balanced",
        schedule: Schedule,
        together: str | None = None,
    ):
        self.method, self.data, self.schedule = method, data, schedule
        self._model, self._optimizer = model, optimizer
        self.batches = step_lib.Batches(sampler, batch_size, np.asarray(data.train.sizes))
        if together is None:
            together = "map" if jax.default_backend() == "cpu" else "vmap"
        self._batched = {"vmap": _vmapped, "map": _mapped}[together]
        # What is out of range is found before anything is trained.
        self._tx = self.make_tx({})
        self.batches.check()
        self._splits = {name: jax.device_put(getattr(data, name)) for name in ("train", *SPLITS)}
        self._stretches: dict[tuple[int, int], Callable] = {}
        self._init = jax.jit(lambda key, inputs: model.init(key, data.prepare(inputs))["params"])
        self._evaluate = jax.jit(
            lambda params, split: accuracy.task_accuracies(
                self.apply, params, split, data.task_classes
            )
        )

    def for_method(self, method: Method) -> "Program":
        """A program of another method for the same model and data.

        Args:
          method: how to weigh the tasks.

        Returns:
          The program; it shares with this one what doesn't depend on the method.

        Raises:
          ValueError: if a setting of the method is out of range.
        """
        other = copy.copy(self)
        other.method, other._stretches = method, {}
        other._tx = other.make_tx({})
        return other

    def apply(self, params: Any, inputs: jax.Array) -> Any:
        """Logits of a batch of stored inputs.

        Args:
          params: the model's parameters.
          inputs: ``[B, ...]``, before :attr:`MultitaskData.prepare`.

        Returns:
          ``[B, classes]``.
        """
        return self._model.apply({"params": params}, self.data.prepare(inputs))

    def make_tx(self, rates: Mapping[str, Any]) -> optax.GradientTransformationExtraArgs:
        """The optimizer with the method's weighting before it.

        Args:
          rates: values for the hyperparameters of :meth:`Method.rates`, instead of its own.

        Returns:
          The transformation.
        """
        return optax.chain(self.method.transform(self.data.num_tasks, rates), self._optimizer)

    def init(self, seed: int) -> step_lib.TrainState:
        """The state before the first step; the same parameters for every method.

        Args:
          seed: of the run.

        Returns:
          The state.
        """
        params = self._init(jax.random.key(seed), self._splits["train"].inputs[0, :1])
        return step_lib.TrainState(jnp.zeros([], jnp.int32), params, self._tx.init(params))

    def check(self) -> None:
        """Traces a step and an evaluation, so that what doesn't fit is found before training.

        Raises:
          ValueError: if something doesn't.
        """
        train, classes = self._splits["train"], self.data.num_classes
        shape = train.inputs.shape[2:]
        try:
            state = jax.eval_shape(lambda: self.init(0))
            logits = jax.eval_shape(self.apply, state.params, train.inputs[0, :1])
        # Whatever the model says, it isn't made for these inputs.
        except Exception as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ValueError(
                f"model must take inputs of the shape {shape}, but it doesn't ({reason})."
            ) from error
        if logits.shape != (1, classes):
            raise ValueError(
                f"model must give {classes} logits for each input, but it gives {logits.shape[1:]}."
            )
        stretch = step_lib.train_steps(self.apply, self.make_tx, self.method, 1, self.batches)
        rates = {name: jnp.zeros([], float) for name in self.method.rates()}
        jax.eval_shape(stretch, rates, state, train, jax.random.key(0))

    def start(self, trials: Sequence[Trial]) -> step_lib.TrainState:
        """The states of several runs before their first step.

        Args:
          trials: the R runs.

        Returns:
          The states stacked, each leaf ``[R, ...]``.
        """
        return jax.tree.map(lambda *x: jnp.stack(x), *(self.init(t.seed) for t in trials))

    def train(self, states: step_lib.TrainState, num_steps: int, trials: Sequence[Trial]):
        """Takes a stretch of steps in several runs.

        Args:
          states: where to start, each leaf ``[R, ...]``; their buffers are reused.
          num_steps: length of the stretch.
          trials: the R runs.

        Returns:
          The new states, the mean losses of the stretch, ``[R, N]``, and the seconds that a step of
          one run took, without compilation.
        """
        names = self.method.rates()
        values = [trial.method.rates() for trial in trials]
        rates = {name: jnp.asarray([v[name] for v in values], float) for name in names}
        # Not the keys that the parameters come from.
        keys = jnp.stack([jax.random.fold_in(jax.random.key(t.seed), 1) for t in trials])
        arguments = (states, rates, keys, self._splits["train"])
        size = (len(trials), num_steps)
        if size not in self._stretches:
            stretch = step_lib.train_steps(
                self.apply, self.make_tx, self.method, num_steps, self.batches
            )
            jitted = jax.jit(self._batched(stretch), donate_argnums=0)
            self._stretches[size] = jitted.lower(*arguments).compile()
        began = time.perf_counter()
        states, losses = jax.block_until_ready(self._stretches[size](*arguments))
        return states, losses, (time.perf_counter() - began) / (num_steps * len(trials))

    def compiled(self) -> list[Any]:
        """The compiled stretches so far, for their memory analysis."""
        return list(self._stretches.values())

    def evaluate(self, states: step_lib.TrainState) -> list[list[results.Evaluation]]:
        """Accuracy of every task on the held-out splits.

        Args:
          states: the training states, each leaf ``[R, ...]``.

        Returns:
          For each run, one evaluation for each split and metric.
        """
        found = []
        for index, step in enumerate(np.asarray(states.step)):
            params = jax.tree.map(lambda x, i=index: x[i], states.params)
            metrics = {name: self._evaluate(params, self._splits[name]) for name in SPLITS}
            found.append(
                [
                    results.summarise_evaluation(
                        step=int(step),
                        split=split,
                        metric=metric,
                        task_names=self.data.task_names,
                        values=np.asarray(values),
                        higher_is_better=True,
                    )
                    for split in SPLITS
                    for metric, values in metrics[split].items()
                ]
            )
        return found


def _vmapped(stretch):
    def together(states, rates, keys, data):
        step = states.step[0]

        def one(state, rates, key):
            # A count that is the same for all keeps the measuring of the interaction conditional:
            # with one of its own for each run it would be done, and thrown away, in every step.
            return stretch(rates, _with_count(state, step), data, key)

        return jax.vmap(one)(states, rates, keys)

    return together


def _mapped(stretch):
    def together(states, rates, keys, data):
        return jax.lax.map(lambda x: stretch(x[1], x[0], data, x[2]), (states, rates, keys))

    return together


def _with_count(state: step_lib.TrainState, step: jax.Array) -> step_lib.TrainState:
    """The state with the number of steps taken given from outside."""

    def replace(leaf):
        return leaf._replace(count=step) if isinstance(leaf, transform.WeightedState) else leaf

    opt_state = jax.tree.map(
        replace, state.opt_state, is_leaf=lambda x: isinstance(x, transform.WeightedState)
    )
    return state._replace(step=step, opt_state=opt_state)
