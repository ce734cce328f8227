"""Experiments with language models: every method with every seed on the same languages.

Perplexities of different languages can't be compared, so each is also given relative to a model of
that language alone. :func:`monolingual` trains those models and writes their losses, which
:func:`multilingual` reads for its table and for Baselined-DRO.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tqdm
from absl import logging

from ldro_jax import checks, paths, weighting
from ldro_jax.records import files, provenance, results
from ldro_jax.reporting import relative
from ldro_jax.tasks import sequences
from ldro_jax.training import experiment, lm_loop, processes
from ldro_jax.training import identity as identity_lib
from ldro_jax.training import references as references_lib
from ldro_jax.training import runs as runs_lib
from ldro_jax.training.lm_program import LanguageModelProgram
from ldro_jax.training.method import Method
from ldro_jax.training.program import Trial
from ldro_jax.training.schedule import Schedule

_MONOLINGUAL = Method("Monolingual", "average")


def multilingual(
    *,
    output_dir: pathlib.Path,
    data_dir: str | None,
    config_text: str,
    name: str,
    description: str,
    load_data: Callable[..., sequences.Corpus],
    make_program: Callable[..., LanguageModelProgram],
    methods: Sequence[Method | Sequence[Method]],
    seeds: Sequence[int],
    schedule: Schedule,
    references: str | Callable[..., dict[str, Any]] | None = None,
    max_validation_tokens: int | None = None,
    max_test_tokens: int | None = 5_000_000,
    ready: Callable[[], None] | None = None,
) -> results.Results:
    """Trains a language model on many languages with several methods, and compares them.

    A run that is finished is kept in ``runs/``, and one that was interrupted goes on from its
    newest checkpoint, so the same command after an interruption ends with the same numbers.

    Args:
      output_dir: where everything goes; it exists.
      data_dir: passed to ``load_data``.
      config_text: the resolved configuration, for the report.
      name: short name of the experiment.
      description: a paragraph for the report.
      load_data: ``(data_dir=...) -> Corpus``.
      make_program: ``(method, corpus) -> LanguageModelProgram``.
      methods: what to compare. One that takes ``sizes`` gets the numbers of training tokens, and
        one that takes ``reference_losses`` those of the references, where they aren't given.
      seeds: a run for each.
      schedule: lengths and intervals.
      references: losses of models of one language each: a ``references.json``, or a function of
        ``output_dir``, ``data_dir`` and ``ready`` that makes it first, such as :func:`monolingual`
        with its other arguments bound. Without them there are no relative perplexities.
      max_validation_tokens: take only so many tokens of each language for validation.
      max_test_tokens: the same for the test at the end.
      ready: called once, when all is checked and before anything is written.

    Returns:
      The record, as it is in ``results.json``.

    Raises:
      RunsStoppedError: at the end, after the report, if some runs never recovered from losses that
        are not finite.
      ValueError: if there is nothing to run, an argument is not what it must be, two runs would
        have the same name, or the references are those of other languages or another vocabulary.
    """
    runs_lib.check_description(name, description, schedule)
    limits = {"max_validation_tokens": max_validation_tokens, "max_test_tokens": max_test_tokens}
    _check_functions(load_data, make_program, limits)
    settings, runs_of = runs_lib.list_runs(methods, seeds, from_data=weighting.FROM_DATA)
    if callable(references):
        arguments = ("output_dir", "data_dir", "ready")
        checks.function("references", references, *arguments, example="@monolingual")
    elif references is not None:
        checks.text("references", references)
    elif any(map(_needs_references, settings)):
        raise ValueError(
            "references must be a references.json, or @monolingual which makes one, for a method "
            "that needs reference_losses and isn't given them, but it is None."
        )
    corpus = _load(load_data, data_dir)
    sizes = corpus.sizes / corpus.sizes.sum()
    first = _make(make_program, corpus)
    # One compiled program for all that differ in rates and seeds alone. Those with references are
    # made again when these are known.
    unknown = dict.fromkeys(corpus.task_names, 0.0)
    programs = runs_lib.programs_of([_resolved(m, sizes, unknown) for m in settings], first)
    if corpus.stream is None:
        sequences.warn_of_repeats(corpus, first.length, first.batch_size / corpus.num_tasks)
    alone = None
    if callable(references):
        folder = output_dir / "monolingual"
        # It calls ready, since its own arguments are to be checked before that as well.
        references(output_dir=folder, data_dir=data_dir, ready=ready)
        alone = references_lib.read_for(folder / references_lib.FILE, corpus, first)
    else:
        if references is not None:
            file = paths.make(references).expanduser()
            alone = references_lib.read_for(file, corpus, first)
        if ready is not None:
            ready()
    losses = {n: alone["losses"]["validation"][n] for n in corpus.task_names} if alone else unknown

    def record(runs):
        return results.Results(
            experiment=name,
            description=description,
            task_names=list(corpus.task_names),
            metric=lm_loop.METRIC,
            higher_is_better=False,
            runs=runs,
            versions=provenance.versions(),
            device=provenance.device(),
            references=references_lib.perplexities(alone, corpus.task_names),
            task_sizes=dict(zip(corpus.task_names, corpus.sizes.tolist(), strict=True)),
            select_by="average",
            data=corpus.identity,
        )

    finished = {}
    for run_name, trial in runs_of.items():
        resolved = Trial(_resolved(trial.method, sizes, losses), trial.seed)
        file = output_dir / "runs" / f"{run_name}.json"
        run = runs_lib.finished_run(file, trial, schedule.train_steps, corpus.identity)
        if run is None:
            key = resolved.method.program()
            if key not in programs:
                programs[key] = first.for_method(resolved.method)
            run = _train(
                programs[key],
                resolved,
                schedule,
                output_dir,
                run_name,
                f"{len(finished)}/{len(runs_of)}",
                **limits,
            )
            run = dataclasses.replace(run, hyperparameters=trial.method.settings())
            if processes.is_first():
                results.save_results(record([run]), file)
        finished[run_name] = run
    found = record([finished[n] for n in runs_of])
    if not processes.is_first():
        return found
    if text := relative.table1_text(found):
        print(text)
    return experiment.finish(found, output_dir, config_text)


def monolingual(
    *,
    output_dir: pathlib.Path,
    data_dir: str | None,
    load_data: Callable[..., sequences.Corpus],
    make_program: Callable[..., LanguageModelProgram],
    schedule: Schedule,
    config_text: str = "",
    seed: int = 0,
    max_validation_tokens: int | None = None,
    max_test_tokens: int | None = 5_000_000,
    ready: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Trains one model for each language, and writes their losses to ``references.json``.

    Models of languages that are finished are kept, and the one that was interrupted goes on from
    its newest checkpoint.

    Args:
      output_dir: where everything goes; it is made if it doesn't exist.
      data_dir: passed to ``load_data``.
      load_data: ``(data_dir=...) -> Corpus``.
      make_program: ``(method, corpus) -> LanguageModelProgram``; compiled once for all languages.
      schedule: lengths and intervals of each model.
      config_text: not used; every experiment gets it.
      seed: of all models.
      max_validation_tokens: take only so many tokens of each language for validation.
      max_test_tokens: the same for the test.
      ready: called once, when all is checked and before anything is written.

    Returns:
      What ``references.json`` holds: ``vocabulary``, ``eval_length``, and ``losses``, from split
      and language to nats a token, those of the best checkpoint of each.

    Raises:
      RunsStoppedError: if the losses of a model never became finite again.
      ValueError: if an argument is not what it must be, or a ``references.json`` that is there
        can't be read.
    """
    del config_text
    checks.instance("schedule", schedule, Schedule, "@Schedule()")
    limits = {"max_validation_tokens": max_validation_tokens, "max_test_tokens": max_test_tokens}
    _check_functions(load_data, make_program, limits)
    seed = checks.seed("seed", seed)
    corpus = _load(load_data, data_dir)
    program = _make(make_program, corpus.only(0)).for_method(_MONOLINGUAL)
    program.check()
    if ready is not None:
        ready()
    if (found := _finished_references(output_dir / references_lib.FILE, corpus)) is not None:
        return found
    output_dir.mkdir(parents=True, exist_ok=True)
    losses: dict[str, dict[str, float]] = {"validation": {}, "test": {}}
    for index, language in enumerate(corpus.task_names):
        run_name = f"Monolingual-{language}-seed{seed}"
        file = output_dir / "runs" / f"{run_name}.json"
        alone = corpus.only(index)
        trial = Trial(dataclasses.replace(_MONOLINGUAL, name=f"Monolingual {language}"), seed)
        run = runs_lib.finished_run(file, trial, schedule.train_steps, alone.identity)
        if run is None:
            run = _train(
                program.for_corpus(alone),
                trial,
                schedule,
                output_dir,
                run_name,
                f"{index}/{corpus.num_tasks}",
                **limits,
            )
            if run.stopped is not None:
                raise experiment.RunsStoppedError(f"Monolingual {language}: {run.stopped}")
            record = results.Results(
                f"monolingual {language}",
                [language],
                lm_loop.METRIC,
                False,
                [run],
                data=alone.identity,
            )
            if processes.is_first():
                results.save_results(record, file)
            processes.wait_for_all(run_name)
            # Records are rounded. The references are those of the record, now and after a restart.
            run = results.load_results(file).runs[0]
        tested = run.evaluations[-1]
        best = [e for e in run.evaluations if e.split == "validation" and e.step == tested.step]
        for evaluation in (*best, tested):
            losses[evaluation.split][language] = math.log(evaluation.average)
    found = {
        "vocabulary": corpus.vocabulary,
        "eval_length": program.eval_length,
        "losses": losses,
        "data": corpus.identity,
    }
    if processes.is_first():
        files.write_json(found, output_dir / references_lib.FILE)
    processes.wait_for_all("references")
    print(f"The losses of one model for each language are in {output_dir / references_lib.FILE}.")
    return found


def _finished_references(file: pathlib.Path, corpus: sequences.Corpus) -> dict[str, Any] | None:
    """What an earlier start wrote; what can't be read is made again from the models' records."""
    if not file.exists():
        return None
    try:
        found = references_lib.read(file)
    except FileNotFoundError:  # another process has just moved it
        return None
    except ValueError as error:
        if processes.is_first():
            logging.warning("%s It is now %s.", error, paths.move_aside(file))
        return None
    identity_lib.check(str(file), found.get("data", {}), corpus.identity)
    return found


def _train(program, trial, schedule, output_dir, run_name, done, **options) -> results.Run:
    label = f"[{done}] {trial.method.name}, seed {trial.seed}"
    with tqdm.tqdm(total=schedule.train_steps, desc=label, unit="step") as progress:
        return lm_loop.train(
            program,
            trial,
            schedule,
            checkpoint_dir=output_dir / "checkpoints" / run_name,
            tensorboard_dir=output_dir / "tensorboard" / run_name,
            progress=progress,
            **options,
        )


def _needs_references(method: Method) -> bool:
    return "reference_losses" in weighting.from_data(method.weighting, method.hyperparameters)


def _resolved(method: Method, sizes: np.ndarray, losses: Mapping[str, float]) -> Method:
    """The method with what only the text and the references can tell."""
    known = {"sizes": tuple(sizes.tolist()), "reference_losses": tuple(losses.values())}
    lacking = weighting.from_data(method.weighting, method.hyperparameters)
    given = {**method.hyperparameters, **{name: known[name] for name in lacking}}
    return dataclasses.replace(method, hyperparameters=given)


def _check_functions(load_data, make_program, limits: Mapping[str, Any]) -> None:
    checks.function("load_data", load_data, "data_dir", example="@text.load")
    checks.function("make_program", make_program, example="@LanguageModelProgram")
    for name, value in limits.items():
        if value is not None:
            checks.integer(name, value)


def _load(load_data, data_dir) -> sequences.Corpus:
    corpus = load_data(data_dir=data_dir)
    expected = "a function that gives a Corpus, such as @text.load"
    checks.require(isinstance(corpus, sequences.Corpus), "load_data", expected, load_data)
    return corpus


def _make(make_program, corpus) -> LanguageModelProgram:
    program = make_program(runs_lib.AVERAGE, corpus)
    expected = "a function that gives a LanguageModelProgram, such as @LanguageModelProgram"
    fits = isinstance(program, LanguageModelProgram)
    checks.require(fits, "make_program", expected, make_program)
    return program
