"""Optax wrappers that would hold back what the weighting needs, however they are hidden."""

import jax
import jax.numpy as jnp
import optax
import pytest
from helpers import problems
from helpers.wrapped import ONLY_AROUND, REFUSED, one_update, problem, weighted

from ldro_jax import transform


@pytest.fixture(autouse=True)
def implicit_promotion():
    # Mechanize and MultiSteps multiply their int32 counts with floats.
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize("name", [*REFUSED, *ONLY_AROUND])
@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize("jitted", [False, True])
def test_a_wrapper_that_would_hold_back_something_is_refused(name, chained, jitted):
    wrap, advice = (REFUSED | ONLY_AROUND)[name]
    tx = optax.chain(weighted(), optax.sgd(0.1)) if chained else weighted()
    init = wrap(tx).init
    with pytest.raises(ValueError, match=advice):
        (jax.jit(init) if jitted else init)(problem().params)


def test_lookahead_behind_the_weighting_is_refused():
    params = optax.LookaheadParams.init_synced(problem().params)
    tx = optax.chain(weighted(), optax.lookahead(optax.sgd(0.1), 2, 0.5))
    with pytest.raises(ValueError, match="are optax.LookaheadParams.*one after the other"):
        tx.init(params)
    # Lookahead allows this for init, with a warning.
    state = tx.init(params.fast)
    p = problem()
    with pytest.raises(ValueError, match="are optax.LookaheadParams.*one after the other"):
        tx.update(None, state, params, loss_fn=p.loss_fn, batch=p.batch)


@pytest.mark.parametrize("name", ["MultiSteps", "apply_if_finite", "contrib.mechanize", "flatten"])
@pytest.mark.parametrize("jitted", [False, True])
def test_a_cached_init_does_not_hide_a_wrapper(name, jitted):
    inner = optax.chain(weighted(), optax.sgd(0.1))
    state = inner.init(problem().params)
    # As with a jitted init that was compiled before, no Python of ours runs in init.
    inner = optax.GradientTransformationExtraArgs(lambda params: state, inner.update)
    wrap, advice = REFUSED[name]
    tx = wrap(inner)
    state = tx.init(problem().params)
    update = jax.jit(lambda state: one_update(tx, state)) if jitted else lambda s: one_update(tx, s)
    with pytest.raises(ValueError, match=advice):
        update(state)


@pytest.mark.parametrize("name", ["lookahead", "contrib.sam", "contrib.split_real_and_imaginary"])
@pytest.mark.parametrize("chained", [False, True])
def test_a_cached_init_trains_nothing_silently(name, chained):
    inner = weighted()
    state = inner.init(problem().params)
    wrap, _ = (REFUSED | ONLY_AROUND)[name]
    tx = wrap(optax.GradientTransformationExtraArgs(lambda params: state, inner.update))
    p = problem()
    params = optax.LookaheadParams.init_synced(p.params) if name == "lookahead" else p.params
    # Optax doesn't know the arguments, but a chain leaves out what isn't known.
    error, message = TypeError, "unexpected keyword argument 'loss_fn'"
    if chained and name != "contrib.sam":
        tx = optax.chain(tx)
        error, message = ValueError, "an Optax wrapper keep them back|pass on the task statistics"
    with pytest.raises(error, match=message):
        tx.update(p.params, tx.init(params), params, loss_fn=p.loss_fn, batch=p.batch)


def test_a_subclass_does_not_hide_a_wrapper():
    class Mine(optax.MultiSteps):
        def init(self, params):
            return self._opt.init(params)

        def update(self, updates, state, params=None, **extra_args):
            return self._opt.update(updates, state, params, **extra_args)

    tx = Mine(weighted(), 2)
    with pytest.raises(ValueError, match=r"optax\.MultiSteps\(optimizer, k\)"):
        tx.init(problem().params)
    with pytest.raises(ValueError, match=r"optax\.MultiSteps\(optimizer, k\)"):
        one_update(tx, weighted().init(problem().params))


def test_functions_of_the_user_in_between_do_not_hide_a_wrapper():
    tx = weighted()

    def update(updates, state, params=None, **extra_args):
        return tx.update(updates, state, params, **extra_args)

    logged = optax.GradientTransformationExtraArgs(lambda params: tx.init(params), update)
    with pytest.raises(ValueError, match="would not train"):
        optax.contrib.mechanize(logged).init(problem().params)


@pytest.mark.parametrize("name", ["MultiSteps", "apply_if_finite", "contrib.mechanize"])
def test_another_weighting_inside_a_wrapper_is_not_refused(name):
    # Of other parameters: this wrapper isn't around it.
    other = problems.least_squares()

    def init(params):
        return weighted().init(other.params)

    def update(updates, state, params=None, **extra_args):
        _, state = weighted().update(
            None, state, other.params, loss_fn=other.loss_fn, batch=other.batch
        )
        return updates, state

    inner = optax.GradientTransformationExtraArgs(init, update)
    wrap, _ = REFUSED[name]
    _, state = one_update(wrap(inner))
    assert transform.find_state(state).count.dtype == jnp.int32


def test_functions_of_the_same_name_are_not_refused():
    def mechanize(params):
        return weighted().init(params)

    mechanize(problem().params)


def test_masked_parameters_are_refused_from_any_wrapper():
    params = problem().params | {"b": optax.MaskedNode()}
    with pytest.raises(ValueError, match=r"Some parameters are masked.*optax\.chain"):
        weighted().init(params)
    state = weighted().init(problem().params)
    p = problem()
    with pytest.raises(ValueError, match=r"Some parameters are masked.*optax\.chain"):
        weighted().update(None, state, params, loss_fn=p.loss_fn, batch=p.batch)
