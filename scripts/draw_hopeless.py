"""Sets several experiments beside one another: a table of differences, and a picture of some.

    python scripts/draw_hopeless.py 0=/tmp/hopeless_0 1=/tmp/hopeless_1 2=/tmp/hopeless_2 \
        --of "hopeless tasks" --curves "Average" "Group DRO (weight_lr=0.003)" "Signal tilted" \
        --legend "average loss" "group DRO" "ldro.transform(N)" \
        --picture results/hopeless/figures/hopeless.png

The table, in Markdown, has for each setting its last average and worst test value less the first
method's, paired over seeds, with half of the 95 % interval; `--step` takes those of an earlier
step.
"""

import argparse
import pathlib

import numpy as np

from ldro_jax.records import relative
from ldro_jax.records.results import load_results
from ldro_jax.reporting import statistics
from ldro_jax.reporting.figures import style

KINDS = ("average", "worst")


def values(directory, step):
    """By label, then by seed, average and worst test value at a step, by default the last."""
    results = load_results(pathlib.Path(directory) / "results.json")
    found = {}
    for label, runs in relative.groups(results.runs).items():
        for run in runs:
            ours = [e for e in run.evaluations if (e.split, e.metric) == ("test", results.metric)]
            ours = [e for e in ours if step is None or e.step == step]
            if run.stopped is None and ours:
                found.setdefault(label, {})[run.seed] = (ours[-1].average, ours[-1].worst)
    return found


def less(ours, theirs):
    """Both differences, paired over seeds."""
    seeds = sorted(ours.keys() & theirs.keys())
    paired = np.array([ours[seed] for seed in seeds]) - [theirs[seed] for seed in seeds]
    return [statistics.interval(column) for column in paired.T]


def table(experiments, what):
    """The lines of the table."""
    first = next(iter(next(iter(experiments.values()))))
    labels = dict.fromkeys(label for found in experiments.values() for label in found)
    yield f"| {what} | {' | '.join(f'{name}: average, worst' for name in experiments)} |"
    yield f"|---{'|---' * len(experiments)}|"
    for label in labels:
        cells = []
        for found in experiments.values():
            if label not in found:
                cells.append("")
            elif label == first:
                means = np.mean(list(found[label].values()), axis=0)
                cells.append(", ".join(f"{mean:.3f}" for mean in means))
            else:
                both = less(found[label], found[first])
                cells.append(", ".join(statistics.with_interval(each) for each in both))
        yield f"| {label} | {' | '.join(cells)} |"


@style.applied
def picture(experiments, what, curves, legend):
    """Average and worst by experiment, a curve for each label, with 95 % intervals of the mean."""
    figure = style.new_figure(style.WIDTH, 3.6)
    for kind, title in enumerate(("Average", "Worst")):
        axes = figure.add_subplot(1, 2, kind + 1)
        for number, (label, look) in enumerate(style.looks(curves).items()):
            spreads = [
                statistics.interval([both[kind] for both in found[label].values()])
                for found in experiments.values()
            ]
            axes.errorbar(
                np.arange(len(experiments)) + 0.04 * (number - len(curves) / 2),
                [each.mean for each in spreads],
                [each.half_width for each in spreads],
                capsize=2,
                label=label,
                **look.options,
            )
        axes.set_xticks(range(len(experiments)), experiments)
        axes.set(xlabel=what, title=f"{title} of the tasks that can be learnt")
        if not kind:
            axes.set_ylabel("test accuracy")
            handles = axes.get_legend_handles_labels()[0]
            figure.legend(handles, legend, loc="outside upper left", ncols=len(curves))
    return figure


def main():
    """Reads the experiments, prints and draws."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("experiments", nargs="+", metavar="NAME=DIRECTORY")
    parser.add_argument("--of", default="", help="what the names say")
    parser.add_argument("--step", type=int, help="instead of the last")
    parser.add_argument("--curves", nargs="*", default=[], help="labels of the table to draw")
    parser.add_argument("--legend", nargs="*", help="what the picture calls them")
    parser.add_argument("--picture", help="where to draw them")
    given = parser.parse_args()
    pairs = [each.split("=", maxsplit=1) for each in given.experiments]
    experiments = {name: values(directory, given.step) for name, directory in pairs}
    print("\n".join(table(experiments, given.of)))
    if given.picture:
        legend = given.legend or given.curves
        picture(experiments, given.of, given.curves, legend).savefig(given.picture)


if __name__ == "__main__":
    main()
