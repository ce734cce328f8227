"""Whole experiments with language models: references, comparison, interruptions and refusals."""

import dataclasses
import functools
import json
import math
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import calls, pictures, tiny, tiny_lm

from ldro_jax import reporting
from ldro_jax.experiments import alone, compare, runs
from ldro_jax.experiments.arguments import Directories
from ldro_jax.problems import LanguageModel
from ldro_jax.records import results
from ldro_jax.reporting import comparison as comparison_lib
from ldro_jax.runtime import preemption
from ldro_jax.training import loop
from ldro_jax.training.meshed import MeshedProgram
from ldro_jax.training.method import Method, grid

NAMES = tiny_lm.corpus().task_names
SCHEDULE = tiny_lm.schedule(10, 5, 5)
MIXING = Method("Mixing", "static_mixing", {"exponent": 0.5}, sampling="weights")
BASELINED = Method("Baselined-DRO", "baselined_dro", {"weight_lr": 0.5})
SWEEP = grid(tiny_lm.GROUP_DRO, {"weight_lr": (0.1, 0.5)})
ALL = [tiny_lm.AVERAGE, MIXING, BASELINED, SWEEP, tiny_lm.LDRO]
LOSSES = {
    split: dict(zip(NAMES, np.linspace(1, low, 4).tolist(), strict=True))
    for split, low in [("validation", 3), ("test", 3.5)]
}
REFERENCES = {"vocabulary": "tiny", "eval_length": 2 * tiny_lm.LENGTH, "losses": LOSSES}


@pytest.fixture
def no_report(monkeypatch):
    """Figures take longer than training here."""
    monkeypatch.setattr(reporting, "write_report", lambda *args, **options: None)


class Trained:
    """Counts the runs that are trained, and stops one of them by Ctrl-C at some step."""

    def __init__(self, patch):
        self.trials, self.steps, self.interrupt = [], [], None
        self._train = loop.train
        patch.setattr(loop, "train", self)

    def __call__(self, program, trials, schedule, *, progress, **options):
        self.trials += trials
        run, at = self.interrupt or (None, None)
        stand_in = tiny.Progress(at=at if run == len(self.trials) else None, action=_ctrl_c)
        try:
            return self._train(program, trials, schedule, progress=stand_in, **options)
        finally:
            self.steps.append(stand_in.steps)

    @property
    def names(self):
        return [(trial.method.name, trial.seed) for trial in self.trials]


def _ctrl_c():
    raise KeyboardInterrupt


@pytest.fixture
def trained(monkeypatch):
    return Trained(monkeypatch)


def problem(data_dir):
    return LanguageModel(tiny_lm.corpus(), tiny_lm.Bigram, length=tiny_lm.LENGTH)


OPTIONS = {
    "optimizer": optax.sgd(0.3, momentum=0.9),
    "batch_size": tiny_lm.BATCH_SIZE,
    "layout": tiny.ONE,
    "schedule": SCHEDULE,
    "problem": problem,
}


def multilingual(directory, **options):
    options = {
        "name": "tiny",
        "description": "Four artificial languages.",
        "methods": [tiny_lm.AVERAGE],
        "seeds": (0,),
        "select_by": "average",
        "config_text": "a = 1",
        "ready": lambda: None,
        **OPTIONS,
    } | options
    return compare.compare(**calls.parts(directory, **options))


def monolingual(output_dir, **options):
    given = calls.parts("", **OPTIONS | options) | {"output_dir": Directories.of(output_dir)}
    del given["report"]
    return alone.monolingual(**given)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """All methods with two seeds, and what was trained for it."""
    directory = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        pictures.leave_out(patch)
        trained = Trained(patch)
        ready = functools.partial(_note, directory, seen := [])
        multilingual(directory, methods=ALL, seeds=(0, 1), references=monolingual, ready=ready)
    # The references are part of what is checked before it is called, and of what is written after.
    assert seen == [[]]
    return directory, trained


def _note(directory, seen):
    seen.append(list(directory.iterdir()))


def final(run):
    (found,) = [e for e in run.evaluations if e.split == "test"]
    return found


def test_every_method_is_trained_with_every_seed_after_the_references(finished):
    directory, trained = finished
    first = [(f"Monolingual {name}", 0) for name in NAMES]
    names = ["Average", "Mixing", "Baselined-DRO", "Group DRO", "Group DRO", "L-DRO"]
    assert trained.names == first + [(name, seed) for seed in (0, 1) for name in names]
    found = results.load_results(directory / "results.json")
    assert [(run.method, run.seed) for run in found.runs] == trained.names[4:]
    assert (found.metric, found.higher_is_better, found.select_by) == (
        "perplexity",
        False,
        "average",
    )
    assert tuple(found.task_names) == NAMES
    assert found.task_sizes == dict(zip(NAMES, tiny_lm.corpus().sizes.tolist(), strict=True))
    for run in found.runs:
        assert run.stopped is None and final(run).metric == "perplexity"
        assert run.losses.steps.tolist() == [5, 10]
        assert (run.interaction is not None) == (run.method == "L-DRO")
    assert len(list((directory / "runs").iterdir())) == 12


def test_methods_get_what_only_the_text_and_the_references_tell(finished):
    directory, trained = finished
    sizes = tiny_lm.corpus().sizes
    found_alone = json.loads((directory / "monolingual" / "references.json").read_text())
    of = {trial.method.name: trial.method.hyperparameters for trial in trained.trials}
    np.testing.assert_allclose(of["Mixing"]["sizes"], sizes / sizes.sum())
    expected = tuple(found_alone["losses"]["validation"][name] for name in NAMES)
    assert of["Baselined-DRO"]["reference_losses"] == expected
    # The record holds what was set.
    found = {run.method: run for run in results.load_results(directory / "results.json").runs}
    assert found["Mixing"].hyperparameters == {"exponent": 0.5, "sampling": "weights"}
    assert found["Baselined-DRO"].hyperparameters == {"weight_lr": 0.5}
    shares = (sizes / sizes.sum()) ** 0.5
    np.testing.assert_allclose(found["Mixing"].weights.values[-1], shares / shares.sum(), rtol=1e-5)


def test_references_are_the_losses_of_the_best_checkpoint_of_each_language(finished):
    directory, _ = finished
    found_alone = json.loads((directory / "monolingual" / "references.json").read_text())
    assert (found_alone["vocabulary"], found_alone["eval_length"]) == ("tiny", 16)
    for name in NAMES:
        file = directory / "monolingual" / "runs" / f"Monolingual-{name}-seed0.json"
        (run,) = results.load_results(file).runs
        *validated, tested = run.evaluations
        best = min(validated, key=lambda e: e.average)
        assert (tested.split, tested.step) == ("test", best.step)
        assert list(tested.per_task) == [name]
        for split, evaluation in [("validation", best), ("test", tested)]:
            assert found_alone["losses"][split][name] == math.log(evaluation.average)
    found = results.load_results(directory / "results.json").references
    for split, losses in found_alone["losses"].items():
        # Records have six digits.
        expected = {name: math.exp(loss) for name, loss in losses.items()}
        assert found[split] == pytest.approx(expected, rel=1e-5)


def test_relative_perplexities_are_those_of_the_record(finished):
    directory, _ = finished
    found = results.load_results(directory / "results.json")
    comparison = comparison_lib.compare(found)
    assert {setting.method for setting in comparison.shown} == {run.method for run in found.runs}
    own = [found.references["test"][name] for name in NAMES]
    for setting in comparison.shown:
        for run in setting.runs:
            values = [final(run).per_task[name] for name in NAMES]
            expected = 100 * (np.asarray(values) - own) / own
            tasks = comparison.relative.tasks[setting].loc[run.seed]
            np.testing.assert_allclose(tasks[list(NAMES)], expected, rtol=1e-12)
            overall = comparison.relative.overall[setting].loc[run.seed]
            assert overall.average == pytest.approx(np.mean(expected))
            assert overall.worst == pytest.approx(np.max(expected))
            # Written out, for one.
            assert expected[0] == pytest.approx(100 * (values[0] / own[0] - 1))


def test_the_report_has_the_methods_and_the_relative_table(finished):
    directory, _ = finished
    text = (directory / "report.html").read_text(encoding="utf-8")
    for words in ("Four artificial languages.", "a = 1", "Monolingual", *NAMES):
        assert words in text
    for method in ("Average", "Mixing", "Baselined-DRO", "Group DRO", "L-DRO"):
        assert method in text
    assert {p.suffix for p in (directory / "figures").iterdir()} >= {".png"}


def test_nothing_is_trained_twice(finished, trained, no_report):
    directory, _ = finished
    before = json.loads((directory / "results.json").read_text())
    multilingual(directory, methods=ALL, seeds=(0, 1), references=monolingual)
    assert trained.trials == []
    assert json.loads((directory / "results.json").read_text()) == before


def everything(found):
    """All of an experiment's runs but what the clock says."""
    return [
        results.run_to_record(dataclasses.replace(r, seconds_per_step=None)) for r in found.runs
    ]


def test_an_interrupted_experiment_does_only_what_is_missing(
    finished, tmp_path, trained, no_report
):
    options = {"methods": [tiny_lm.AVERAGE, BASELINED], "seeds": (0, 1), "references": monolingual}
    # In the third language, and later in the third run, both after the checkpoint of step 5.
    for interrupt in [(3, 7), (2 + 3, 7)]:
        trained.interrupt = interrupt
        trained.trials.clear()
        with pytest.raises(KeyboardInterrupt):
            multilingual(tmp_path, **options)
        assert not (tmp_path / "results.json").exists()
    # The second time: two languages were there, two were left, and then came the runs.
    assert trained.names[0] == (f"Monolingual {NAMES[2]}", 0)
    assert trained.names[2:] == [("Average", 0), ("Baselined-DRO", 0), ("Average", 1)]
    assert trained.steps[3] == [5] + [1] * 5
    trained.interrupt = None
    trained.trials.clear()
    found = multilingual(tmp_path, **options)
    assert trained.names == [("Average", 1), ("Baselined-DRO", 1)]
    assert trained.steps[-2:] == [[5] + [1] * 5, [1] * 10]
    # And all is as it would have been, which the longer experiment tells.
    directory, _ = finished
    whole = results.load_results(directory / "results.json")
    chosen = [run for run in whole.runs if run.method in ("Average", "Baselined-DRO")]
    assert everything(found) == everything(dataclasses.replace(whole, runs=chosen))
    saved = results.load_results(tmp_path / "results.json")
    assert saved.references == whole.references


def test_a_file_of_references_is_there_as_a_whole_or_not_at_all(tmp_path, trained, monkeypatch):
    found = monolingual(tmp_path)
    file = tmp_path / "references.json"
    written = json.loads(file.read_text())
    assert written.pop("checksum") and written == found and len(trained.trials) == 4
    file.unlink()

    def killed(*paths):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        # What was written by then is in another file.
        patch.setattr(os, "replace", killed)
        monolingual(tmp_path)
    assert not file.exists()
    # What is made from the records of the models is the same as what was made with them.
    assert monolingual(tmp_path) == found
    written = json.loads(file.read_text())
    assert written.pop("checksum") and written == found and len(trained.trials) == 4


def _write(directory, record):
    file = directory / "my references.json"
    file.write_text(record if isinstance(record, str) else json.dumps(record))
    return str(file)


def test_references_may_come_from_a_file_with_more_languages(tmp_path, trained, no_report):
    losses = {split: {"another": 9.0} | values for split, values in LOSSES.items()}
    file = _write(tmp_path, REFERENCES | {"losses": losses})
    found = multilingual(tmp_path, methods=[BASELINED], references=file)
    (trial,) = trained.trials
    expected = tuple(LOSSES["validation"][name] for name in NAMES)
    assert trial.method.hyperparameters["reference_losses"] == expected
    assert found.references["test"] == pytest.approx(
        {name: math.exp(LOSSES["test"][name]) for name in NAMES}
    )


def test_reference_losses_that_are_given_are_used(tmp_path, trained, no_report):
    given = {"weight_lr": 0.5, "reference_losses": (1.0, 2.0, 3.0, 4.0)}
    method = dataclasses.replace(BASELINED, hyperparameters=given)
    found = multilingual(tmp_path, methods=[method])
    assert trained.trials[0].method == method
    assert found.references == {} and found.runs[0].hyperparameters == given
    # They are no references of the experiment.
    assert comparison_lib.compare(found).relative is None


def without(language):
    losses = {s: {n: x for n, x in v.items() if n != language} for s, v in LOSSES.items()}
    return REFERENCES | {"losses": losses}


@pytest.mark.parametrize(
    ("record", "error", "message"),
    [
        (without(NAMES[1]), ValueError, "has no losses for spread3, but for spread1, spread16, "),
        (
            REFERENCES | {"losses": LOSSES | {"test": {}}},
            ValueError,
            f"has no losses for {', '.join(NAMES)}, but for",
        ),
        (REFERENCES | {"vocabulary": "b"}, ValueError, "another vocabulary, b, than .*, tiny,"),
        (REFERENCES | {"eval_length": 8}, ValueError, "another eval_length, 8, than .*, 16,"),
        ('{"vocabulary": "ti', ValueError, "can't be read .*Expected JSON in.*Make it again"),
        ("[1]", ValueError, "can't be read .*found format 'list'"),
        ({"losses": {}}, ValueError, "can't be read .*KeyError: 'validation'"),
        (None, FileNotFoundError, "There is no file .*my references.json.*monolingual writes"),
    ],
    ids=["language", "split", "vocabulary", "eval_length", "cut off", "list", "empty", "missing"],
)
def test_references_that_do_not_fit_are_refused_before_training(
    record, error, message, tmp_path, trained
):
    file = str(tmp_path / "my references.json") if record is None else _write(tmp_path, record)
    with pytest.raises(error, match=message):
        multilingual(tmp_path, methods=[BASELINED], references=file)
    assert trained.trials == []


def test_the_models_of_one_language_are_checked_before_anything_is_written(tmp_path, trained):
    def ready():
        raise AssertionError("It isn't.")

    for options, message in [
        ({"batch_size": 0}, "size must be a positive integer, but it is 0"),
        ({"seed": -1}, "seed must be an integer from 0"),
        ({"problem": lambda data_dir: 3}, "problem must be a Problem or a function of data_dir"),
        ({"problem": lambda data_dir: tiny.problem()}, "makes a LanguageModel"),
    ]:
        references = functools.partial(monolingual, **options)
        with pytest.raises(ValueError, match=message):
            multilingual(tmp_path, references=references, ready=ready)
    assert trained.trials == [] and list(tmp_path.iterdir()) == []


def _no_references(**options):
    raise AssertionError("Nothing must be trained for an experiment that can't run.")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"methods": [BASELINED], "references": None},
            "references must be a references.json, or @monolingual",
        ),
        ({"references": 3}, "references must be a text in quotes"),
        ({"references": lambda: 3}, "references must be a function of output_dir"),
        ({"schedule": None}, "schedule must be a Schedule"),
        ({"methods": []}, "methods must be a list of methods and grids"),
        ({"methods": [tiny_lm.AVERAGE] * 2}, "their own name"),
        ({"seeds": 3}, "seeds must be a list of seeds"),
        (
            {"methods": [tiny_lm.AVERAGE, Method("L", "lookahead_online", {"lookahead_lr": 1})]},
            r"methods: 'L' lacks weight_lr in its hyperparameters, {'lookahead_lr': 1}",
        ),
        (
            {"methods": [Method("S", "static_mixing", {"sizes": (1.0, 2.0)})]},
            r"methods: 'S' can't be trained\. sizes must hold one number for each of the 4 tasks",
        ),
    ],
)
def test_experiments_that_cannot_run_are_refused_before_references_are_made(
    options, message, tmp_path
):
    with pytest.raises(ValueError, match=message):
        multilingual(tmp_path, **{"references": _no_references} | options)


def _broken_start(self, seed, init=MeshedProgram.init):
    state = init(self, seed)
    if seed == 1:
        state = state._replace(params=jax.tree.map(lambda p: p * jnp.nan, state.params))
    return state


def test_a_run_that_never_recovers_does_not_stop_the_others(tmp_path, no_report, monkeypatch):
    monkeypatch.setattr(MeshedProgram, "init", _broken_start)
    with pytest.raises(runs.RunsStoppedError, match="Average, seed 1: stopped at step 5"):
        multilingual(
            tmp_path, seeds=(1, 0), schedule=tiny_lm.schedule(10, 5, 5, max_nonfinite_steps=5)
        )
    found = results.load_results(tmp_path / "results.json")
    assert [(r.seed, bool(r.stopped), r.evaluations[-1].split) for r in found.runs] == [
        (1, True, "validation"),
        (0, False, "test"),
    ]


def test_a_model_of_one_language_that_never_recovers_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(MeshedProgram, "init", _broken_start)
    with pytest.raises(runs.RunsStoppedError, match=f"Monolingual {NAMES[0]}: stopped at step 10"):
        multilingual(tmp_path, references=functools.partial(monolingual, seed=1))
    assert not (tmp_path / "monolingual" / "references.json").exists()


def test_an_experiment_that_is_asked_to_stop_begins_no_other_run(
    tmp_path, trained, no_report, monkeypatch
):
    evaluate = MeshedProgram.evaluate
    asked = []

    def evaluate_and_ask(self, params, split, *rest):
        if split == "test" and not asked:
            asked.append(True)
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, params, split, *rest)

    monkeypatch.setattr(MeshedProgram, "evaluate", evaluate_and_ask)
    with pytest.raises(preemption.PreemptedError, match="Average, seed 0: stopped, saved"):
        multilingual(tmp_path, seeds=(0, 1))
    assert trained.names == [("Average", 0)]
    multilingual(tmp_path, seeds=(0, 1))
    assert trained.steps[1] == [10] and len(trained.steps[2]) == 10
