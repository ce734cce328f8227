"""A classification problem so small that a whole training run takes milliseconds."""

import functools

import numpy as np
import optax

from ldro_jax.models import mlp
from ldro_jax.tasks import base
from ldro_jax.training import experiment, loop
from ldro_jax.training.method import Method
from ldro_jax.training.program import Program, Trial
from ldro_jax.training.schedule import Schedule

NAMES = ("left", "middle", "right")
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
    return base.Split(inputs, labels, np.array(sizes, np.int32))


def data(sizes=(40, 32, 40), *, broken=0):
    """The problem; the first `broken` training examples of the task "middle" are not numbers."""
    train = split(sizes, 0)
    train.inputs[1, :broken] = np.nan
    return base.MultitaskData(NAMES, 2, train, split((30, 20, 30), 1), split((30, 20, 30), 2))


def schedule(train_steps=40, eval_interval=10, checkpoint_interval=10, **options):
    return Schedule(train_steps, eval_interval, checkpoint_interval, **options)


def program(
    method=AVERAGE,
    *,
    broken=0,
    sizes=(40, 32, 40),
    learning_rate=0.5,
    sampler="balanced",
    together=None,
    **options,
):
    return Program(
        method,
        data(sizes, broken=broken),
        mlp.MLP(num_classes=2, features=(4,)),
        optax.sgd(learning_rate, momentum=0.9),
        batch_size=24,
        sampler=sampler,
        schedule=schedule(**options),
        together=together,
    )


class Progress:
    """Stands in for the progress bar; raises KeyboardInterrupt after so many stretches."""

    def __init__(self, stop_after=None):
        self.lines, self.texts, self.steps, self._left = [], [], [], stop_after

    def write(self, line):
        self.lines.append(line)

    def update(self, steps):
        self.steps.append(steps)

    def set_postfix_str(self, text):
        self.texts.append(text)
        if self._left is not None:
            self._left -= 1
            if not self._left:
                raise KeyboardInterrupt


def train(a_program, directory, *, seed=0, progress=None):
    (run,) = train_together(a_program, directory, [Trial(a_program.method, seed)], progress)
    return run


def train_together(a_program, directory, trials, progress=None):
    return loop.train(
        a_program,
        trials,
        checkpoint_dir=directory / "checkpoints",
        tensorboard_dirs=[directory / "tensorboard" / str(i) for i in range(len(trials))],
        progress=progress or Progress(),
    )


def run(directory, **options):
    options = {
        "name": "tiny",
        "description": "A tiny problem.",
        "load_data": lambda data_dir: data(),
        "model": functools.partial(mlp.MLP, features=(4,)),
        "methods": [AVERAGE],
        "seeds": (0, 1),
        "optimizer": optax.sgd(0.5),
        "batch_size": 24,
        "schedule": schedule(train_steps=10, eval_interval=5),
    } | options
    return experiment.multitask_classification(
        output_dir=directory, data_dir=None, config_text="a = 1", **options
    )
