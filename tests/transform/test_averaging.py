"""The mean of the parameters is NumPy's, and what is evaluated and loaded is the mean."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import labelled, tiny

import ldro_jax
from ldro_jax import ldro
from ldro_jax.training.batches import Batches
from ldro_jax.training.engine import Trial
from ldro_jax.training.meshed import MeshedEngine
from ldro_jax.training.stacked import StackedEngine


def test_the_mean_is_numpys():
    params = {"a": jnp.arange(3.0), "n": jnp.int32(0)}
    tx = ldro.averaged(optax.masked(optax.sgd(0.1), {"a": True, "n": False}), 0.75)
    state, seen, mean = tx.init(params), [], np.arange(3.0)
    zero = {"a": params["a"], "n": jnp.zeros([], jnp.int32)}
    step = jax.jit(lambda u, s, p: tx.update(u, s, p))
    for number in range(8):
        given = {"a": zero["a"] + number, "n": zero["n"]}
        updates, state = step(given, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(np.asarray(params["a"]))
        mean = np.mean(seen, axis=0) if number < 4 else 0.75 * mean + 0.25 * seen[-1]
        np.testing.assert_allclose(ldro.evaluated(params, (state,))["a"], mean, rtol=1e-6)
    assert ldro.evaluated(params, optax.sgd(0.1).init(params)) is params


@pytest.mark.parametrize("wrong", [1, -0.1, "0.9", None])
def test_a_decay_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=r"decay must be a number in \[0, 1\)"):
        ldro.averaged(optax.sgd(0.1), wrong)


@pytest.mark.parametrize("engine", [StackedEngine, MeshedEngine])
def test_the_trainer_evaluates_and_keeps_the_mean(engine, tmp_path):
    problem = labelled.problem()
    options = {} if engine is StackedEngine else {"layout": tiny.ONE}
    optimizer = ldro.averaged(optax.sgd(0.05), 0.9)
    program = engine(problem, optimizer, Batches(8, **options)).program(tiny.AVERAGE)
    schedule = tiny.schedule(10, 5, 5)
    run = tiny.train(program, tmp_path, schedule)
    session = program.start([Trial(tiny.AVERAGE, 0)])
    session.advance(10, lambda step: False, tiny.Progress())
    state = session.state(0)
    mean = ldro.evaluated(state.params, state.opt_state)
    kernels = [p["params"]["Dense_0"]["kernel"] for p in (mean, state.params)]
    assert not np.allclose(*kernels)
    # The running statistics are those of the last step.
    jax.tree.map(np.testing.assert_array_equal, mean["batch_stats"], state.params["batch_stats"])
    last = next(e for e in run.evaluations if e.step == 10 and e.split == "test")
    expected = problem.evaluate(mean, "test")["error"]
    np.testing.assert_allclose(list(last.per_task.values()), expected, rtol=1e-5)


@pytest.mark.usefixtures("unpainted")
def test_the_mean_is_loaded(tmp_path):
    tiny.run(tmp_path, optimizer=ldro.averaged(optax.sgd(0.5), 0.9), seeds=(0,))
    found = ldro_jax.load(tmp_path, step="last")
    program = tiny.stacked(optimizer=ldro.averaged(optax.sgd(0.5), 0.9))
    session = program.start([Trial(tiny.AVERAGE, 0)])
    session.advance(10, lambda step: False, tiny.Progress())
    state = session.state(0)
    expected = ldro.evaluated(state.params, state.opt_state)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), found, expected)
