"""The table of docs/optax.md: what is refused around the weighting, and what works behind it."""

import functools

import jax
import jax.numpy as jnp
import optax
from helpers import problems

from ldro_jax import ldro


def weighted(**options):
    options = {"lookahead_lr": 0.1, "weight_lr": 0.5, "interaction_interval": 2} | options
    return ldro.transform(3, **options)


@functools.cache
def problem():
    """Two parameters, so that one of them can be masked."""
    base = problems.least_squares()

    def loss_fn(params, task):
        return base.loss_fn({"w": params["w"]}, {"x": task["x"], "y": task["y"] - params["b"]})

    return base._replace(loss_fn=loss_fn, params=base.params | {"b": jnp.float32(0.5)})


MASK = {"w": True, "b": False}
ALL = {"w": True, "b": True}
ADVERSARY = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))


def every_second(step):
    return step % 2 == 0


# What is refused around the weighting: name, how it is written, and the advice. Behind it all work.
REFUSED = {
    "masked": (lambda tx: optax.masked(tx, MASK), r"optax\.masked\(optimizer, mask\)"),
    "partition": (
        lambda tx: optax.partition({True: tx, False: optax.sgd(0.1)}, MASK),
        r"optax\.masked\(optimizer, mask\)",
    ),
    "selective_transform": (
        lambda tx: optax.selective_transform(tx, freeze_mask={"w": False, "b": True}),
        r"optax\.masked\(optimizer, mask\)",
    ),
    "MultiSteps": (
        lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
        r"optax\.MultiSteps\(optimizer, k\)",
    ),
    "apply_if_finite": (
        lambda tx: optax.apply_if_finite(tx, 5),
        r"optax\.apply_if_finite\(optimizer, n\)",
    ),
    "contrib.mechanize": (
        optax.contrib.mechanize,
        r"would not train.*optax\.contrib\.mechanize\(optimizer\)",
    ),
    "flatten": (optax.flatten, r"optax\.flatten\(optimizer\)"),
    "contrib.split_real_and_imaginary": (
        optax.contrib.split_real_and_imaginary,
        r"optax\.contrib\.split_real_and_imaginary\(optimizer\)",
    ),
}
ONLY_AROUND = {
    "contrib.sam": (
        lambda tx: optax.contrib.sam(tx, ADVERSARY),
        r"optax\.GradientTransformation\(\*optax\.contrib\.sam\(optimizer, adversary\)\)",
    ),
    "lookahead": (lambda tx: optax.lookahead(tx, 2, 0.5), "one after the other: .*params.fast"),
}
CONDITIONAL = {
    "conditionally_mask": lambda tx: optax.conditionally_mask(tx, every_second),
    "conditionally_transform": lambda tx: optax.conditionally_transform(tx, every_second),
}
AS_ANY = {
    "contrib.muon": optax.contrib.muon(0.1),
    "contrib.ademamix": optax.contrib.ademamix(0.1),
    "contrib.prodigy": optax.contrib.prodigy(estim_lr0=0.01),
}
WITH_VALUE = {
    "contrib.reduce_on_plateau": optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()),
    "polyak_sgd": optax.polyak_sgd(),
    "contrib.momo": optax.contrib.momo(),
}
LINE_SEARCHES = {
    "scale_by_backtracking_linesearch": optax.scale_by_backtracking_linesearch(5),
    "scale_by_zoom_linesearch": optax.scale_by_zoom_linesearch(5),
    "lbfgs": optax.lbfgs(),
}


def one_update(tx, state=None, updates="zeros", **extra):
    p = problem()
    if updates == "zeros":
        updates = jax.tree.map(jnp.zeros_like, p.params)
    state = tx.init(p.params) if state is None else state
    return problems.update(tx, updates, state, p.params, loss_fn=p.loss_fn, batch=p.batch, **extra)
