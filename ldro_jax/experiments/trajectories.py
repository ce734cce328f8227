"""Figure 2 of the paper: how each method moves through a problem of two parameters."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
import optax

from ldro_jax.experiments import compare, names
from ldro_jax.experiments import runs as runs_lib
from ldro_jax.experiments.arguments import Directories, Report
from ldro_jax.problems.toy import PointTasks
from ldro_jax.records import results
from ldro_jax.runtime import checks
from ldro_jax.runtime import paths as paths_lib
from ldro_jax.tasks import synthetic
from ldro_jax.training.batches import Batches
from ldro_jax.training.method import Method
from ldro_jax.training.schedule import Schedule
from ldro_jax.training.stacked import StackedEngine


@dataclasses.dataclass(frozen=True)
class Panel:
    """One panel of the figure.

    Attributes:
      title: what is over it.
      methods: whose paths it shows.
      noise: standard deviation of the Gaussian noise on losses and gradients.
      seeds: of the noise; the panel shows the first, the table all of them.

    Raises:
      ValueError: if one of these is not what it must be.
    """

    title: str
    methods: Sequence[Method]
    noise: float = 0.0
    seeds: Sequence[int] = (0,)

    def __post_init__(self) -> None:
        checks.text("title", self.title)
        checks.number("noise", self.noise, "[0, inf)")
        runs_lib.list_runs(self.methods, self.seeds)
        single = all(isinstance(method, Method) for method in self.methods)
        checks.require(single, "methods", "a list of methods, without grids", self.methods)


def trajectories(
    *,
    output_dir: Directories,
    report: Report,
    panels: Sequence[Panel],
    points: np.ndarray | jax.Array,
    start: Sequence[float],
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
) -> results.Results:
    """Follows every method of every panel, and reports the paths and where they end.

    Args:
      output_dir: where everything goes; the tasks are points of the plane, so there is no data.
      report: name and description of the experiment.
      panels: what to run and draw.
      points: the tasks, ``[N, 2]``, the outlier last.
      start: (r, φ).
      optimizer: of the parameters.
      schedule: lengths and intervals.

    Returns:
      The record, as it is in ``results.json``.

    Raises:
      RunsStoppedError: at the end, after the report, if some runs ended early.
      ValueError: if an argument is not what it must be, there is no step to record, a method is in
        two panels under one name, or several processes run it together.
    """
    if jax.process_count() > 1:
        raise ValueError("This experiment needs one process, but there are several.")
    where = Directories.of(output_dir)
    compare.check_parts(report=report, schedule=schedule)
    checks.sequence("panels", panels, "panels, such as [@a/Panel()]")
    for panel in panels:
        checks.instance("panels", panel, Panel, "@a/Panel()")
    method_names = [method.name for panel in panels for method in panel.methods]
    if len(set(method_names)) < len(method_names):
        raise ValueError(
            f"panels must have methods that each have their own name, but these are {method_names}."
        )
    trials_of = [runs_lib.list_runs(panel.methods, panel.seeds)[1] for panel in panels]
    files = iter(names.file_names(run for trials in trials_of for run in trials))
    trials_of = [{next(files): trial for trial in trials.values()} for trials in trials_of]
    batches = Batches(len(points))
    problem = compare.make_problem(PointTasks(points, start=start), None, schedule)
    programs_of = []
    for panel in panels:
        noisy = PointTasks(points, start=start, noise=panel.noise)
        first = StackedEngine(noisy, optimizer, batches).program(runs_lib.AVERAGE)
        first.check_evaluation()
        programs_of.append(runs_lib.Programs(first))
        programs_of[-1].check(panel.methods)
    if where.ready is not None:
        where.ready()
    config_text = where.config_text or ""
    experiment = runs_lib.Experiment(
        paths_lib.absolute(where.output),
        schedule,
        lambda runs: compare.make_record(problem, runs, report),
        config_text,
    )
    runs, drawn = [], []
    for panel, programs, trials in zip(panels, programs_of, trials_of, strict=True):
        pairs = {name: (trial, trial) for name, trial in trials.items()}
        done = experiment.train(pairs, programs)
        # All seeds of a method one after the other.
        order = [method.name for method in panel.methods]
        done.sort(key=lambda run: order.index(run.method))
        paths = {}
        for run in done:
            assert run.path is not None
            paths.setdefault(run.method, np.concatenate([[_position(start)], run.path.values]))
        drawn.append((panel.title, paths))
        runs += done
    return experiment.report(
        runs, config_text, lambda record: _figure(drawn, points, panels, record)
    )


def _position(params: Sequence[float]) -> np.ndarray:
    return np.asarray(synthetic.position(jax.numpy.asarray(params, jax.numpy.float32)))


def _figure(drawn, points, panels, record):
    try:
        from ldro_jax.reporting.figures import toy
    except ImportError:  # without the extra "plots" there is no report either
        return []
    task_points = np.asarray(points[:-1])
    figure = toy.trajectories(drawn, task_points, synthetic.OUTLIER, synthetic.RADIUS)
    noisy = ", ".join(f"{p.noise:g} in “{p.title}”" for p in panels if p.noise)
    # The seeds of a method stand one after the other, and the first of them counts.
    lasts = {run.method: run.evaluations[-1] for run in reversed(record.runs)}
    ends = [
        f"{method} ends at an outlier loss of {last.per_task['outlier']:.4g} "
        f"and a mean loss of {last.average:.3g}"
        for method, last in reversed(lasts.items())
    ]
    caption = (
        "Paths of the model over the plane of the tasks, from the same start. It can't enter the "
        f"grey disc around the outlier. Noise on losses and gradients: {noisy or 'none'}. "
        f"{'; '.join(ends)} (first seed)."
    )
    return [("Paths over the task points", caption, figure)]
