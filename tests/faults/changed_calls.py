"""Calls of `compare` on a tiny problem, and changes of each, for tests of one directory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ldro_jax import ldro, problems, weighting
from ldro_jax.problems.base import OnDevice
from ldro_jax.sharding import Layout
from ldro_jax.training.method import Method
from ldro_jax.training.schedule import Schedule

LOSS, GAP = problems.Metric("loss", False), problems.Metric("gap", False)


def squared(outputs, rows):
    return jnp.sum((outputs - rows["targets"]) ** 2, axis=1)


def absolute(outputs, rows):
    return jnp.sum(jnp.abs(outputs - rows["targets"]), axis=1)


def arrays(seed, count=12):
    rng = np.random.default_rng(seed)
    made = {}
    for name, slope in (("rises", 1.0), ("falls", -0.5)):
        x = rng.normal(size=(count, 2)).astype(np.float32)
        made[name] = (x, slope * x[:, :1])
    return made


def network(activation=jnp.tanh, width=3, scale=1.0):
    def init(key, inputs):
        first, last = jax.random.split(key)
        return {
            "first": scale * jax.random.normal(first, (2, width)),
            "last": jax.random.normal(last, (width, 1)),
        }

    return init, lambda params, inputs: activation(inputs @ params["first"]) @ params["last"]


def problem(*, model=None, loss=squared, metrics=None, train=0, test=2, keep=None, shift=0.0):
    """Two regressions; `keep` drops inputs at random, with other numbers in each step."""
    data = arrays(train)
    data["rises"][1][0] += shift
    held_out = {"validation": arrays(1, 5), "test": arrays(test, 5)}
    made = problems.from_arrays(
        data,
        model=model or network(),
        loss=loss,
        metrics=metrics or {LOSS: squared},
        **held_out,
    )
    if keep is not None:
        arrays_, sizes, take = made.on_device

        def dropped(arrays, key, step, tasks, indices):
            rows = take(arrays, key, step, tasks, indices)
            mask = jax.random.bernoulli(jax.random.fold_in(key, step), keep, rows["inputs"].shape)
            return {**rows, "inputs": jnp.where(mask, rows["inputs"] / keep, 0)}

        made.on_device = OnDevice(arrays_, sizes, dropped)
    return made


def own(power):
    """A weighting of one's own."""
    return weighting.stateless(lambda s: jax.nn.softmax(power * s.losses))


def last_only(params):
    return {"first": False, "last": True}


DRO = Method("DRO", "group_dro", {"weight_lr": 0.5})
RATES = {"lookahead_lr": 0.1, "weight_lr": 0.5}
LDRO = Method("L-DRO", "lookahead_online", RATES, interaction_interval=2)
OTHER_RATE = Method("DRO", "group_dro", {"weight_lr": 0.25})
BASE = {
    "methods": [DRO],
    "seeds": (0,),
    "optimizer": lambda: optax.sgd(0.05),
    "schedule": Schedule(6, eval_interval=2, checkpoint_interval=2),
    "batch_size": 4,
}
SCHEDULE = BASE["schedule"]


def decayed(rate, steps=6):
    return lambda: optax.sgd(optax.cosine_decay_schedule(rate, steps))


def with_decay(decay):
    return lambda: optax.chain(optax.add_decayed_weights(decay), optax.sgd(0.05))


# For each change the options before, where they aren't those of BASE, the options after, and what
# the error says.
REFUSED = {
    "rate": ({}, {"optimizer": lambda: optax.sgd(0.01)}, "optimizer.*-0.05 there.*-0.01 now"),
    "schedule of the rate": ({}, {"optimizer": decayed(0.05)}, "optimizer.*-0.05 there"),
    "length of that": (
        {"optimizer": decayed(0.05)},
        {"optimizer": decayed(0.05, 12)},
        "optimizer.*decay_steps = 6.0 there.*decay_steps = 12.0 now",
    ),
    "momentum": ({}, {"optimizer": lambda: optax.sgd(0.05, momentum=0.9)}, "another optimizer"),
    "weight decay": (
        {"optimizer": with_decay(0.1)},
        {"optimizer": with_decay(0.2)},
        "optimizer.*weight_decay = 0.1 there.*weight_decay = 0.2 now",
    ),
    "tree of the state": (
        {},
        {"optimizer": lambda: optax.chain(optax.sgd(0.05), optax.identity())},
        "another optimizer",
    ),
    "loss": (
        {},
        {"problem": {"loss": absolute}},
        "another loss or model.*function squared there.*function absolute now",
    ),
    "activation": (
        {},
        {"problem": {"model": network(jax.nn.relu)}},
        "another loss or model.*tanh.* there.*relu.* now",
    ),
    "width": (
        {},
        {"problem": {"model": network(width=4)}},
        "another loss or model.*width = 3 there.*width = 4 now",
    ),
    "first parameters": (
        {},
        {"problem": {"model": network(scale=0.5)}},
        "another initial parameters.*scale = 1.0 there.*scale = 0.5 now",
    ),
    "dropout": (
        {"problem": {"keep": 0.9}},
        {"problem": {"keep": 0.5}},
        "another training rows.*keep = 0.9 there.*keep = 0.5 now",
    ),
    "a target": ({}, {"problem": {"shift": 0.25}}, "other data: content was .*, now it is"),
    "test data": ({}, {"problem": {"test": 3}}, "other data: content was .*, now it is"),
    "batch_size": ({}, {"batch_size": 8}, "another batch_size: it was 4, now it is 8"),
    "sampler": ({}, {"sampler": "uniform"}, "another sampler: it was balanced, now it is unif"),
    "microbatches": ({}, {"microbatches": 2}, "another microbatches: it was 1, now it is 2"),
    "interaction_rows": (
        {"methods": [LDRO]},
        {"interaction_rows": 1},
        "another interaction_rows: it was None, now it is 1",
    ),
    "trainable": (
        {},
        {"optimizer": lambda: ldro.only(optax.sgd(0.05), last_only)},
        r"another trainable: .*\[\].*'first'",
    ),
    "layout": ({}, {"layout": Layout(data=1)}, "another layout: it was None.* now it is a Layout"),
    "setting": (
        {},
        {"methods": [OTHER_RATE]},
        "another run: weight_lr was 0.5, now it is 0.25",
    ),
    "interval": (
        {"methods": [LDRO]},
        {"methods": [dataclasses.replace(LDRO, interaction_interval=1)]},
        "another run: interaction_interval was 2, now it is 1",
    ),
    "own weighting": (
        {"methods": [Method("own", own(1.0))]},
        {"methods": [Method("own", own(2.0))]},
        "another weighting",
    ),
    "eval_interval": (
        {},
        {"schedule": dataclasses.replace(SCHEDULE, eval_interval=3)},
        "another eval_interval: it was 2, now it is 3",
    ),
    "test": (
        {},
        {"schedule": dataclasses.replace(SCHEDULE, test="last")},
        "another test: it was always, now it is last",
    ),
    "what the best step is chosen by": (
        {"schedule": dataclasses.replace(SCHEDULE, test="best")},
        {
            "schedule": dataclasses.replace(SCHEDULE, test="best"),
            "problem": {"metrics": {LOSS: absolute}},
        },
        "another first metric.*squared there.*absolute now",
    ),
    "fewer steps": (
        {},
        {"schedule": dataclasses.replace(SCHEDULE, train_steps=2)},
        r"has [46] steps, and train_steps is 2 now",
    ),
}
TAKEN = {
    "nothing": ({}, {}),
    "another object": ({}, {"optimizer": lambda: optax.GradientTransformation(*optax.sgd(0.05))}),
    "a seed": ({}, {"seeds": (1, 0)}),
    "a method": ({}, {"methods": [Method("Average", "average"), DRO]}),
    "a setting": ({}, {"methods": [OTHER_RATE, DRO]}),
    "fewer seeds": ({"seeds": (0, 1)}, {}),
    "other methods": ({}, {"methods": [Method("Average", "average")]}),
    "more steps": ({}, {"schedule": dataclasses.replace(SCHEDULE, train_steps=10)}),
    "rarer checkpoints": ({}, {"schedule": dataclasses.replace(SCHEDULE, checkpoint_interval=4)}),
    "select_by": ({}, {"select_by": "average"}),
    "words": ({}, {"name": "other", "description": "Other words.", "config_text": "my: words"}),
    "a mesh": ({"layout": Layout(data=1)}, {"layout": Layout(data=2)}),
}
METRICS = {
    "new": {LOSS: squared, GAP: absolute},
    "first": {GAP: absolute, LOSS: squared},
    "another of the same name": {LOSS: absolute},
    "another instead": {GAP: absolute},
}
