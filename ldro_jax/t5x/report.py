"""Makes the report of runs that T5X trained, from its summaries; T5X itself is not needed.

For example::

    python -m ldro_jax.t5x.report --output_dir=/tmp/report "L-DRO=/tmp/ldro" "DRO=/tmp/dro"

A name that is given several times has several seeds. ``--alone ar=/tmp/arabic`` names a run of one
language alone, for relative perplexities. ``--tasks NAME,NAME`` says what the tasks are where the
runs themselves don't.
"""

import argparse
import collections
import itertools
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ldro_jax import paths, reporting
from ldro_jax.evaluation.perplexity import perplexity
from ldro_jax.records import results
from ldro_jax.t5x.names import MC4_MIXTURE, TASKS_FILE, TEXT_MIXTURE, saved_tasks

METRIC = "perplexity"
# T5X evaluates on the split validation; see train_eval/DatasetConfig in its pretrain.gin.
_SPLIT = "validation"


def read(
    model_dirs: Sequence[tuple[str, str]],
    alone: Sequence[tuple[str, str]] = (),
    *,
    tasks: Sequence[str] | None = None,
) -> results.Results:
    """Reads the evaluations and the task weights of runs.

    The evaluations of a run end with its best one by average loss over the tasks, the one of the
    checkpoint that is to be kept.

    Args:
      model_dirs: pairs of a method's name and T5X's ``MODEL_DIR``; a seed for each.
      alone: pairs of a task's name, with or without what all names begin with, and the
        ``MODEL_DIR`` of a run of that task alone.
      tasks: the names of the tasks, as T5X evaluates them. By default those that a run with L-DRO
        has saved; else those that the first run evaluates, without the mixture, which its
        ``config.gin`` names.

    Returns:
      The record.

    Raises:
      FileNotFoundError: if a directory has no evaluations.
      ImportError: if TensorFlow is not installed.
      ValueError: if two runs have other tasks, a task that is unknown is named, or it can't be told
        what the tasks are.
    """
    seeds: collections.Counter[str] = collections.Counter()
    evaluated = [_losses(model_dir) for _, model_dir in model_dirs]
    names = tasks or _task_names([model_dir for _, model_dir in model_dirs], list(evaluated[0]))
    runs = []
    for (method, model_dir), found in zip(model_dirs, evaluated, strict=True):
        missing = [n for n in names if n not in found]
        if missing:
            raise ValueError(
                f"All runs must have the tasks {', '.join(names)}, but {model_dir} has no "
                f"evaluation of {', '.join(missing)}. It has {', '.join(found)}."
            )
        runs.append(_run(method, seeds[method], model_dir, names, found))
        seeds[method] += 1
    shorter = _shortened(names)
    references = {}
    for task, model_dir in alone:
        full = next((n for n, s in zip(names, shorter, strict=True) if task in (n, s)), None)
        if full is None:
            raise ValueError(f"There is no task {task!r}. Known are {', '.join(shorter)}.")
        losses = _losses(model_dir)
        if full not in losses:
            raise ValueError(f"{model_dir} has no evaluation of {full}.")
        references[shorter[names.index(full)]] = float(perplexity([min(losses[full].values())])[0])
    return results.Results(
        experiment="t5x",
        description="Language models that T5X trained.",
        task_names=shorter,
        metric=METRIC,
        higher_is_better=False,
        runs=runs,
        references={_SPLIT: references} if references else {},
        select_by="average",
    )


def main(argv: list[str] | None = None) -> None:
    """Reads the command line; writes ``results.json``, ``report.html`` and the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m ldro_jax.t5x.report", description="Makes the report of runs of T5X."
    )
    parser.add_argument("runs", nargs="+", metavar="NAME=MODEL_DIR", type=_pair)
    parser.add_argument("--output_dir", required=True, help="where the report goes")
    parser.add_argument("--alone", action="append", default=[], metavar="TASK=DIR", type=_pair)
    parser.add_argument("--tasks", help="their names, with commas between them", type=_names)
    args = parser.parse_args(argv)
    try:
        output_dir = paths.make(args.output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        config = paths.make(args.runs[0][1]) / "config.gin"
        text = config.read_text(encoding="utf-8") if config.exists() else ""
        reporting.finish(read(args.runs, args.alone, tasks=args.tasks), output_dir, text)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"Error: {error}")


def _pair(text: str) -> tuple[str, str]:
    name, _, folder = text.rpartition("=")
    if not name or not folder:
        raise argparse.ArgumentTypeError(f"expected NAME=DIRECTORY, but it is {text!r}")
    return name, folder


def _names(text: str) -> list[str]:
    return [name for name in text.replace(" ", "").split(",") if name]


def _run(method, seed, model_dir, names, losses) -> results.Run:
    shorter = _shortened(names)
    steps = sorted(set.intersection(*(set(losses[n]) for n in names)))
    if not steps:
        raise ValueError(f"{model_dir} has no step at which all tasks were evaluated.")

    def evaluation(step):
        values = perplexity([losses[name][step] for name in names])
        return results.summarise_evaluation(step, _SPLIT, METRIC, shorter, values, False)

    best = min(steps, key=lambda step: sum(losses[name][step] for name in names))
    train = _scalars(f"{model_dir}/train")
    speeds = train.get("timing/steps_per_second", {}).values()
    nonfinite = {
        short: int(counts[max(counts)])
        for name, short in zip(names, shorter, strict=True)
        if (counts := train.get(f"ldro/nonfinite_losses/{name}"))
    }
    return results.Run(
        method=method,
        seed=seed,
        num_steps=steps[-1],
        seconds_per_step=1 / statistics.median(speeds) if speeds else None,
        evaluations=[evaluation(step) for step in steps if step <= best],
        weights=_series(train, "ldro/weight", names),
        losses=_series(train, "ldro/loss", names),
        nonfinite_losses={name: count for name, count in nonfinite.items() if count},
    )


def _series(train, kind, names) -> results.Series | None:
    columns = [train.get(f"{kind}/{name}", {}) for name in names]
    steps = sorted(set.intersection(*map(set, columns)))
    if not steps:
        return None
    return results.Series(steps, [[column[step] for column in columns] for step in steps])


def _losses(model_dir: str) -> dict[str, dict[int, float]]:
    """Nats a token, without z-loss, by task and step."""
    folder = paths.make(model_dir) / "training_eval"
    tasks = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    found = {}
    for task in tasks:
        scalars = _scalars(f"{folder}/{task}")
        per_token = scalars.get("cross_ent_loss_per_all_target_tokens", {})
        counted = scalars.get("non_padding_fraction/loss_weights", {})
        found[task] = {
            step: value / counted[step] for step, value in per_token.items() if step in counted
        }
    if not any(found.values()):
        raise FileNotFoundError(
            f"Expected the evaluations of a T5X run in {folder}, in a directory for each task; "
            "found none. Set train_eval_dataset_cfg and eval_period in the gin file of the run."
        )
    return found


def _scalars(folder: str) -> Mapping[str, dict[int, float]]:
    """What was written to the event files of a directory, by tag and step; the latest counts."""
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ImportError(
            "T5X's summaries are read with TensorFlow, which can't be imported "
            f"({error}). Install it with: pip install 'ldro-jax[lm]'."
        ) from error
    events = [
        event
        for file in tf.io.gfile.glob(f"{folder}/events.out.tfevents.*")
        for event in tf.compat.v1.train.summary_iterator(file)
    ]
    found: Any = collections.defaultdict(dict)
    for event in sorted(events, key=lambda event: event.wall_time):
        for value in event.summary.value:
            if value.HasField("tensor"):
                number = tf.make_ndarray(value.tensor)
                if number.dtype.kind in "fiu" and number.ndim == 0:
                    found[value.tag][event.step] = float(number)
    return found


def _task_names(model_dirs: Sequence[str], evaluated: Sequence[str]) -> Sequence[str]:
    for model_dir in model_dirs:
        file = paths.make(model_dir) / TASKS_FILE
        if file.exists():
            return saved_tasks(file.read_text(encoding="utf-8"), str(file))
    # T5X evaluates the tasks of a mixture and the mixture itself.
    if len(evaluated) == 1:
        return evaluated
    mixture = _mixture(model_dirs[0])
    mixtures = [name for name in evaluated if name in (mixture, TEXT_MIXTURE, MC4_MIXTURE)]
    if len(mixtures) != 1:
        raise ValueError(
            f"{model_dirs[0]} has evaluations of {', '.join(evaluated)}, but its config.gin does "
            "not say which of them is the mixture. Give the names of the tasks: --tasks NAME,NAME."
        )
    return [name for name in evaluated if name not in mixtures]


def _mixture(model_dir: str) -> str | None:
    """The name of the mixture that a run was evaluated on, if its ``config.gin`` has it as text."""
    file = paths.make(model_dir) / "config.gin"
    config = file.read_text(encoding="utf-8") if file.exists() else ""
    # gin breaks long lines with a backslash.
    config = re.sub(r"\\\n\s*", "", config)
    name = r"^train_eval/(?:\S+\.)?DatasetConfig\.mixture_or_task_name"
    value = "%"
    while value.startswith("%"):
        found = re.search(rf"{name} = (.*)$", config, re.MULTILINE)
        if found is None:
            return None
        # A macro may be another one, further on; each is looked for once.
        config = config.replace(found[0], "")
        value = found[1].strip()
        name = rf"^{re.escape(value[1:])}"
    return value[1:-1] if value[:1] in "\"'" else None


def _shortened(names: Sequence[str]) -> list[str]:
    """The names without what all of them begin with, up to an underscore."""
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    start = names[0][: len(list(same))].rfind("_") + 1
    return [name[start:] for name in names]


if __name__ == "__main__":
    main()
