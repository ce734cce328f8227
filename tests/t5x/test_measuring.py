"""What is measured of a batch: on average over all batches, that of the weighted losses."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

tiny_t5x = pytest.importorskip(
    "helpers.tiny_t5x", reason="T5X is not installed (scripts/install_t5x.sh)", exc_type=ImportError
)
from ldro_jax.interaction import scan  # noqa: E402
from ldro_jax.measuring import Batch, Plan, RowLosses, measure  # noqa: E402
from ldro_jax.t5x import tasks as tasks_lib  # noqa: E402
from ldro_jax.t5x.model import row_tokens  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
N, EACH, LENGTH, SIZE = 3, 2, 4, 5
RNG = np.random.default_rng(0)
# Of each task so many different rows.
INPUTS = RNG.normal(size=(N, EACH, LENGTH, SIZE))
GOALS = RNG.normal(size=(N, EACH, LENGTH))
PARAMS = RNG.normal(size=SIZE)
SHARE, WEIGHTS = np.array([0.1, 0.3, 0.6]), np.array([0.5, 0.2, -0.4])


def losses_of(params, rows):
    """Of a linear model; summed over tokens."""
    features = rows["features"]
    errors = jnp.square(features["inputs"] @ params - features["goals"])
    sums = (errors * features["decoder_loss_weights"]).sum(axis=1)
    return RowLosses(sums, row_tokens(features))


def rows_of(tasks, which, weights=1.0):
    shape = (len(tasks), LENGTH)
    return {
        "inputs": jnp.asarray(INPUTS)[tasks, which],
        "goals": jnp.asarray(GOALS)[tasks, which],
        "decoder_loss_weights": jnp.full(shape, weights),
    }


def measured(batch, **options):
    return measure(Plan(N, scan(), pads=False, **options), losses_of, jnp.asarray(PARAMS), batch)


def gradients_of_tasks():
    """In NumPy: of the mean over all tokens of each task."""
    errors = np.einsum("netd,d->net", INPUTS, PARAMS) - GOALS
    return 2 * np.einsum("net,netd->nd", errors, INPUTS) / (EACH * LENGTH)


@pytest.mark.parametrize("size, microbatches", [(1, 1), (2, 1), (2, 2), (3, 1), (4, 2)])
def test_rows_drawn_at_random_train_on_the_weighted_loss_on_average(size, microbatches):
    with jax.enable_x64(True):
        # Every batch that can be drawn, with its probability.
        tasks = np.array(list(itertools.product(range(N), repeat=size)))
        probabilities = SHARE[tasks].prod(axis=1)
        # The mean over rows by turns: any row of a task is as likely as another.
        choices = np.array(list(itertools.product(range(EACH), repeat=size)))

        @jax.jit
        @jax.vmap
        def gradient(task, which):
            rows = tasks_lib.numbered(rows_of(task, which), size)
            batch = Batch(rows, task, jnp.asarray(SHARE * size))
            found = measured(batch, microbatches=microbatches)
            return found.pullback(jnp.where(found.present, WEIGHTS, 0))

        pairs = [np.repeat(tasks, len(choices), 0), np.tile(choices, (len(tasks), 1))]
        found = np.asarray(gradient(*map(jnp.asarray, pairs)))
    mean = np.repeat(probabilities, len(choices)) @ found / len(choices)
    # Rounding in float64, and loss weights in float32.
    np.testing.assert_allclose(mean, WEIGHTS @ gradients_of_tasks(), rtol=1e-6)


def test_tasks_in_uneven_turns_train_on_the_weighted_loss_on_average():
    with jax.enable_x64(True):
        choices = np.array(list(itertools.product(range(EACH), repeat=4)))
        found = []
        for first in range(N):
            task = (first + np.arange(4)) % N

            @jax.jit
            @jax.vmap
            def gradient(which, task=task):
                rows = tasks_lib.numbered(rows_of(task, which), len(task))
                found = measured(Batch(rows, jnp.asarray(task, jnp.int32)))
                return found.pullback(jnp.asarray(WEIGHTS))

            found.append(np.asarray(gradient(jnp.asarray(choices))).mean(axis=0))
    np.testing.assert_allclose(found, np.tile(WEIGHTS @ gradients_of_tasks(), (N, 1)), rtol=1e-6)


@pytest.mark.parametrize("every_step", [False, True])
@pytest.mark.parametrize("weight", [0.01, 3.0, 0.0, -1.0])
def test_losses_are_means_over_any_positive_number_of_tokens(every_step, weight):
    tasks, which = jnp.arange(6) % N, jnp.arange(6) // N
    rows = rows_of(tasks, which)
    rows["decoder_loss_weights"] = rows["decoder_loss_weights"].at[1::N].set(weight)
    batch = Batch(tasks_lib.numbered(rows, 6))
    found = measured(batch, interval=1 if every_step else None)
    errors = np.einsum("netd,d->net", INPUTS, PARAMS) - GOALS
    expected = np.square(errors).mean(axis=(1, 2))
    losses, present = (np.asarray(x) for x in (found.losses, found.present))
    np.testing.assert_array_equal(present, [True, weight > 0, True])
    # Less than one token counts as much as any other; a mean over negative ones is none.
    if weight < 0:
        expected[1] = np.nan
    told = [0, 1, 2] if weight else [0, 2]
    np.testing.assert_allclose(losses[told], expected[told], rtol=1e-5)
