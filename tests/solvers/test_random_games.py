"""Equilibria of a thousand games of all kinds, against HiGHS.

The value is HiGHS's; that no optimal w is more even is known from `shortfall`, a bound from weak
duality, which the tests of `tests/games/test_games.py` compare with an oracle.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import games_oracle as oracle
from scipy import special

from ldro_jax import games

SIZES = (2, 3, 5, 8, 16, 32, 64, 100, 128, 200, 256)
# Of the payoff range: what the docstring of max_entropy_nash promises.
VALUE_TOLERANCE = {"float32": 3e-6, "float64": 3e-13}


def lookahead(rng, size):
    """ℓ 1ᵀ − λA, of gradients of few or many directions, alike or not, of equal length or not."""
    rank = [size, max(size // 4, 1), 2, 3 * size][rng.integers(4)]
    gradients = rng.normal(size=(size, rank)) / np.sqrt(rank)
    lengths = np.exp(rng.integers(2) * rng.normal(size=(size, 1)))
    gradients = (gradients + 0.5 * rng.integers(2) * rng.normal(size=rank)) * lengths
    interaction = gradients @ gradients.T
    if rng.integers(2):
        interaction /= np.sqrt(np.diag(interaction))[None]
    losses = np.exp(0.5 * rng.normal(size=size))
    return losses[:, None] - 10 ** rng.uniform(-4, 2) * interaction


def duplicated(rng, size, noise=0.0):
    payoff = rng.normal(size=(size, size)) if rng.integers(2) else lookahead(rng, size)
    tasks = rng.integers(0, max(size // 2, 1), size)
    payoff = payoff[np.ix_(tasks, tasks)]
    return payoff + noise * np.abs(payoff).max() * rng.normal(size=payoff.shape)


def scaled(rng, size):
    rows = rng.normal(size=(size, size)) * 10 ** rng.uniform(-2, 1, size=(size, 1))
    payoff = rows if rng.integers(2) else lookahead(rng, size)
    return 10 ** rng.uniform(-8, 8) * payoff


def skew(rng, size):
    payoff = rng.normal(size=(size, size))
    return payoff - payoff.T


def nearly(make):
    """With noise from float32's rounding upwards."""
    return lambda rng, size: (
        make(rng, size) + 10 ** rng.uniform(-7, -3) * rng.normal(size=(size, size))
    )


def degenerate(rng, size):
    return rng.integers(0, 3, (size, size)).astype(float)


FAMILIES = {
    "normal": lambda rng, n: rng.normal(size=(n, n)),
    "uniform": lambda rng, n: rng.uniform(size=(n, n)),
    "lookahead": lookahead,
    "another lookahead": lookahead,
    "duplicated": duplicated,
    "nearly duplicated": lambda rng, n: duplicated(rng, n, 10 ** rng.uniform(-7, -3)),
    "degenerate": degenerate,
    "nearly degenerate": nearly(degenerate),
    "scaled": scaled,
    "skew": skew,
}


def game(number, dtype, seed=0):
    """The name and payoff of a game, in float64 but exact in the dtype."""
    names = list(FAMILIES)
    rng = np.random.default_rng([seed, number])
    name, size = names[number % len(names)], SIZES[number // len(names) % len(SIZES)]
    return name, FAMILIES[name](rng, size).astype(dtype).astype(np.float64)


def failures(numbers, dtype, seed=0):
    """The games whose value is wrong, and the games that the solver says it didn't solve."""
    wrong, unsolved = [], []
    for number in numbers:
        name, payoff = game(number, dtype, seed)
        found = games.max_entropy_nash(jnp.asarray(payoff, dtype))
        floor = payoff.min(1).max()
        unit = np.abs(payoff - floor).max() or 1.0
        value = floor + unit * oracle.value((payoff - floor) / unit)[0]
        w = np.asarray(found.weights, np.float64)
        span = np.ptp(payoff) or 1.0
        excess = ((payoff @ (w / w.sum())).max() - value) / span
        # HiGHS itself is right to about 1e-10.
        if not -1e-9 < excess < VALUE_TOLERANCE[dtype] + 1e-9:
            wrong.append((number, name, len(payoff), "value", excess))
        if not found.solved:
            unsolved.append((number, name, len(payoff), float(found.shortfall)))
    return wrong, unsolved


def test_a_few_games_of_every_kind_are_solved(dtype):
    # Of 5 tasks and of 16.
    wrong, unsolved = failures([*range(20, 30), *range(130, 140), *range(40, 50)], dtype)
    assert not wrong and not unsolved


@pytest.mark.parametrize(("number", "seed"), [(68, 0), (25, 2), (862, 0)])
def test_games_that_failed_once(number, seed):
    """A row that only seemed tight, rows more alike than their damping, and 200 tasks.

    They were off by 1e-4, by 8e-6, and by 0.01 with pairs told apart early.
    """
    wrong, unsolved = failures([number], "float32", seed)
    assert not wrong and not unsolved


@pytest.mark.heavy
def test_a_thousand_games_are_solved(dtype):
    wrong, unsolved = failures(range(1000), dtype)
    print(f"{dtype}: {len(wrong)} wrong, {len(unsolved)} of 1000 unsolved: {unsolved}")
    assert not wrong
    # Where payoffs are nearly the same, it may be unable to prove that w is even enough.
    assert len(unsolved) <= 10


def test_the_bound_of_the_entropy_is_one():
    """With the dual solution, no optimal w is more even than `weights` by more than `shortfall`."""
    for number in (20, 21, 22, 24, 26, 28, 29, 30, 32, 34):
        _, payoff = game(number, "float32")
        found = games.max_entropy_nash(jnp.asarray(payoff, jnp.float32))
        best = oracle.solve(payoff)
        entropy = special.entr(np.asarray(found.weights, np.float64)).sum()
        # The oracle's own face, and sums of weights that are one in float32.
        assert best.entropy - entropy <= found.shortfall + 1e-5
