"""The test of the best checkpoint, on either engine, and what is kept of a run that fails."""

import contextlib
import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import tiny, tiny_lm
from jax import flatten_util

from ldro_jax.records import checkpoints, results
from ldro_jax.training import progress as progress_lib
from ldro_jax.training.engine import Trial


def unstable_sgd(good, bad):
    """A good learning rate for 20 steps, one that unlearns for 10, and then NaN."""

    def rate(count):
        return jnp.where(count < 20, good, jnp.where(count < 30, bad, jnp.nan))

    return optax.sgd(rate)


@pytest.fixture(scope="module", params=["images", "text"])
def unstable(request):
    """Accuracy, which should be high, on one engine, and perplexity on the other."""
    if request.param == "images":
        return tiny.stacked(tiny.GROUP_DRO, optimizer=unstable_sgd(0.1, -0.1))
    return tiny_lm.make_program(tiny_lm.GROUP_DRO, optimizer=unstable_sgd(1.0, -0.5))


def schedule(train_steps=30, eval_interval=10, checkpoint_interval=10, **options):
    return tiny.schedule(train_steps, eval_interval, checkpoint_interval, test="best", **options)


def same(run, other):
    runs = [dataclasses.replace(found, seconds_per_step=None) for found in (run, other)]
    assert results.run_to_record(runs[0]) == results.run_to_record(runs[1])


def saved_steps(directory):
    return sorted(int(p.name) for p in (directory / "checkpoints").glob("[0-9]*"))


def test_the_test_is_of_the_best_checkpoint(unstable, tmp_path):
    run = tiny.train(unstable, tmp_path / "long", schedule())
    validated = [e for e in run.evaluations if e.split == "validation"]
    sign = 1 if unstable.problem.metrics[0].higher_is_better else -1
    scores = [sign * e.average for e in validated]
    assert scores[1] > scores[0] and scores[1] > scores[2] + 0.05
    tested = run.evaluations[-1]
    assert (tested.split, tested.step) == ("test", 20)
    assert len(run.evaluations) == 4
    # The same as that of a run which ends there, whose last state is its best.
    short = tiny.train(unstable, tmp_path / "short", schedule(20))
    assert short.evaluations[-1] == tested
    # And as that of the state itself.
    session = unstable.start([Trial(unstable.method, 0)])
    for step in (10, 20):
        session.advance(step, lambda step: False, tiny.Progress())
        session.evaluated()
    values = unstable.evaluate(session.state(0).params, "test")[tested.metric]
    np.testing.assert_allclose(list(tested.per_task.values()), values, rtol=1e-6)


@pytest.mark.heavy  # as in test_loop.py, and of the best in test_checkpoints.py
def test_a_damaged_best_checkpoint_costs_time_but_changes_nothing(unstable, tmp_path, caplog):
    expected = tiny.train(unstable, tmp_path, schedule())
    assert expected.evaluations[-1].step == 20 and saved_steps(tmp_path) == [20, 30]
    assert (tmp_path / "checkpoints" / "copy-20").is_dir()
    for names, start in ((["20"], 30), (["20", "copy-20"], 0)):
        for name in names:
            for path in (tmp_path / "checkpoints" / name / "state").rglob("*"):
                if path.is_file():
                    path.write_bytes(b"damaged")
        progress = tiny.Progress()
        same(tiny.train(unstable, tmp_path, schedule(), progress=progress), expected)
        assert bool(progress.lines) == bool(start)
    # The newest is whole, but what it calls the best is gone; an older one must not be tested.
    assert "step 30 can't be used: the best one of its run, of step 20" in caplog.text


def test_a_checkpoint_comes_with_every_improvement_and_else_at_its_interval(unstable, tmp_path):
    tiny.train(unstable, tmp_path / "rarely", schedule(30, 10, 30))
    # At 30 nothing improves any more, but the last step is kept.
    assert saved_steps(tmp_path / "rarely") == [20, 30]
    tiny.train(unstable, tmp_path / "often", schedule(30, 10, 10))
    assert saved_steps(tmp_path / "often") == [20, 30]


def test_losses_that_stay_nan_stop_a_run_and_what_was_good_is_kept(unstable, tmp_path, caplog):
    long = schedule(80, max_nonfinite_steps=5)
    run = tiny.train(unstable, tmp_path, long)
    # The step 31 makes the parameters NaN, so the losses are from the next one on.
    assert run.stopped.startswith("stopped at step 40: for the last 9 steps")
    names = unstable.problem.task_names
    assert run.nonfinite_losses == dict.fromkeys(names, 9)
    assert run.stopped in caplog.text
    assert [(e.step, e.split) for e in run.evaluations] == [
        (step, "validation") for step in (10, 20, 30, 40)
    ]
    # Weights and losses are the last ones that were finite.
    assert np.isfinite(run.losses.values).all() and np.isfinite(run.weights.values).all()
    assert saved_steps(tmp_path) == [20, 30, 40]
    trials = [Trial(unstable.method, 0)]
    session = unstable.start(trials)
    identity = progress_lib.identity(unstable, session, long, trials)
    saved = checkpoints.Checkpoints(tmp_path / "checkpoints", identity=identity)
    with contextlib.closing(saved):
        states, *_ = saved.restore(session.states)
        assert session.state(0, states).step == 40
        best = session.state(0, saved.restore_best(session.states))
    assert best.step == 20
    assert np.isfinite(flatten_util.ravel_pytree(best.params)[0]).all()
    # Started again it is over at once, with the same record.
    progress = tiny.Progress()
    same(tiny.train(unstable, tmp_path, long, progress=progress), run)
    assert progress.lines[0].endswith("resumed at step 40.")


@pytest.mark.parametrize("make", [tiny.stacked, tiny.meshed], ids=["stacked", "meshed"])
def test_without_one_finite_value_the_test_is_of_the_last_step(make, tmp_path, caplog):
    nowhere = tiny.Distances(values=lambda x: {"distance": x * jnp.nan})
    run = tiny.train(make(a_problem=nowhere), tmp_path, schedule(20))
    assert "no value on validation was finite, so the test is of the last step" in caplog.text
    assert [(e.step, e.split) for e in run.evaluations[-2:]] == [(20, "validation"), (20, "test")]
