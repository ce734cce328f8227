"""The identity of runs: their data, their settings, and digests of all that is computed in them.

Records and checkpoints carry it, so that no number of one program is taken for that of another.
Each function that the step is made of is traced, and not the step: on another mesh, or with another
way to measure the same matrix, a step has other equations and the same numbers.
"""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import meta

from ldro_jax.measuring import trained as trained_lib
from ldro_jax.problems.base import Problem
from ldro_jax.records import json_types, provenance, traced
from ldro_jax.runtime import checks
from ldro_jax.training.schedule import Schedule
from ldro_jax.weighting import base, products

if TYPE_CHECKING:
    from ldro_jax.training.engine import Program, Trial

# With another version of these packages, the same program may have other equations.
_TRACING = ("flax", "jax", "ldro-jax", "optax")


def of(program: "Program", schedule: Schedule, trials: Sequence["Trial"]) -> dict[str, Any]:
    """The identity of some runs of a program, without their length.

    Returns:
      In plain JSON types ``runs``, each with ``method``, ``settings`` and ``seed``; ``data``;
      ``settings``; ``programs`` and ``evaluation``, digests by name; and ``versions``, those that
      digests can be compared under. See :func:`ldro_jax.records.identity.check`.
    """
    return {
        "runs": [of_run(trial) for trial in trials],
        "data": json_types.plain(program.problem.identity),
        "settings": _settings(program, schedule),
        "programs": {
            **_once(program, "shared", _shared),
            **_once(program, program.method.compile_key(), _of_method),
            **(_choice(program) if schedule.scores else {}),
        },
        "evaluation": _once(program, "evaluation", _evaluation),
        "versions": _versions(),
    }


def of_run(trial: "Trial") -> dict[str, Any]:
    """What tells a run from others of the same problem: ``method``, ``settings`` and ``seed``.

    And ``tasks``, where it trains some of them.
    """
    method, seed, tasks = trial
    run = {"method": method.name, "settings": exact(method.settings()), "seed": int(seed)}
    return run if tasks is None else {**run, "tasks": list(tasks)}


@functools.cache
def _versions() -> dict[str, str]:
    installed = provenance.versions()
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return {**{name: installed[name] for name in _TRACING if name in installed}, "python": python}


def exact(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a method as JSON can hold them, with all digits of their numbers.

    What isn't a number, a text or a flag becomes what is printed of it.
    """
    kinds = (bool, int, float, str, type(None))
    return {k: v if isinstance(v, kinds) else checks.printed(v) for k, v in settings.items()}


def _settings(program: "Program", schedule: Schedule) -> dict[str, Any]:
    batches, method = program.batches, program.method
    own = not method.uses_interaction or method.interaction_rows is not None
    return {
        "batch_size": batches.size,
        "sampler": batches.sampler,
        "microbatches": batches.microbatches,
        "interaction_rows": None if own else batches.interaction_rows,
        "trainable": {"frozen": program.engine.frozen},
        "layout": program.engine.rows_from,
        "eval_interval": schedule.eval_interval,
        "test": schedule.test,
        "max_nonfinite_steps": schedule.max_nonfinite_steps,
        # Runs from before there were these settings have none of them.
        **({"patience": schedule.patience} if schedule.patience is not None else {}),
        **({"eval_at_start": True} if schedule.eval_at_start else {}),
    }


def _once(
    program: "Program", key: Any, make: Callable[["Program"], dict[str, str]]
) -> dict[str, str]:
    """Makes digests once for all programs that share them, of whatever method."""
    if key not in program.engine.digests:
        program.engine.digests[key] = make(program)
    return program.engine.digests[key]


def _shared(program: "Program") -> dict[str, str]:
    problem = program.engine.source_problem
    with jax.numpy_dtype_promotion("standard"):
        params = _params(problem)
        state = jax.eval_shape(program.engine.optimizer.init, params)
        update = optax.with_extra_args_support(program.engine.optimizer).update
        optimizer = traced.of(program.engine.optimizer.init, params) + traced.of(
            update, params, state, params
        )
    # In the order in which an error looks for what has changed.
    digests = {
        "loss or model": _loss(program, params),
        "initial parameters": _first_parameters(problem),
        "training rows": program.engine.digest_of_rows(),
        "optimizer": optimizer,
    }
    if problem.penalty is not None:
        digests["penalty"] = traced.of(jax.grad(problem.penalty, allow_int=True), params)
    if problem.observe is not None:
        digests["observe"] = traced.of(problem.observe, params)
    return digests


def _params(problem: Problem) -> Any:
    return jax.eval_shape(_init(problem), jax.random.key(0))


def _first_parameters(problem: Problem) -> str:
    digest = traced.of(_init(problem), jax.random.key(0))
    if problem.starting is None:
        return digest
    given = jax.tree_util.tree_leaves_with_path(problem.starting)
    names = [jax.tree_util.keystr(path) for path, _ in given]
    return digest + traced.of_values(names, [leaf for _, leaf in given])


def _init(problem: Problem) -> Callable[[jax.Array], Any]:
    return lambda key: meta.unbox(problem.init(key))


def _loss(program: "Program", params: Any) -> str:
    """Of the losses of rows and their gradient, which may have a rule of its own."""
    problem, trained = program.engine.source_problem, program.engine.trained

    def total(part, whole, rows, key):
        losses_of = problem.training_losses
        if trained is not None:
            losses_of = trained_lib.of_part(losses_of, whole)
        found = losses_of(part, rows, key)
        return found.sums.sum(), found

    part = params if trained is None else trained_lib.hide(params, trained)
    rows = program.engine.row_shapes(program.batches.size)
    key = program.abstract_key
    return traced.of(jax.value_and_grad(total, has_aux=True), part, params, rows, key)


def _of_method(program: "Program") -> dict[str, str]:
    """Of the weighting, with its rates as inputs, and of what else a method computes by itself."""
    method, num_tasks = program.method, program.problem.num_tasks

    def wrapped(rates) -> Any:
        made = method.wrapped(rates)
        return made.by_products if method.uses_products else made

    def weigh(rates, statistics, state):
        if method.uses_products:
            asking = products.nothing_to_ask(num_tasks, jnp.float32)
            statistics = statistics._replace(products=asking)
        return wrapped(rates).update(statistics, state)

    rates = {name: jnp.zeros([], float) for name in method.rates()}
    known = base.nothing_known(num_tasks)._replace(known=jnp.ones(num_tasks, bool))
    start = jax.eval_shape(lambda r: wrapped(r).init(num_tasks, jnp.float32), rates)
    digests = {"weighting": traced.of(weigh, rates, known, start)}
    options: list[Any] = [method.sampling]
    if method.uses_interaction:
        # All but these and ways of one's own give the same matrix.
        named, geometry = method.named_strategy, method.geometry
        apart = isinstance(named, str) and named in ("split", "products", "features")
        options += [named if apart else "exact", method.interval, method.lagged]
        if not isinstance(named, str):
            options += [traced.of_code(named.matrix)]
            options += [named.in_turn, named.share, named.multiple] if named.gives_products else []
        options += [traced.of_code(geometry) if callable(geometry) else geometry]
        if program.plan.shared is not None:
            paths = jax.tree_util.tree_leaves_with_path(program.plan.shared)
            options += [jax.tree_util.keystr(path) for path, counts in paths if counts]
    digests["method"] = traced.of_values(options)
    if method.uses_excess:
        problem = program.engine.source_problem
        params, rows = _params(problem), program.engine.row_shapes(program.batches.size)
        digests["row_excess"] = traced.of(problem.row_excess, params, params, rows)
    return digests


def _evaluation(program: "Program") -> dict[str, str]:
    problem = program.engine.source_problem
    digests = problem.evaluation_digests(_params(problem))
    directions = {m.name: str(m.direction(problem.measured)) for m in problem.metrics}
    return {name: f"{digests[name]} {directions[name]}" for name in directions}


def _choice(program: "Program") -> dict[str, str]:
    """Of what decides which checkpoint is the best, and when a run ends early."""
    first = program.problem.metrics[0].name
    return {
        "first metric": traced.of_values(first, _once(program, "evaluation", _evaluation)[first]),
        "score": traced.of_code(program.problem.score),
    }


def of_source(problem: Problem) -> str:
    """The digest of the first rows of each task from the host, where drawing them costs nothing."""
    # A problem that knows its shapes without drawing rows tells what they are in its identity.
    if type(problem).row_shapes is not Problem.row_shapes:
        return traced.of_values(type(problem).__name__)
    source = problem.source(0)
    if source.has_state:
        return traced.of_values(type(source).__name__)
    tasks = np.arange(problem.num_tasks, dtype=np.int32)
    rows = source.rows(tasks, np.zeros(len(tasks), np.int64))
    return traced.of_values(jax.tree.leaves(rows))
