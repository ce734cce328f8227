"""What both engines refuse, before anything is compiled, and what they share between methods."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from ldro_jax.training.batches import Batches

ENGINES = {"stacked": tiny.stacked, "meshed": tiny.meshed}


@pytest.fixture(params=ENGINES)
def make(request):
    return ENGINES[request.param]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size must be a positive integer, but it is 0"),
        ({"size": 16.0}, "size must be a positive integer, but it is 16.0"),
        ({"sampler": "random"}, "sampler must be one of 'balanced', 'uniform', .* 'random'"),
        ({"microbatches": 0}, "microbatches must be a positive integer, but it is 0"),
        ({"interaction_rows": 0}, "interaction_rows must be a positive integer, but it is 0"),
    ],
)
def test_batches_are_checked_when_they_are_described(options, message):
    with pytest.raises(ValueError, match=message):
        Batches(**{"size": 16, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 2}, "size must be at least 3, a row of each task, but it is 2"),
        ({"microbatches": 5}, "data axis, 5 × 1, but it is 24"),
    ],
)
def test_batches_that_can_not_be_taken_are_refused(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize("options", [{"size": 3}, {"size": 1, "sampler": "uniform"}], ids=str)
def test_the_smallest_batches_can_be_taken(make, options):
    make(**options).check()
    make(tiny.METHODS[-1], **options).check()


def test_an_optimizer_is_one_of_optax(make):
    with pytest.raises(ValueError, match="optimizer must be a .*GradientTransformation.*'sgd'"):
        make(optimizer="sgd")


def test_a_problem_from_outside_is_trained(make, tmp_path):
    program = make(a_problem=tiny.Distances(), learning_rate=0.05)
    run = tiny.train(program, tmp_path, tiny.schedule(150, 50))
    # Halfway between the two points.
    assert run.evaluations[-1].per_task == pytest.approx({"low": 1.5, "high": 1.5}, abs=0.05)
    assert run.losses.values[-1] == pytest.approx([2.25, 2.25], abs=0.1)


@pytest.mark.parametrize(
    ("change", "found"),
    [(lambda x: x.mean(), r"an array of the shape \[\]"), (lambda x: {"loss": x}, "{'loss'")],
    ids=["a mean", "a dictionary"],
)
def test_losses_must_be_one_for_each_row(make, change, found):
    with pytest.raises(ValueError, match=rf"one loss for each of 24 rows.* it returned {found}"):
        make(a_problem=tiny.Distances(losses=change)).check()


@pytest.mark.parametrize(
    ("change", "found"),
    [(lambda x: {"distance": x.mean()}, r"a shape of \[\]"), (lambda x: {"error": x}, "none")],
    ids=["a mean", "another name"],
)
def test_metrics_must_be_one_value_for_each_task(make, change, found):
    program = make(a_problem=tiny.Distances(values=change))
    with pytest.raises(ValueError, match=f"one value of 'distance' for each of 2 tasks.* {found}"):
        program.evaluate(jnp.zeros(1), "test")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("test", r"evaluate can't measure the split 'test' \(\"no rows of 'test'\"\)"),
        ("score", r"evaluate can't measure the split 'validation' \(no score\)"),
        ("shape", r"split 'validation' \(evaluate must give one value of 'distance'"),
    ],
)
def test_an_evaluation_that_would_fail_after_the_training_does_so_before(
    make, broken, message, tmp_path
):
    class Broken(tiny.Distances):
        def evaluate(self, params, split):
            if split == broken:
                raise KeyError(f"no rows of {split!r}")
            # As many do, in NumPy, which can't be traced.
            values = np.abs(np.asarray(params) - np.array([-1.0, 2.0]))
            return {"distance": values[:1] if broken == "shape" else values}

        def score(self, values):
            if broken == "score":
                raise RuntimeError("no score")
            return super().score(values)

    layout = tiny.ONE if make is tiny.meshed else None
    options = {"problem": Broken(), "batch_size": 2, "layout": layout}
    options["schedule"] = tiny.schedule(10, 5, test="best")
    with pytest.raises(ValueError, match=message):
        tiny.run(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_all_methods_start_from_the_same_parameters_and_seeds_differ(make):
    program = make()
    start = program.init(3).params
    for method in tiny.METHODS[1:]:
        other = program.engine.program(method).init(3).params
        jax.tree.map(np.testing.assert_array_equal, start, other)
    kernel = start["Dense_0"]["kernel"]
    assert not np.array_equal(kernel, program.init(4).params["Dense_0"]["kernel"])
    # The engine makes no difference to them either.
    for other_make in ENGINES.values():
        jax.tree.map(np.testing.assert_array_equal, start, other_make().init(3).params)


def test_all_methods_see_the_same_batches(make, tmp_path):
    # Group DRO with rate 0 keeps uniform weights, so on the same batches it is the average loss.
    frozen = dataclasses.replace(tiny.GROUP_DRO, hyperparameters={"weight_lr": 0.0})
    program = make()
    schedule = tiny.schedule(20, 10, 20)
    run, average = (
        tiny.train(program.engine.program(method), tmp_path / method.name, schedule)
        for method in (frozen, tiny.AVERAGE)
    )
    np.testing.assert_allclose(run.losses.values, average.losses.values, rtol=1e-4)
