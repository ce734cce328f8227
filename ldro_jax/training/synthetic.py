"""Figure 2 of the paper: how each method moves through a problem of two parameters."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ldro_jax import checks, reporting, transform
from ldro_jax.records import files, provenance, results
from ldro_jax.tasks import base, synthetic
from ldro_jax.training import experiment, preemption, processes
from ldro_jax.training import runs as runs_lib
from ldro_jax.training.method import Method
from ldro_jax.training.program import Trial


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

    def __post_init__(self):
        checks.text("title", self.title)
        checks.number("noise", self.noise, "[0, inf)")
        runs_lib.list_runs(self.methods, self.seeds)
        single = all(isinstance(method, Method) for method in self.methods)
        checks.require(single, "methods", "a list of methods, without grids", self.methods)


def trajectory_fn(
    method: Method,
    points: np.ndarray | jax.Array,
    *,
    start: Sequence[float],
    learning_rate: float,
    train_steps: int,
    noise: float = 0.0,
) -> Any:
    """Traces gradient descent on the weighted losses of the synthetic tasks.

    Args:
      method: how to weigh the tasks.
      points: ``[N, 2]``.
      start: (r, φ).
      learning_rate: of the gradient descent.
      train_steps: T.
      noise: standard deviation of the Gaussian noise on losses and gradients.

    Returns:
      A ``jax.stages.Traced``, to be lowered and compiled: a function of a key for the noise, which
      returns the parameters ``[T + 1, 2]``, with the start first, and the weights ``[T, N]``.
    """
    tx = optax.chain(method.transform(len(points)), optax.sgd(learning_rate))
    per_task = jax.vmap(jax.value_and_grad(synthetic.task_loss), in_axes=(None, 0))

    def step(carry, key):
        params, opt_state = carry
        losses, gradients = per_task(params, points)
        loss_key, gradient_key = jax.random.split(key)
        losses = losses + noise * jax.random.normal(loss_key, losses.shape)
        gradients = gradients + noise * jax.random.normal(gradient_key, gradients.shape)
        updates, opt_state = tx.update(gradients, opt_state, params, losses=losses)
        moved: Any = optax.apply_updates(params, updates)
        return (moved, opt_state), (moved, transform.find_state(opt_state).weights)

    def run(key):
        first = jnp.asarray(start, jnp.float32)
        keys = jax.random.split(key, train_steps)
        params, weights = jax.lax.scan(step, (first, tx.init(first)), keys)[1]
        return jnp.concatenate([first[None], params]), weights

    return jax.jit(run).trace(jax.random.key(0))


def trajectories(
    *,
    output_dir: pathlib.Path,
    data_dir: str | None,
    config_text: str,
    name: str,
    description: str,
    panels: Sequence[Panel],
    points: np.ndarray | jax.Array,
    start: Sequence[float],
    learning_rate: float,
    train_steps: int,
    eval_interval: int,
    ready: Callable[[], None] | None = None,
) -> results.Results:
    """Follows every method of every panel, and reports the paths and where they end.

    Args:
      output_dir: where everything goes; it exists.
      data_dir: ignored; the tasks are points of the plane.
      config_text: the resolved configuration, for the report.
      name: short name of the experiment.
      description: a paragraph for the report.
      panels: what to run and draw.
      points: the tasks, ``[N, 2]``, the outlier last.
      start: (r, φ).
      learning_rate: of the gradient descent.
      train_steps: number of steps of each run.
      eval_interval: steps between two entries of the record.
      ready: called once, when all is checked and before anything is written.

    Returns:
      The record, as it is in ``results.json``.

    Raises:
      ValueError: if an argument is not what it must be, there is no step to record, a method is in
        two panels under one name, or several processes run it together.
    """
    del data_dir
    processes.require_one()
    checks.text("name", name)
    checks.require(isinstance(description, str), "description", "a text", description)
    checks.sequence("panels", panels, "panels, such as [@a/Panel()]")
    for panel in panels:
        checks.instance("panels", panel, Panel, "@a/Panel()")
    _check_array("points", points, (None, 2))
    _check_array("start", start, (2,))
    checks.number("learning_rate", learning_rate, "(0, inf)")
    checks.integer("train_steps", train_steps)
    checks.integer("eval_interval", eval_interval, high=train_steps)
    method_names = [method.name for panel in panels for method in panel.methods]
    if len(set(method_names)) < len(method_names):
        raise ValueError(
            f"panels must have methods that each have their own name, but these are {method_names}."
        )
    points = jnp.asarray(points)
    identity = {"content": base.content([points])}
    names = [f"task {i + 1}" for i in range(len(points) - 1)] + ["outlier"]
    all_losses = jax.jit(
        jax.vmap(jax.vmap(synthetic.task_loss, in_axes=(None, 0)), in_axes=(0, None))
    )
    traced = {
        method.name: trajectory_fn(
            method,
            points,
            start=start,
            learning_rate=learning_rate,
            train_steps=train_steps,
            noise=panel.noise,
        )
        for panel in panels
        for method in panel.methods
    }
    if ready is not None:
        ready()
    steps = np.arange(eval_interval, train_steps + 1, eval_interval)

    def record(runs):
        return results.Results(
            experiment=name,
            description=description,
            task_names=names,
            metric="loss",
            higher_is_better=False,
            runs=runs,
            versions=provenance.versions(),
            device=provenance.device(),
            data=identity,
        )

    def follow(method, seed):
        """The run and its path over the plane, from an earlier start if there was one."""
        file = output_dir / "runs" / f"{runs_lib.run_name(method, seed)}.json"
        run = runs_lib.finished_run(file, Trial(method, seed), train_steps, identity)
        if run is not None:
            return run, np.asarray(files.read_json(file, results.FORMAT)["path"], np.float32)
        if method.name not in compiled:
            compiled[method.name] = traced[method.name].lower().compile()
        began = time.perf_counter()
        params, weights = jax.block_until_ready(compiled[method.name](jax.random.key(seed)))
        seconds = (time.perf_counter() - began) / train_steps
        losses = np.asarray(all_losses(params[steps], points))
        run = results.Run(
            method=method.name,
            hyperparameters=method.settings(),
            seed=seed,
            num_steps=train_steps,
            seconds_per_step=seconds,
            evaluations=[
                results.summarise_evaluation(
                    int(step), "train", "loss", names, values, higher_is_better=False
                )
                for step, values in zip(steps, losses, strict=True)
            ],
            weights=results.Series(steps, np.asarray(weights)[steps - 1]),
        )
        path = np.asarray(jax.vmap(synthetic.position)(params))
        results.save_results(record([run]), file, {"path": path.tolist()})
        return run, path

    compiled, runs, drawn = {}, [], []
    with preemption.watch() as preempted:
        for panel in panels:
            paths = {}
            for method in panel.methods:
                print(f"{panel.title}: {method.name}", flush=True)
                for seed in panel.seeds:
                    run, path = follow(method, seed)
                    runs.append(run)
                    paths.setdefault(method.name, path)
                    if preempted(train_steps):
                        raise preemption.PreemptedError(
                            f"{method.name}, seed {seed}: stopped, saved at step {train_steps}."
                        )
            drawn.append((panel.title, paths))
    found = record(runs)
    return experiment.finish(found, output_dir, config_text, _figure(drawn, points, panels, found))


def _check_array(name: str, values: Any, shape: tuple[int | None, ...]) -> None:
    """Raises ``ValueError`` unless the values are finite numbers of a shape, ``None`` for any."""
    try:
        found = np.asarray(values)
    except ValueError:  # ragged
        found = np.array(None)
    fits = found.dtype.kind in "iuf" and found.ndim == len(shape)
    sizes = zip(found.shape, shape, strict=False)
    fits = fits and all(expected in (None, size) for size, expected in sizes)
    size = str(list(shape)).replace("None", "N")
    expected = f"finite numbers of the shape {size}"
    checks.require(fits and found.size and np.isfinite(found).all(), name, expected, values)


def _figure(drawn, points, panels, record):
    from ldro_jax.reporting import plots

    if not plots.available():
        return []
    figure = plots.trajectories(
        drawn, np.asarray(points[:-1]), synthetic.OUTLIER, synthetic.OUTLIER, synthetic.RADIUS
    )
    noisy = ", ".join(f"{p.noise:g} in “{p.title}”" for p in panels if p.noise)
    ends = []
    for group in reporting.group_runs(record.runs):
        last = group.runs[0].evaluations[-1]
        ends.append(
            f"{group.runs[0].method} ends at an outlier loss of {last.per_task['outlier']:.4g} "
            f"and a mean loss of {last.average:.3g}"
        )
    caption = (
        "Paths of the model over the plane of the tasks, from the same start. It can't enter the "
        f"grey disc around the outlier. Noise on losses and gradients: {noisy or 'none'}. "
        f"{'; '.join(ends)} (first seed)."
    )
    return [("Paths over the task points", caption, figure)]
