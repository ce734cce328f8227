"""Makes the report of runs that T5X trained, from its summaries; T5X itself is not needed.

For example::

    python -m ldro_jax.t5x.report --output_dir=/tmp/report "L-DRO=/tmp/ldro" "DRO=/tmp/dro"

A name that is given several times has several seeds, those of the runs' ``RANDOM_SEED``. ``--alone
ar=/tmp/arabic`` names a run of one language alone, for relative perplexities. ``--tasks NAME,NAME``
says what the tasks are where the runs themselves don't. ``--select_by=worst`` shows of each run the
evaluation whose worst task is best, instead of the best average loss.
"""

import argparse
import itertools
import math
import re
import statistics
import sys
from collections.abc import Sequence

from ldro_jax import reporting
from ldro_jax.records import results
from ldro_jax.records.perplexity import perplexity
from ldro_jax.runtime import paths
from ldro_jax.t5x import report_sections, summaries
from ldro_jax.t5x.names import MC4_MIXTURE, TEXT_MIXTURE

METRIC = "perplexity"
_OVER_TASKS = {"average": lambda losses: sum(losses) / len(losses), "worst": max}


def read(
    model_dirs: Sequence[tuple[str, str]],
    alone: Sequence[tuple[str, str]] = (),
    *,
    tasks: Sequence[str] | None = None,
    select_by: str = "average",
) -> results.Results:
    """Reads the evaluations and the task weights of runs.

    The evaluations of a run end with its best one, the one of the checkpoint that is to be kept.

    Args:
      model_dirs: pairs of a method's name and T5X's ``MODEL_DIR``; several of one name are its
        seeds.
      alone: pairs of a task's name, with or without what all names begin with, and the
        ``MODEL_DIR`` of a run of that task alone.
      tasks: the names of the tasks, as T5X evaluates them. By default those that a run has saved;
        else those that the first run evaluates, without the mixture, which its ``config.gin``
        names.
      select_by: "average" or "worst": by which loss over tasks an evaluation is best.

    Returns:
      The record.

    Raises:
      FileNotFoundError: if a directory has no evaluations.
      ImportError: if TensorFlow or gin is not installed.
      ValueError: if two runs have other tasks, or were evaluated on other tokens; two of one name
        have the same seed; a task that is unknown is named; or it can't be told what the tasks are.
    """
    return _record(_read(model_dirs), _read(alone), tasks, select_by)


def main(argv: list[str] | None = None) -> None:
    """Reads the command line; writes ``results.json``, ``report.html`` and the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m ldro_jax.t5x.report", description="Makes the report of runs of T5X."
    )
    parser.add_argument("runs", nargs="+", metavar="NAME=MODEL_DIR", type=_pair)
    parser.add_argument("--output_dir", required=True, help="where the report goes")
    parser.add_argument("--alone", action="append", default=[], metavar="TASK=DIR", type=_pair)
    parser.add_argument("--tasks", help="their names, with commas between them", type=_names)
    parser.add_argument(
        "--select_by", choices=list(_OVER_TASKS), default="average", help="what makes one best"
    )
    args = parser.parse_args(argv)
    try:
        output_dir = paths.make(args.output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        named = _read(args.runs)
        record = _record(named, _read(args.alone), args.tasks, args.select_by)
        runs = [run for _, run in named]
        text = report_sections.configurations(record, runs)
        reporting.finish(record, output_dir, text, report_sections.sections(record, runs))
        print(record.description)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"Error: {error}")


def _pair(text: str) -> tuple[str, str]:
    name, _, folder = text.rpartition("=")
    if not name or not folder:
        raise argparse.ArgumentTypeError(f"expected NAME=DIRECTORY, but it is {text!r}")
    return name, folder


def _names(text: str) -> list[str]:
    return [name for name in text.replace(" ", "").split(",") if name]


def _read(named: Sequence[tuple[str, str]]) -> list[tuple[str, summaries.Summaries]]:
    return [(name, summaries.read(folder)) for name, folder in named]


def _record(named, alone, tasks, select_by) -> results.Results:
    everything = [run for _, run in (*named, *alone)]
    first = everything[0]
    names = tasks or _task_names(everything[: len(named)])
    for _, run in named:
        missing = [n for n in names if n not in run.losses]
        if missing:
            raise ValueError(
                f"All runs must have the tasks {', '.join(names)}, but {run.model_dir} has no "
                f"evaluation of {', '.join(missing)}. It has {', '.join(run.losses)}."
            )
    shorter = _shortened(names)
    split = _split(first)
    runs = [
        _run(method, seed, run, names, split, select_by)
        for (method, run), seed in zip(named, _seeds(named), strict=True)
    ]
    references = {}
    for task, run in alone:
        full = next((n for n, s in zip(names, shorter, strict=True) if task in (n, s)), None)
        if full is None:
            raise ValueError(f"There is no task {task!r}. Known are {', '.join(shorter)}.")
        if full not in run.losses:
            raise ValueError(f"{run.model_dir} has no evaluation of {full}.")
        best = min(run.losses[full].values(), key=_finite_first)
        references[shorter[names.index(full)]] = float(perplexity([best])[0])
    tokens = _tokens(everything, names)
    latest = next((run.file.machines[-1] for _, run in named if run.file), {})
    return results.Results(
        experiment="t5x",
        description=report_sections.description(everything, tokens),
        task_names=shorter,
        metric=METRIC,
        higher_is_better=False,
        runs=runs,
        versions=latest.get("versions", {}),
        device=latest.get("device", {}),
        references={split: references} if references else {},
        select_by=select_by,
        data={"split": first.split, "tokens": dict(zip(shorter, tokens, strict=False))},
    )


def _run(method, seed, run, names, split, select_by) -> results.Run:
    shorter = _shortened(names)
    steps = sorted(set.intersection(*(set(run.losses[n]) for n in names)))
    if not steps:
        raise ValueError(f"{run.model_dir} has no step at which all tasks were evaluated.")

    def evaluation(step):
        values = perplexity([run.losses[name][step] for name in names])
        return results.summarise_evaluation(step, split, METRIC, shorter, values, False)

    def over_tasks(step):
        return _finite_first(_OVER_TASKS[select_by]([run.losses[name][step] for name in names]))

    best = min(steps, key=over_tasks)
    speeds = run.train.get("timing/steps_per_second", {}).values()
    return results.Run(
        method=method,
        seed=seed,
        num_steps=steps[-1],
        hyperparameters=run.config.hyperparameters(),
        seconds_per_step=1 / statistics.median(speeds) if speeds else None,
        evaluations=[evaluation(step) for step in steps if step <= best],
        weights=_series(run.train, "ldro/weight", names),
        losses=_series(run.train, "ldro/loss", names),
        nonfinite_losses=_counts(run.train, "ldro/nonfinite_losses", names),
        unmeasured_interactions=_counts(run.train, "ldro/unmeasured_interactions", names),
        negative_losses=_counts(run.train, "ldro/negative_losses", names),
        unsolved_steps=_last(run.train.get("ldro/unsolved_steps", {})),
    )


def _seeds(runs: Sequence[tuple[str, summaries.Summaries]]) -> list[int]:
    """The seed of each run; one that is not known is the next that its method doesn't have."""
    known: dict[tuple[str, int], str] = {}
    for method, run in runs:
        if run.seed is None:
            continue
        if (method, run.seed) in known:
            raise ValueError(
                f"Runs of one name must have different seeds, but those of {method} in "
                f"{known[method, run.seed]} and {run.model_dir} both have RANDOM_SEED = "
                f"{run.seed}: they say nothing of how much results differ. Give one of them "
                "another name, or take a run with another RANDOM_SEED."
            )
        known[method, run.seed] = run.model_dir
    seeds = []
    for method, run in runs:
        seed = run.seed
        if seed is None:
            seed = next(n for n in itertools.count() if (method, n) not in known)
            known[method, seed] = run.model_dir
        seeds.append(seed)
    return seeds


def _finite_first(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


def _counts(train, kind, names) -> dict[str, int]:
    counts = [_last(train.get(f"{kind}/{name}", {})) for name in names]
    return {short: n for short, n in zip(_shortened(names), counts, strict=True) if n}


def _last(counts) -> int:
    """The count at the last step; none without summaries."""
    return int(counts[max(counts)]) if counts else 0


def _series(train, kind, names) -> results.Series | None:
    columns = [train.get(f"{kind}/{name}", {}) for name in names]
    steps = sorted(set.intersection(*map(set, columns)))
    if not steps:
        return None
    return results.Series(steps, [[column[step] for column in columns] for step in steps])


def _split(run: summaries.Summaries) -> str:
    """As a report knows it; a part of a split, such as ``validation[:500]``, counts as that."""
    name = re.split(r"\W", run.split)[0]
    return name if name in ("train", "test") else "validation"


def _tokens(runs: Sequence[summaries.Summaries], names: Sequence[str]) -> list[int]:
    """How many tokens of each task were evaluated, the same in all runs that say it."""
    first: dict[str, tuple[int, str]] = {}
    for run in runs:
        if run.split != runs[0].split:
            raise ValueError(
                f"All runs must be evaluated on the same split, but {runs[0].model_dir} was on "
                f"{runs[0].split!r} and {run.model_dir} on {run.split!r}."
            )
        for name, count in (run.file.tokens if run.file else {}).items():
            known, where = first.setdefault(name, (count, run.model_dir))
            if name in names and count != known:
                raise ValueError(
                    f"Perplexities can be compared over the same tokens alone, but of {name} "
                    f"{where} was evaluated on {known:,} and {run.model_dir} on {count:,}. Give "
                    "the runs the same split, vocabulary and eval_steps."
                )
    return [first[name][0] for name in names] if set(names) <= set(first) else []


def _task_names(runs: Sequence[summaries.Summaries]) -> Sequence[str]:
    saved = [run.tasks for run in runs if run.tasks]
    saved += [list(run.file.tokens) for run in runs if run.file]
    if saved:
        return saved[0]
    # T5X evaluates the tasks of a mixture and the mixture itself.
    evaluated = list(runs[0].losses)
    if len(evaluated) == 1:
        return evaluated
    mixture = runs[0].config.value("DatasetConfig", "mixture_or_task_name", "train_eval")
    mixtures = [name for name in evaluated if name in (mixture, TEXT_MIXTURE, MC4_MIXTURE)]
    if len(mixtures) != 1:
        raise ValueError(
            f"{runs[0].model_dir} has evaluations of {', '.join(evaluated)}, but its config.gin "
            "does not say which of them is the mixture. Give the names of the tasks: --tasks "
            "NAME,NAME."
        )
    return [name for name in evaluated if name not in mixtures]


def _shortened(names: Sequence[str]) -> list[str]:
    """The names without what all of them begin with, up to an underscore."""
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    start = names[0][: len(list(same))].rfind("_") + 1
    return [name[start:] for name in names]


if __name__ == "__main__":
    main()
