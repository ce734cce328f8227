"""PCGrad against the paper's algorithm on explicit gradients, and its random orders."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldro_jax import weighting
from ldro_jax.weighting.pcgrad import coefficients

compute = jax.jit(coefficients)


def yu_et_al(gradients, orders):
    """Algorithm 1 of the paper on the gradients themselves: each task's projected one, [N, D]."""
    gradients = np.asarray(gradients, np.float64)
    projected = gradients.copy()
    for i, order in enumerate(orders):
        for j in order:
            if j == i:
                continue
            inner = projected[i] @ gradients[j]
            if inner < 0:
                projected[i] = projected[i] - inner / (gradients[j] @ gradients[j]) * gradients[j]
    return projected


def random_orders(num_tasks, seed=0):
    generator = np.random.default_rng(seed)
    return np.stack([generator.permutation(num_tasks) for _ in range(num_tasks)])


def gram(gradients, dtype):
    return jnp.asarray(gradients @ gradients.T, dtype)


def statistics(gradients, count=0, dtype="float32"):
    losses = jnp.ones((len(gradients),), dtype)
    return weighting.Statistics(jnp.int32(count), losses, gram(gradients, dtype))


@functools.cache
def update(seed):
    return jax.jit(weighting.pcgrad(seed=seed).update)


def weights_of(gradients, *, seed=0, count=0, dtype="float32"):
    weights, state = update(seed)(statistics(gradients, count, dtype), ())
    assert weights.dtype == dtype and state == ()
    return weights


# Name, number of tasks, of parameters, rank.
SHAPES = {"wide": (4, 9, 4), "tall": (8, 3, 3), "rank one": (4, 6, 1), "many": (8, 20, 6)}


def random_gradients(shape, seed=0):
    generator = np.random.default_rng(seed)
    num_tasks, num_parameters, rank = SHAPES[shape]
    left = generator.standard_normal((num_tasks, rank))
    return left @ generator.standard_normal((rank, num_parameters))


def assert_projects(gradients, dtype):
    orders = random_orders(len(gradients))
    found = compute(gram(gradients, dtype), jnp.asarray(orders, jnp.int32))
    assert found.dtype == dtype and found.shape == (len(gradients),) * 2
    expected = yu_et_al(gradients, orders)
    # A projection shrinks a gradient; the combination of long gradients that makes a short one
    # loses the digits that cancel.
    terms = np.abs(found) @ np.linalg.norm(gradients, axis=1)
    tolerance = 50 * float(jnp.finfo(dtype).eps) * terms.max()
    np.testing.assert_allclose(np.asarray(found, np.float64) @ gradients, expected, atol=tolerance)
    return np.asarray(found), expected


@pytest.mark.parametrize("shape", SHAPES)
def test_coefficients_are_the_papers_algorithm(shape, dtype):
    gradients = random_gradients(shape)
    found, expected = assert_projects(gradients, dtype)
    assert np.abs(expected - gradients).max() > 0.1
    assert (found >= 0).all() and (np.diagonal(found) == 1).all()


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_coefficients_do_not_depend_on_the_scale(scale):
    gradients = random_gradients("wide")
    found, _ = assert_projects(scale * gradients, "float32")
    same, _ = assert_projects(gradients, "float32")
    np.testing.assert_allclose(found, same, rtol=1e-4, atol=1e-5)


def test_tasks_of_very_different_scale(dtype):
    scales = np.array([1e-3, 1.0, 10.0, 1e3])[:, None]
    assert_projects(scales * random_gradients("wide"), dtype)


def test_a_zero_gradient_is_in_conflict_with_none(dtype):
    gradients = random_gradients("wide")
    gradients[2] = 0
    found, _ = assert_projects(gradients, dtype)
    np.testing.assert_array_equal(found[2], [0, 0, 1, 0])
    np.testing.assert_array_equal(found[:, 2], [0, 0, 1, 0])
    assert (np.asarray(weights_of(np.zeros((4, 3)), dtype=dtype)) == 0.25).all()


def test_rounding_is_no_conflict_with_a_zero_gradient():
    # A Gram matrix as measured: not quite that of any gradients.
    interaction = jnp.array([[1.0, -1e-9], [-1e-9, 0.0]])
    orders = jnp.array([[0, 1], [1, 0]], jnp.int32)
    found = compute(interaction, orders)
    np.testing.assert_allclose(found, [[1, 0], [1e-9, 1]])


def test_each_projection_ends_without_conflict_with_the_last(dtype):
    gradients = random_gradients("many")
    orders = random_orders(len(gradients))
    found = compute(gram(gradients, dtype), jnp.asarray(orders, jnp.int32))
    projected = np.asarray(found, np.float64) @ gradients
    for i, order in enumerate(orders):
        last = [j for j in order if j != i][-1]
        assert projected[i] @ gradients[last] > -1e3 * float(jnp.finfo(dtype).eps)


def test_orders_pass_the_task_itself_over():
    interaction = gram(random_gradients("wide"), "float32")
    orders = [(1, 3, 2), (0, 2, 3), (3, 0, 1), (2, 1, 0)]
    first = [[i, *order] for i, order in enumerate(orders)]
    last = [[*order, i] for i, order in enumerate(orders)]
    one, other = (compute(interaction, jnp.array(o, jnp.int32)) for o in (first, last))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("seed", range(5))
def test_two_tasks_in_closed_form(seed, dtype):
    one, two = np.random.default_rng(seed).standard_normal((2, 3))
    two = two if one @ two < 0 else -two
    inner = one @ two
    # The mean of g1 − ⟨g1, g2⟩ / |g2|² g2 and g2 − ⟨g1, g2⟩ / |g1|² g1.
    expected = [(1 - inner / (one @ one)) / 2, (1 - inner / (two @ two)) / 2]
    found = weights_of(np.array([one, two]), dtype=dtype)
    np.testing.assert_allclose(found, expected, rtol=20 * float(jnp.finfo(dtype).eps))
    # There is one order only, so the weights follow the tasks' numbering.
    np.testing.assert_array_equal(weights_of(np.array([two, one]), dtype=dtype), found[::-1])


@pytest.mark.parametrize("num_tasks", [1, 8])
def test_without_conflict_the_weights_are_uniform(num_tasks, dtype):
    gradients = np.abs(np.random.default_rng(0).standard_normal((num_tasks, 5)))
    found = weights_of(gradients, dtype=dtype)
    np.testing.assert_allclose(found, np.full(num_tasks, 1 / num_tasks), rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_weight_is_less_than_uniform(shape):
    gradients = random_gradients(shape)
    found = weights_of(gradients)
    assert (np.asarray(found) >= (1 - 1e-6) / len(gradients)).all()
    assert found.sum() > 1.01


# Three tasks that conflict with one another, so that each of the eight ways in which they can go
# through the other two has its own weights.
TRIANGLE = np.array([[1.0, 0.1, 0.0], [-0.6, 1.2, 0.3], [-0.5, -0.8, 1.0]])
ORDERS = list(itertools.product(*[itertools.permutations(set(range(3)) - {i}) for i in range(3)]))
NUM_STEPS = 1600


@functools.cache
def orders_seen(seed):
    """Which of `ORDERS` each step used, told from its weights alone."""
    method = weighting.pcgrad(seed=seed)

    def step(count):
        return method.update(statistics(TRIANGLE)._replace(count=count), ())[0]

    weights = np.asarray(jax.jit(jax.vmap(step))(jnp.arange(NUM_STEPS, dtype=jnp.int32)))
    means = np.array([yu_et_al(TRIANGLE, orders).mean(axis=0) for orders in ORDERS])
    expected = np.linalg.solve(TRIANGLE.T, means.T).T
    gaps = np.abs(expected[:, None] - expected[None]).max(axis=-1)
    assert gaps[~np.eye(len(ORDERS), dtype=bool)].min() > 0.01
    distances = np.abs(weights[:, None] - expected[None]).max(axis=-1)
    # Every step is one of the algorithm's, to the rounding of float32.
    assert distances.min(axis=1).max() < 1e-5
    return distances.argmin(axis=1)


def test_orders_are_fresh_in_every_step_and_equally_likely():
    seen = orders_seen(0)
    counts = np.bincount(seen, minlength=len(ORDERS))
    # Binomial: mean 200, standard deviation 13. Equally likely together, so a task's order says
    # nothing about another's, and each other task comes first half of the time.
    mean = NUM_STEPS / len(ORDERS)
    assert np.abs(counts - mean).max() < 5 * math.sqrt(mean * (1 - 1 / len(ORDERS)))
    # The next step's order is another seven times in eight: 1400 ± 13.
    assert abs((seen[1:] != seen[:-1]).sum() - 1400) < 5 * 13


def test_orders_are_a_function_of_seed_and_step():
    one, other = orders_seen(0), orders_seen(1)
    # They agree by chance: 200 ± 13 of 1600.
    assert abs((one == other).sum() - 200) < 5 * 13
    for step in (0, 17):
        expected = yu_et_al(TRIANGLE, ORDERS[one[step]]).mean(axis=0)
        for _ in range(2):
            found = np.asarray(weights_of(TRIANGLE, count=step), np.float64)
            np.testing.assert_allclose(found @ TRIANGLE, expected, atol=1e-5)


def test_jit_with_a_traced_step_is_eager():
    gradients = random_gradients("wide")
    method = weighting.pcgrad(seed=3)
    eager, state = method.update(statistics(gradients, 7), method.init(len(gradients)))
    assert state == ()
    found = weights_of(gradients, seed=3, count=7)
    np.testing.assert_allclose(found, eager, rtol=20 * float(jnp.finfo("float32").eps))
    weights_of(gradients, seed=3, count=8)
    assert update(3)._cache_size() == 1


@pytest.mark.parametrize("seed", [1.0, "0", None, True, -1, 2**32])
def test_a_seed_must_be_an_integer(seed):
    with pytest.raises(ValueError, match="seed must be an integer"):
        weighting.pcgrad(seed=seed)


def test_is_known_by_name_and_wants_the_interaction():
    assert weighting.create("pcgrad", {"seed": 1}).uses_interaction
