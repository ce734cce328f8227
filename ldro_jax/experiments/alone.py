"""One language model for each language: what models of many languages are compared with.

Perplexities of different languages can't be compared, so each is also given relative to a model of
that language alone. :func:`monolingual` trains those models and writes their losses, which
:func:`~ldro_jax.experiments.compare.compare` reads for its table and for Baselined-DRO.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import optax

from ldro_jax.experiments import compare as compare_lib
from ldro_jax.experiments import names
from ldro_jax.experiments import references as references_lib
from ldro_jax.experiments import runs as runs_lib
from ldro_jax.experiments.arguments import Directories, Report
from ldro_jax.problems.language_models import LanguageModel
from ldro_jax.records import files, json_types, results
from ldro_jax.records import identity as identity_lib
from ldro_jax.runtime import checks, paths, printing, processes
from ldro_jax.training import fingerprint
from ldro_jax.training.batches import Batches
from ldro_jax.training.engine import Trial
from ldro_jax.training.meshed import MeshedEngine
from ldro_jax.training.method import Method
from ldro_jax.training.schedule import Schedule

_ALONE = Method("Monolingual", "average")


def monolingual(
    *,
    output_dir: Directories,
    problem: Callable[..., LanguageModel],
    optimizer: optax.GradientTransformation,
    batches: Batches,
    schedule: Schedule,
    seed: int = 0,
) -> dict[str, Any]:
    """Trains one model for each language, and writes their losses to ``references.json``.

    Models of languages that are finished are kept, and the one that was interrupted goes on from
    its newest checkpoint.

    Args:
      output_dir: where everything goes, which is made if it doesn't exist, and what is passed to
        ``problem``.
      problem: ``(data_dir=...) -> LanguageModel`` of all languages.
      optimizer: of each model.
      batches: how they are drawn, and spread over devices.
      schedule: lengths and intervals of each model; the best checkpoint of each is tested.
      seed: of all models.

    Returns:
      What ``references.json`` holds: ``vocabulary``, ``eval_length``, and ``losses``, from split
      and language to nats a token, those of the best checkpoint of each.

    Raises:
      OtherRunError: if a ``references.json`` or a model that is there was made with something else.
      RunsStoppedError: if the losses of a model never became finite again.
      ValueError: if an argument is not what it must be.
    """
    where = Directories.of(output_dir)
    compare_lib.check_parts(schedule=schedule, batches=batches)
    schedule = dataclasses.replace(schedule, test="best")
    seed = checks.seed("seed", seed)
    model: Any = compare_lib.make_problem(problem, where.data, schedule)
    expected = "a function of data_dir that makes a LanguageModel, such as @language_model"
    checks.require(isinstance(model, LanguageModel), "problem", expected, problem)
    first = model.with_corpus(model.corpus.only(0))
    program = MeshedEngine(first, optimizer, batches).program(_ALONE)
    program.check()
    program.check_evaluation()
    if where.ready is not None:
        where.ready()
    folder = paths.absolute(where.output)
    identity = fingerprint.of(program, schedule, [Trial(_ALONE, seed)])
    identity["data"] = json_types.plain(model.identity)
    identity["settings"]["train_steps"] = schedule.train_steps
    file = folder / references_lib.FILE
    # What can't be read is made again from the models' records.
    references = files.read_or_move_aside(file, references_lib.read)
    if references is not None:
        changed = identity_lib.check(str(file), references.get("identity", {}), identity)
        if not changed:
            return references
    folder.mkdir(parents=True, exist_ok=True)
    losses: dict[str, dict[str, float]] = {"validation": {}, "test": {}}
    run_names = names.file_names(f"Monolingual-{task}-seed{seed}" for task in model.task_names)
    for index, (language, name) in enumerate(zip(model.task_names, run_names, strict=True)):
        placed: Any = program.problem
        alone = program.for_problem(placed.with_corpus(model.corpus.only(index)))
        trial = Trial(dataclasses.replace(_ALONE, name=f"Monolingual {language}"), seed)
        report = Report(f"monolingual {language}")
        record = functools.partial(compare_lib.make_record, alone.problem, report=report)
        (run,) = runs_lib.Experiment(folder, schedule, record).train(
            {name: (trial, trial)},
            runs_lib.Programs(alone),
            label=f"{index}/{model.num_tasks}",
        )
        if run.stopped is not None:
            raise runs_lib.RunsStoppedError(f"Monolingual {language}: {run.stopped}")
        processes.wait_for_all(name)
        # Records are rounded. The references are those of the record, now and after a restart.
        run = results.load_results(folder / "runs" / f"{name}.json").runs[0]
        tested = run.evaluations[-1]
        best = [e for e in run.evaluations if e.split == "validation" and e.step == tested.step]
        for evaluation in (*best, tested):
            losses[evaluation.split][language] = math.log(evaluation.average)
    references = {
        "vocabulary": model.corpus.vocabulary,
        "eval_length": model.eval_length,
        "losses": losses,
        "identity": identity,
    }
    if processes.is_first():
        files.write_json(references, file)
    processes.wait_for_all("references")
    printing.say(f"The losses of one model for each language are in {file}.")
    return references
