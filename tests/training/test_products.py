"""Products of the interaction matrix in the trainer: all kinds of rows, one and eight devices."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest
from helpers import labelled, tiny

from ldro_jax import interaction, transform
from ldro_jax.records import results
from ldro_jax.sharding import Layout
from ldro_jax.training import fingerprint
from ldro_jax.training.batches import Batches
from ldro_jax.training.engine import Trial
from ldro_jax.training.meshed import MeshedEngine
from ldro_jax.training.method import Method
from ldro_jax.training.stacked import StackedEngine

STEPS, SIZE, SEED = 12, 24, 5
METHOD = Method(
    "L-DRO", "lookahead_online", {"lookahead_lr": 0.5, "weight_lr": 0.5}, interaction="products"
)
LAYOUTS = {"stacked": None, "one": tiny.ONE, "4 x 2": Layout(data=4, model=2)}
KINDS = {
    "labels, statistics, dropout": labelled.problem,
    "tables": labelled.two_tables,
    "rows of one task": tiny.problem,
}


def program(make, layout, method=METHOD, **options):
    engine = StackedEngine if LAYOUTS[layout] is None else MeshedEngine
    batches = Batches(SIZE, layout=LAYOUTS[layout], **options)
    return engine(make(), optax.sgd(0.02), batches).program(method)


def trained(a_program):
    a_program.check()
    session = a_program.start([Trial(a_program.method, SEED)])
    session.advance(STEPS, lambda step: False, tiny.Progress())
    state = session.state(0)
    return state.params, transform.find_state(state.opt_state)


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_the_same_on_one_and_on_eight_devices(kind):
    (params, state), (others, elsewhere) = (
        trained(program(KINDS[kind], layout)) for layout in ("one", "4 x 2")
    )
    # Float32, summed in another order over twelve steps.
    close = {"rtol": 1e-3, "atol": 1e-5}
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **close), params, others)
    np.testing.assert_allclose(state.weights, elsewhere.weights, **close)
    assert np.ptp(state.weights) > 1e-3 and not state.unmeasured.any()


@pytest.mark.parametrize("kind", KINDS)
def test_they_train_where_the_data_is_on_the_device(kind):
    _, state = trained(program(KINDS[kind], "stacked"))
    assert np.ptp(state.weights) > 1e-3 and not state.unmeasured.any()


@pytest.mark.heavy  # as for the matrix in test_stacked.py
def test_random_batches_have_their_rows_drawn_apart():
    a_program = program(tiny.problem, "stacked", sampler="uniform", interaction_rows=8)
    assert a_program.rows_apart == a_program.plan.rows == 8
    _, state = trained(a_program)
    assert np.ptp(state.weights) > 1e-3


@pytest.mark.heavy  # as in test_labels.py
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path):
    a_program, schedule = program(tiny.problem, "stacked"), tiny.schedule(12, 3, 3)
    whole = tiny.train(a_program, tmp_path / "whole", schedule)
    with pytest.raises(KeyboardInterrupt):
        tiny.train(a_program, tmp_path / "pieces", schedule, progress=tiny.Progress(stop_after=2))
    run = tiny.train(a_program, tmp_path / "pieces", schedule)
    found, expected = (
        results.run_to_record(dataclasses.replace(r, seconds_per_step=None)) for r in (run, whole)
    )
    assert found == expected and "interaction" not in found


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({}, 6),
        ({"interaction": interaction.products(share=1.0)}, 24),
        ({"interaction_rows": 10}, 10),
    ],
)
def test_a_quarter_of_the_rows_serves_unless_another_number_is_given(options, rows):
    a_program = program(labelled.problem, "stacked", dataclasses.replace(METHOD, **options))
    assert (a_program.plan.rows, a_program.rows_apart) == (rows, None)
    assert a_program.plan.interval == 1


def test_rows_that_cannot_be_halved_are_refused():
    one = dataclasses.replace(
        METHOD, interaction=interaction.products(apart=True), interaction_rows=1
    )
    with pytest.raises(ValueError, match="interaction='products' halves the rows of each task"):
        program(labelled.problem, "stacked", one)


def test_what_is_measured_in_another_way_is_another_run():
    ways = [
        "products",
        interaction.products(),
        interaction.products(in_turn=False),
        interaction.products(share=0.5),
        interaction.products(apart=True),
        "auto",
    ]

    def digest(way):
        a_program = program(tiny.problem, "stacked", dataclasses.replace(METHOD, interaction=way))
        found = fingerprint.of(a_program, tiny.schedule(4, 2, 2), [Trial(a_program.method, 0)])
        return json.dumps(found, default=str)

    digests = [digest(way) for way in ways]
    assert len(set(digests)) == len(ways)
    assert digest("products") == digests[0]


def test_a_method_that_needs_the_matrix_is_refused():
    exact = Method("exact", "lookahead_exact", {"lookahead_lr": 0.5})
    with pytest.raises(ValueError, match="can do with products"):
        program(tiny.problem, "stacked", dataclasses.replace(exact, interaction="products"))


def test_what_measuring_costs_is_said_where_it_is_much():
    matrix = dataclasses.replace(METHOD, interaction="auto", interaction_interval=1)
    said = program(labelled.problem, "stacked", matrix).cost()
    # Three tasks that go back, and five of three passes on a quarter of the rows.
    assert said == (
        "the interaction, measured in every step, is about 2.0 plain steps' work a step; with "
        "interaction='products' it would be 0.4."
    )
    assert program(labelled.problem, "stacked").cost() == (
        "the interaction, measured in every step, is about 0.4 plain steps' work a step."
    )
    assert program(tiny.problem, "stacked", matrix).cost() is None


def test_other_parameters_that_count_are_another_run():
    def digest(shared):
        method = dataclasses.replace(METHOD, shared=shared)
        a_program = program(labelled.problem, "stacked", method)
        found = fingerprint.of(a_program, tiny.schedule(4, 2, 2), [Trial(method, 0)])
        return json.dumps(found.get("programs", found), default=str)

    def of(name):
        return lambda params: jax.tree_util.tree_map_with_path(
            lambda path, _: name in jax.tree_util.keystr(path), params
        )

    assert len({digest(of(name)) for name in ("Dense_0", "Dense_1")} | {digest(None)}) == 3
