"""Runs whose optimizer leaves some parameters as they are train as if these were constants."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from helpers import tiny

import ldro_jax
from ldro_jax import ldro, reporting, transform
from ldro_jax.measuring import trained as trained_lib
from ldro_jax.sharding import Layout
from ldro_jax.training import Batches, Method
from ldro_jax.training.engine import Trial

LDRO = Method("L-DRO", "lookahead_online", {"lookahead_lr": 0.5, "weight_lr": 1.0})


def is_trained(path, _):
    return "kernel" in jax.tree_util.keystr(path)


def kernels(params):
    return jax.tree_util.tree_map_with_path(is_trained, params)


class Kernels(ldro_jax.problems.Problem):
    """The tiny problem, whose biases are constants and no parameters."""

    def __init__(self):
        self._whole = tiny.problem()
        self._params = self._whole.init(jax.random.key(0))
        self.task_names, self.metrics = self._whole.task_names, self._whole.metrics
        self.on_device = self._whole.on_device

    def source(self, seed):
        return self._whole.source(seed)

    def init(self, key):
        return trained_lib.hide(self._whole.init(key), kernels(self._params))

    def row_losses(self, params, rows):
        return self._whole.row_losses(trained_lib.merge(params, self._params), rows)

    def evaluate(self, params, split):
        raise NotImplementedError


def trained(make, a_problem, optimizer, method, **options):
    session = make(method, a_problem, optimizer=optimizer, **options).start([Trial(method, 0)])
    session.advance(4, lambda step: False, tiny.Progress())
    state = session.state(0)
    return state.params, transform.find_state(state.opt_state)


ENGINES = [(tiny.stacked, {}), (tiny.meshed, {"layout": Layout(data=4, model=2)})]
METHODS = [{"interaction_interval": 2}, {"interaction_interval": 1}]
METHODS += [{"interaction_interval": 1, "lagged": True}]
METHODS += [{"interaction_interval": 1, "geometry": "optimizer"}]


def cases():
    for number, settings in enumerate(METHODS):
        for make, options in ENGINES:
            # Each engine, and each way: in one pass, and apart, with a geometry.
            quick = number == (2 if make is tiny.stacked else 3)
            yield pytest.param(make, options, settings, marks=[] if quick else pytest.mark.heavy)


@pytest.mark.parametrize("make, options, settings", list(cases()))
def test_as_if_they_were_constants(make, options, settings):
    method = dataclasses.replace(LDRO, **settings)
    adam = optax.rmsprop(0.05)
    found, state = trained(make, None, trained_lib.only(adam, kernels), method, **options)
    expected, other = trained(make, Kernels(), adam, method, **options)
    start = tiny.problem().init(jax.random.key(0))
    changed = jax.tree.map(lambda x, y: bool((x != y).any()), found, start)
    assert changed == kernels(start)
    assert np.ptp(state.weights) > 1e-4
    kept = trained_lib.hide(found, kernels(start))
    # A few steps in float32, compiled in another order.
    for ours, theirs in zip(
        jax.tree.leaves((kept, state)), jax.tree.leaves((expected, other)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=1e-5)


@pytest.mark.heavy  # as parts are in test_step.py
def test_in_parts():
    optimizer = trained_lib.only(optax.sgd(0.5), kernels)
    whole, parts = (
        trained(tiny.meshed, None, optimizer, LDRO, microbatches=n, layout=Layout(data=1))
        for n in (1, 3)
    )
    for ours, theirs in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_compare_freezes_what_is_not_trainable(tmp_path, monkeypatch):
    monkeypatch.setattr(reporting, "write_report", lambda *args, **options: None)
    ldro_jax.compare(
        tiny.problem(),
        [LDRO],
        (0,),
        ldro.only(optax.sgd(0.5), kernels),
        schedule=tiny.schedule(4, 4, 4),
        batches=Batches(24),
        output_dir=tmp_path,
    )
    start = tiny.problem().init(jax.random.key(0))
    found = ldro_jax.load(tmp_path, step="last", problem=tiny.problem())
    assert jax.tree.map(lambda x, y: bool((x != y).any()), found, start) == kernels(start)
    text = (tmp_path / "config.gin").read_text()
    assert "frozen" in text and "bias" in text


def test_an_optimizer_that_moves_nothing_is_refused():
    with pytest.raises(ValueError, match="optimizer leaves every parameter"):
        tiny.stacked(optimizer=optax.set_to_zero())
