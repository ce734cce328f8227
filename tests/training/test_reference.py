"""Methods that compare each row with a reference model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import plain_loop, tiny, tiny_lm

from ldro_jax import transform, weighting
from ldro_jax.training import Method
from ldro_jax.training.engine import Trial
from ldro_jax.training.meshed import MeshedProgram

ETA, SHARE, ONE = 2.0, 0.01, jnp.ones([])
DOREMI = Method("DoReMi", "doremi", {"reference_losses": None, "weight_lr": ETA, "share": SHARE})


def expected(excess):
    """One step of Xie et al., Algorithm 1, from even weights."""
    moved = np.exp(ETA * excess)
    return (1 - SHARE) * moved / moved.sum() + SHARE / len(excess)


def weights_after(session, steps=1):
    session.advance(steps, lambda step: False, tiny.Progress())
    return np.asarray(transform.find_state(session.state(0).opt_state).weights)


@pytest.mark.parametrize("make", [tiny.stacked, tiny.meshed])
@pytest.mark.parametrize("microbatches", [1, 2])
def test_the_positive_part_is_taken_row_by_row(make, microbatches):
    problem = tiny.problem()
    reference = jax.jit(problem.init)(jax.random.key(7))
    program = make(DOREMI, problem.with_reference(reference), microbatches=microbatches)
    session = program.start([Trial(DOREMI, 0)])
    params = jax.tree.map(np.asarray, session.state(0).params)
    rows, tasks = first_rows(program, session)
    excess, row_losses = np.zeros(3), jax.jit(problem.row_losses)
    for task in range(3):
        mine = jax.tree.map(lambda x, t=task: x[tasks == t], rows)
        losses, theirs = (np.asarray(row_losses(p, mine)) for p in (params, reference))
        excess[task] = np.maximum(losses - theirs, 0).mean()
        # The positive part of the mean would be another number.
        assert excess[task] > max((losses - theirs).mean(), 0) + 1e-4
    np.testing.assert_allclose(weights_after(session), expected(excess), rtol=1e-4)


def first_rows(program, session):
    """The rows of the first step."""
    if isinstance(program, MeshedProgram):
        draw, _ = program.feed.drawer(program.method, 0).next()
        rows = program.problem.source(0).rows(draw.tasks, draw.indices)
        return rows, draw.tasks
    from ldro_jax.tasks import drawing

    key = jax.random.fold_in(jax.random.key(0), 1)
    sizes = np.array([40, 32, 40])
    drawer = drawing.Drawer("balanced", tiny.BATCH_SIZE, 0 * sizes, sizes=sizes)
    tasks, indices = (x[0] for x in plain_loop.drawn(drawer, key, 1))
    train = tiny.data().train
    where = train.starts[tasks] + indices
    rows = {"inputs": train.inputs[where], "targets": train.targets[where]}
    return {**rows, "task": tasks}, tasks


def test_language_models_take_it_token_by_token():
    problem = tiny_lm.problem()
    init, apply = jax.jit(problem.init), jax.jit(problem._model.apply)
    reference, params = (init(jax.random.key(seed)) for seed in (1, 2))
    rows = jnp.asarray(np.random.default_rng(0).integers(0, 8, (5, tiny_lm.LENGTH)), jnp.int32)
    found = problem.with_reference(reference).row_excess(params, reference, rows)
    losses, theirs = (
        np.stack([apply({"params": p}, row[None])[0] for row in rows]) for p in (params, reference)
    )
    np.testing.assert_allclose(found, np.maximum(losses - theirs, 0).mean(axis=1), rtol=1e-5)


def test_without_a_reference_it_is_refused():
    with pytest.raises(ValueError, match="DoReMi compares each row.*with_reference"):
        tiny.stacked(DOREMI)


def test_another_reference_is_other_data():
    problem = tiny.problem()
    init = jax.jit(problem.init)
    one, two = (problem.with_reference(init(jax.random.key(s))) for s in (0, 1))
    assert one.identity != two.identity and "reference" not in problem.identity


def test_a_step_is_told_the_excess():
    tx = transform.weighted(weighting.doremi(None, ETA, share=SHARE), 2)
    arguments = {"losses": jnp.ones(2), "pullback": lambda w: w[0]}
    _, state = tx.update(None, tx.init(ONE), ONE, excess=jnp.array([0.5, 0.1]), **arguments)
    np.testing.assert_allclose(state.weights, expected(np.array([0.5, 0.1])), rtol=1e-5)
    with pytest.raises(ValueError, match=r"Pass excess, \[N\]"):
        tx.update(None, tx.init(ONE), ONE, **arguments)
    with pytest.raises(ValueError, match="excess must hold one number for each of the 2 tasks"):
        tx.update(None, tx.init(ONE), ONE, excess=jnp.ones(3), **arguments)
