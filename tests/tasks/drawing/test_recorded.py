"""The rows of a seed and step stay what they were, to the bit.

``recorded.json`` holds what three modules drew before one room was made of them: a run that is
begun again, or goes on, draws them still.
"""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from ldro_jax.tasks import drawing

RECORDED = json.loads((pathlib.Path(__file__).parent / "recorded.json").read_text())
SIZES = np.array([5, 1, 7, 3])
SHARES = np.array([0.6, 0.05, 0.1, 0.25], np.float32)


def number(case):
    return f"{case['sampler']}-{case['size']}"


@pytest.mark.parametrize("case", RECORDED["on device"], ids=number)
def test_draws_on_the_device(case):
    sizes = np.array(case["sizes"])
    drawer = drawing.Drawer(case["sampler"], case["size"], 0 * sizes, sizes=sizes)
    steps = len(case["tasks"])
    draw = jax.jit(lambda key, start: drawing.stretch(drawer, key, start, steps))(
        jax.random.key(case["seed"]), case["start"]
    )
    np.testing.assert_array_equal(draw.tasks, case["tasks"])
    np.testing.assert_array_equal(draw.indices, case["indices"])


@pytest.mark.parametrize("case", RECORDED["on host"], ids=number)
def test_draws_on_the_host(case):
    drawer = drawing.Drawer(
        case["sampler"],
        case["size"],
        np.array(case["counts"]),
        case["seed"],
        sizes=SIZES,
        probabilities=SHARES,
    )
    for expected in case["draws"]:
        draw, after = drawer.next()
        np.testing.assert_array_equal(draw.tasks, expected["tasks"])
        np.testing.assert_array_equal(draw.indices, expected["indices"])
        np.testing.assert_array_equal(after.counts, expected["counts"])
        np.testing.assert_array_equal(drawer.expected(draw.tasks), np.float32(expected["expected"]))
        np.testing.assert_array_equal(after.ahead(8), expected["measured"])
        # In another process, or in one that goes on.
        drawer = dataclasses.replace(drawer, counts=0 * SIZES).restored(
            json.loads(json.dumps(after.record()))
        )


def test_orders():
    orders = drawing.Orders([5, 3], 7, [4, 0])
    found = [[list(orders(task, index)) for index in range(12)] for task in range(2)]
    assert found == RECORDED["orders"]


def test_probabilities_of_weights():
    for weights, seen, expected in RECORDED["probabilities"]:
        found = drawing.probabilities_of_weights(np.float32(weights), np.array(seen))
        np.testing.assert_array_equal(found, np.float32(expected))
