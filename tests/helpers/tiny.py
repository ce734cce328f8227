"""A classification problem so small that a whole training run takes milliseconds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from helpers import calls

from ldro_jax import problems
from ldro_jax.experiments import compare
from ldro_jax.models import mlp
from ldro_jax.problems import base as base_problem
from ldro_jax.sharding import Layout
from ldro_jax.tasks import base
from ldro_jax.training import loop
from ldro_jax.training.batches import Batches
from ldro_jax.training.engine import Trial
from ldro_jax.training.meshed import MeshedEngine
from ldro_jax.training.method import Method
from ldro_jax.training.schedule import Schedule
from ldro_jax.training.stacked import StackedEngine

NAMES = ("left", "middle", "right")
BATCH_SIZE = 24
ONE = Layout(data=1)
AVERAGE = Method("Average", "average")
GROUP_DRO = Method("Group DRO", "group_dro", {"weight_lr": 0.5})
METHODS = (
    AVERAGE,
    GROUP_DRO,
    Method("Interpolated", "interpolated", {"alpha": 0.5}),
    Method("L-DRO", "lookahead_online", {"lookahead_lr": 1.0, "weight_lr": 1.0}),
    Method("L-DRO exact", "lookahead_exact", {"lookahead_lr": 0.1}, interaction_interval=1),
)


def split(sizes, seed):
    """Three tasks of two features and two classes, each with its own line between the classes."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(3, max(sizes), 2)).astype(np.float32)
    normals = np.array([[1.0, 0.3], [1.0, 0.0], [1.0, -0.3]], np.float32)
    labels = (np.einsum("nef,nf->ne", inputs, normals) > 0).astype(np.int32)
    return base.Split.join((x[:e], y[:e]) for x, y, e in zip(inputs, labels, sizes, strict=True))


def data(sizes=(40, 32, 40), *, broken=0):
    """The problem; the first `broken` training examples of the task "middle" are not numbers."""
    train = split(sizes, 0)
    train.of(1)[0][:broken] = np.nan
    return base.MultitaskData(NAMES, 2, train, split((30, 20, 30), 1), split((30, 20, 30), 2))


def problem(sizes=(40, 32, 40), *, broken=0, a_data=None):
    """Of the same data the same one, as it takes a while to look at a model."""
    return _problem(sizes, broken) if a_data is None else _of(a_data)


@functools.cache
def _problem(sizes, broken):
    return _of(data(sizes, broken=broken))


def _of(a_data):
    return problems.classification(
        load_data=lambda data_dir: a_data,
        model=functools.partial(mlp.MLP, features=(4,)),
    )


class Distances(problems.Problem):
    """Two tasks that are points of a line; what it gives of losses and metrics can be wrong."""

    task_names = ("low", "high")
    metrics = (problems.Metric("distance", higher_is_better=False),)

    def __init__(self, losses=lambda x: x, values=lambda x: {"distance": x}):
        self._losses, self._values = losses, values
        points = jnp.array([[-1.0], [2.0]])
        self.on_device = base_problem.OnDevice(
            points, np.array([1, 1]), lambda points, key, step, tasks, indices: points[tasks]
        )

    def init(self, key):
        return jax.random.normal(key, (1,))

    def row_losses(self, params, rows):
        return self._losses(jnp.sum((params[None] - rows) ** 2, axis=1))

    def source(self, seed):
        return Points()

    def evaluate(self, params, split):
        points = jnp.array([-1.0, 2.0])
        return self._values(jnp.abs(params - points))


class Points:
    """Their rows: any number of the same one."""

    identity, has_state = {}, False

    def rows(self, tasks, indices):
        return np.array([[-1.0], [2.0]], np.float32)[tasks]


def schedule(train_steps=40, eval_interval=10, checkpoint_interval=10, **options):
    return Schedule(train_steps, eval_interval, checkpoint_interval, **options)


def batches(size=BATCH_SIZE, **options):
    return Batches(size, **options)


def stacked(
    method=AVERAGE, a_problem=None, *, optimizer=None, learning_rate=0.5, together=None, **options
):
    """A program of the engine for one device; the options are those of its batches."""
    return StackedEngine(
        a_problem or problem(),
        optimizer or optax.sgd(learning_rate, momentum=0.9),
        batches(**options),
        together=together,
    ).program(method)


def meshed(
    method=AVERAGE, a_problem=None, *, optimizer=None, learning_rate=0.5, layout=ONE, **options
):
    """The same of the engine for a mesh of devices."""
    return MeshedEngine(
        a_problem or problem(),
        optimizer or optax.sgd(learning_rate, momentum=0.9),
        batches(layout=layout, **options),
    ).program(method)


class Progress:
    """Stands in for the progress bar, and interrupts.

    Args:
      stop_after: raise KeyboardInterrupt after so many evaluations.
      at: call `action` when so many steps have been taken.
      action: see `at`.
    """

    def __init__(self, stop_after=None, *, at=None, action=None):
        self.lines, self.texts, self.steps, self._left = [], [], [], stop_after
        self._at, self._action = at, action

    def write(self, line):
        self.lines.append(line)

    def update(self, steps):
        self.steps.append(steps)
        if self._action is not None and sum(self.steps) == self._at:
            self._action()

    def set_postfix_str(self, text, refresh=True):
        self.texts.append(text)
        if self._left is not None:
            self._left -= 1
            if not self._left:
                raise KeyboardInterrupt


def train(program, directory, a_schedule=None, *, method=None, seed=0, progress=None):
    trials = [Trial(method or program.method, seed)]
    (run,) = train_together(program, directory, trials, a_schedule, progress=progress)
    return run


def train_together(program, directory, trials, a_schedule=None, *, progress=None):
    return loop.train(
        program,
        trials,
        a_schedule or schedule(),
        checkpoint_dir=directory / "checkpoints",
        tensorboard_dirs=[directory / "tensorboard" / str(i) for i in range(len(trials))],
        progress=progress or Progress(),
    )


def run(directory, **options):
    """An experiment; the options are arguments of `compare` and of its parts."""
    options = {
        "problem": problem(),
        "methods": [AVERAGE],
        "seeds": (0, 1),
        "optimizer": optax.sgd(0.5),
        "schedule": schedule(train_steps=10, eval_interval=5),
        "batch_size": BATCH_SIZE,
        "name": "tiny",
        "description": "A tiny problem.",
    } | options
    return compare.compare(**calls.parts(directory, **options))
