"""Which way a step goes, by what is asked of it and what its batch holds."""

import numpy as np
import pytest

from ldro_jax import interaction
from ldro_jax.measuring import Batch, Grouped, Plan, Way

N = 3
HOLDS, LAGS, NEVER = interaction.vmap(), interaction.layerwise(), interaction.tiled(1)
HALVES = interaction.split("vmap", fused=True)


def rows(size, **options):
    return Batch(np.zeros((size, 2)), **options)


@pytest.mark.parametrize(
    ("options", "batch", "way"),
    [
        ({}, rows(6), Way.ONE_PASS),
        ({"interval": None}, rows(6), Way.APART),
        ({"interval": 2}, rows(6), Way.APART),
        ({"microbatches": 2}, rows(6), Way.APART),
        ({"strategy": NEVER}, rows(6), Way.APART),
        # Rows of the batch must serve, all of them.
        ({}, rows(6, measured=np.zeros((3, 2))), Way.APART),
        ({"rows": 1}, rows(6), Way.APART),
        ({"rows": 2}, rows(6), Way.ONE_PASS),
        # Rows that fill up must count in nothing.
        ({}, rows(7, tasks=np.arange(7) % N), Way.ONE_PASS),
        ({"multiple": 4}, rows(6), Way.ONE_PASS),
        ({"multiple": 4, "pads": False}, rows(6), Way.APART),
        ({"pads": False}, rows(6), Way.ONE_PASS),
        ({"pads": False}, rows(7, tasks=np.arange(7) % N), Way.APART),
        ({"pads": False}, rows(6, tasks=np.zeros(6, int)), Way.APART),
        # Halves are of as many rows.
        ({"strategy": HALVES}, rows(6), Way.ONE_PASS),
        ({"strategy": HALVES}, rows(9), Way.APART),
        ({"strategy": HALVES}, rows(7, tasks=np.arange(7) % N), Way.APART),
        ({"lagged": True}, rows(6), Way.ONE_PASS),
        ({"lagged": True, "strategy": LAGS}, rows(6), Way.LAGGED),
        ({"lagged": True, "strategy": LAGS, "microbatches": 2}, rows(6), Way.APART),
        ({"lagged": True, "strategy": NEVER}, rows(6), Way.APART),
        ({}, Grouped(np.zeros((N, 3)), None, float), Way.ONE_PASS),
        ({}, Grouped(np.zeros((N, 3)), np.zeros((N, 3)), float), Way.APART),
        ({"strategy": HALVES}, Grouped(np.zeros((N, 4)), None, float), Way.ONE_PASS),
        ({"lagged": True, "strategy": LAGS}, Grouped(np.zeros((N, 3)), None, float), Way.LAGGED),
    ],
)
def test_the_way_of_a_step(options, batch, way):
    plan = Plan(**{"num_tasks": N, "strategy": HOLDS, "interval": 1, **options})
    assert plan.way(batch) == way
    # A lagged pass multiplies the bare gradients.
    other = Way.APART if plan.strategy is LAGS else way
    assert plan.way(batch, preconditioned=True) == other


@pytest.mark.parametrize(
    ("strategy", "options", "work"),
    [
        # A pass forwards is one of the three that are a plain step's, one back two.
        ("auto", {"whole": True, "owned": False}, 2 * 10 / 3),
        ("auto", {"whole": True, "owned": False, "interval": 100}, 2 * 10 / 300),
        ("auto", {"whole": True, "owned": False, "rows": 32}, 2 * 10 / 3 / 4),
        ("auto", {}, 0),
        ("auto", {"interval": 10}, 1 / 10),
        (interaction.products(), {"whole": True, "owned": False, "rows": 32}, 5 / 3 / 4),
        (interaction.products(apart=True), {"whole": True, "owned": False, "rows": 32}, 1 / 4),
        (interaction.products(in_turn=False), {"whole": True, "owned": False}, 2 * 5 / 3),
        (interaction.lookahead(0.1), {"interval": 5}, (3 + 10) / 3 / 5),
        (interaction.lookahead(0.1), {"whole": True, "owned": False}, 10),
        ("auto", {"interval": None}, 0),
    ],
)
def test_the_work_of_measuring_in_plain_steps(strategy, options, work):
    plan = Plan(10, interaction.get(strategy), **{"interval": 1, **options})
    assert plan.work(128) == pytest.approx(work)
