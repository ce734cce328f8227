"""Runs that end when validation gets no better: alone, together, killed; a look beforehand."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from faults import harness
from helpers import tiny

import ldro_jax
from ldro_jax.records import identity, results
from ldro_jax.training.progress import Best

PATIENCE = 2


def problem(**options):
    """Gets better until float32 has no better number, at another step with each seed."""
    return tiny.Distances(values=lambda x: {"distance": x**2}, **options)


def schedule(train_steps=80, **options):
    return tiny.schedule(train_steps, 5, 10, **{"patience": PATIENCE, **options})


def program(make):
    return make(tiny.AVERAGE, problem(), optimizer=optax.sgd(0.2))


def experiment(directory, seeds=(0, 1, 2), **options):
    given = {"problem": problem(), "optimizer": optax.sgd(0.2), "schedule": schedule()}
    return tiny.run(directory, seeds=seeds, **given | options)


def end_by_hand(run):
    """The step at which a loop over the scores of a whole run would end."""
    best, since = -math.inf, 0
    for e in (e for e in run.evaluations if e.split == "validation"):
        # As the trainer has it, in float32, in which it stands still earlier.
        score = -np.mean(np.float32([*e.per_task.values()]))
        best, since = (score, 0) if score > best else (best, since + 1)
        if since == PATIENCE:
            return e.step
    raise AssertionError("it never ends")


def series(run):
    """What is recorded, by step."""
    return {
        name: dict(zip(s.steps.tolist(), s.values.tolist(), strict=True))
        for name in ("weights", "losses")
        if (s := getattr(run, name))
    }


@pytest.mark.parametrize("make", [tiny.stacked, tiny.meshed], ids=["stacked", "meshed"])
def test_a_run_ends_where_a_loop_by_hand_does(make, tmp_path):
    whole = tiny.train(program(make), tmp_path / "whole", schedule(patience=None), seed=1)
    assert whole.early_stop is None and whole.evaluations[-1].step == 80
    run = tiny.train(program(make), tmp_path / "ended", schedule(), seed=1)
    assert run.early_stop == end_by_hand(whole) == 25 and run.stopped is None
    assert run.evaluations == [e for e in whole.evaluations if e.step <= 25]
    assert series(run) == {
        name: {step: values for step, values in by_step.items() if step <= 25}
        for name, by_step in series(whole).items()
    }
    assert "ended at step 25" in repr(run)
    # Started again it has ended, and takes no step.
    progress = tiny.Progress()
    again = tiny.train(program(make), tmp_path / "ended", schedule(), seed=1, progress=progress)
    assert progress.steps == [25]
    again, run = (dataclasses.replace(r, seconds_per_step=None) for r in (again, run))
    assert results.run_to_record(again) == results.run_to_record(run)


@pytest.mark.parametrize("together", ["map", pytest.param("vmap", marks=pytest.mark.heavy)])
def test_a_group_has_the_numbers_that_its_runs_have_alone(together, tmp_path, no_report):
    made = tiny.stacked(tiny.AVERAGE, problem(), optimizer=optax.sgd(0.2), together=together)
    trials = [tiny.Trial(made.method, seed) for seed in (1, 0, 2)]
    last = schedule(test="last")
    group = tiny.train_together(made, tmp_path / "group", trials, last)
    for run in group:
        alone = tiny.train(made, tmp_path / str(run.seed), last, seed=run.seed)
        assert run.early_stop == alone.early_stop == {0: 30, 1: 25, 2: 25}[run.seed]
        # The test is of the state in which it has ended.
        assert run.evaluations == alone.evaluations
        assert (run.evaluations[-1].split, run.evaluations[-1].step) == ("test", run.early_stop)


@pytest.mark.heavy  # as in test_together.py
def test_a_group_that_is_killed_after_one_of_its_runs_has_ended_ends_the_same(
    tmp_path, no_report, monkeypatch
):
    whole = experiment(tmp_path / "whole", runs_together=3)
    assert [r.early_stop for r in whole.runs] == [30, 25, 25]
    train = tiny.loop.train

    def killed(*arguments, progress, **options):
        return train(*arguments, progress=tiny.Progress(stop_after=6), **options)

    with monkeypatch.context() as patch:
        # In the evaluation of step 30, with the checkpoint of step 25 or before.
        patch.setattr(tiny.loop, "train", killed)
        with pytest.raises(KeyboardInterrupt):
            experiment(tmp_path / "killed", runs_together=3)
    experiment(tmp_path / "killed", runs_together=3)
    assert harness.outcome(tmp_path / "killed") == harness.outcome(tmp_path / "whole")
    experiment(tmp_path / "alone", runs_together=1)
    assert harness.record(tmp_path / "alone") == harness.record(tmp_path / "whole")
    for seed in (0, 1, 2):
        asked = {"seed": seed, "step": "last"}
        np.testing.assert_array_equal(
            *(ldro_jax.load(tmp_path / name, **asked) for name in ("whole", "alone"))
        )


def test_a_longer_schedule_leaves_what_has_ended(tmp_path, no_report, trained):
    first = experiment(tmp_path, seeds=(1,))
    trained.steps.clear()
    longer = experiment(tmp_path, seeds=(1,), schedule=schedule(160))
    assert trained.steps == [[25]]  # where its checkpoint is
    assert longer.runs[0].early_stop == 25 and longer.runs[0].num_steps == 160
    steps = ([e.step for e in record.runs[0].evaluations] for record in (longer, first))
    assert next(steps) == next(steps)
    with pytest.raises(identity.OtherRunError, match="another patience: it was 2, now it is 3"):
        experiment(tmp_path, seeds=(1,), schedule=schedule(160, patience=3))


@pytest.mark.heavy  # as in faults/test_changes.py
def test_another_metric_of_a_run_that_has_ended_is_measured(tmp_path, no_report):
    class Apart(tiny.Distances):
        def evaluation_digests(self, params):
            return {metric.name: "as ever" for metric in self.metrics}

    before = Apart(values=lambda x: {"distance": x**2})
    experiment(tmp_path, seeds=(0, 1), problem=before, runs_together=2)
    more = Apart(values=lambda x: {"distance": x**2, "far": x > 1.6})
    more.metrics = (*more.metrics, ldro_jax.problems.Metric("far", False))
    record = experiment(tmp_path, seeds=(0, 1), problem=more)
    steps = [[e.step for e in r.evaluations if e.metric == "far"] for r in record.runs]
    assert steps == [[30, 30], [25, 25]]


@pytest.mark.heavy  # as in training/test_best.py
def test_the_best_is_tested_where_scores_fall(tmp_path):
    def rate(count):
        return jnp.where(count < 10, 0.2, -0.2)

    made = tiny.stacked(tiny.AVERAGE, problem(), optimizer=optax.sgd(rate))
    run = tiny.train(made, tmp_path, schedule(test="best"))
    assert run.early_stop == 20 and run.evaluations[-1].step == 10


def test_before_training_a_run_is_evaluated_where_that_is_asked_for(tmp_path):
    found = {
        name: tiny.train(
            program(tiny.stacked), tmp_path / name, schedule(10, patience=None, **options)
        )
        for name, options in {"not": {}, "asked": {"eval_at_start": True}}.items()
    }
    first, rest = found["asked"].evaluations[:2], found["asked"].evaluations[2:]
    assert [(e.step, e.split) for e in first] == [(0, "validation"), (0, "test")]
    assert rest == found["not"].evaluations
    made = program(tiny.stacked)
    values = made.evaluate(made.init(0).params, "validation")["distance"]
    np.testing.assert_allclose(list(first[0].per_task.values()), values)
    assert series(found["asked"]) == series(found["not"])
    events = list((tmp_path / "asked" / "tensorboard" / "0").iterdir())
    assert events and events[0].stat().st_size > 0


def test_of_scores_those_that_are_no_numbers_are_never_better():
    best = Best().including(math.nan, 1).including(math.inf, 2)
    assert best == Best(-math.inf, None, 2)
    assert best.including(0.5, 3).including(0.5, 4) == Best(0.5, 3, 1)


def test_patience_needs_validation(tmp_path):
    class Tested(tiny.Distances):
        splits = ("test",)

    with pytest.raises(ValueError, match="patience must be None for a problem without the split"):
        experiment(tmp_path, problem=Tested())
