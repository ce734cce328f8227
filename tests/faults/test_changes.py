"""The same directory and another call of `compare`: the right numbers, or an error that says why.

Each change is made to a finished directory and to one that was interrupted in its first run. What
comes out is what the same call gives in a new directory; or nothing is touched, and the error
names what was changed, and both values.
"""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from faults import harness
from faults.changed_calls import BASE, LOSS, METRICS, REFUSED, TAKEN, problem, squared
from helpers import calls, tiny
from jax.experimental.compilation_cache import compilation_cache

from ldro_jax import reporting
from ldro_jax.experiments import compare
from ldro_jax.records import results
from ldro_jax.training import loop

pytestmark = pytest.mark.faults

# Those that are tried by default.
_USUAL = {"rate", "loss", "setting", "fewer steps", "a seed", "more steps"}


def cases(changes):
    return [
        pytest.param(*change, id=name, marks=() if name in _USUAL else pytest.mark.heavy)
        for name, change in changes.items()
    ]


def run(directory, **options):
    options = {**BASE, **options}
    made = problem(**options.pop("problem", {}))
    optimizer = options.pop("optimizer")()
    # Optax's schedules divide an integer by a float.
    with jax.numpy_dtype_promotion("standard"):
        return compare.compare(made, optimizer=optimizer, **calls.parts(directory, **options))


def write_report(record, output_dir, **options):
    (output_dir / "report.html").write_text("report")


@pytest.fixture(autouse=True)
def _no_report(monkeypatch):
    monkeypatch.setattr(reporting, "write_report", write_report)


@pytest.fixture(scope="module", autouse=True)
def _compile_once(tmp_path_factory):
    """The same program is compiled again and again here."""
    names = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: getattr(jax.config, name) for name in names}
    compilation_cache.reset_cache()
    for name, value in names.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Makes a directory; of the same one it makes a copy."""
    made = {}

    def copy(target, state, options):
        key = (state, *sorted(f"{k}={id(v)}" for k, v in options.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("begun") / "o"
            begin(made[key], state, **options)
        return harness.copied(made[key], target)

    return copy


def begin(directory, state, **options):
    """A directory that is finished, or was interrupted in step 4 of its first run."""
    with pytest.MonkeyPatch.context() as context:
        context.setattr(reporting, "write_report", write_report)
        if state == "finished":
            run(directory, **options)
            return
        train = loop.train

        def interrupted(*args, progress, **more):
            return train(*args, progress=tiny.Progress(stop_after=3), **more)

        context.setattr(loop, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(directory, **options)


def everything(record):
    """All of a record but what clocks say, as it is rounded in a file."""
    found = json.loads(json.dumps(results.plain(dataclasses.replace(record, device={}))))
    return harness._without_clocks(found)


def files_of(directory):
    return {
        path: path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and "lock" not in path.name
    }


@pytest.mark.parametrize("state", ["finished", "interrupted"])
@pytest.mark.parametrize(("before", "after", "message"), cases(REFUSED))
def test_what_would_change_the_numbers_is_refused(state, before, after, message, tmp_path, begun):
    begun(tmp_path, state, before)
    there = files_of(tmp_path)
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)) as error:
        run(tmp_path, **(before | after))
    assert "\n" not in str(error.value) and "overwrite=True" in str(error.value)
    assert files_of(tmp_path) == there


@pytest.mark.parametrize("state", ["finished", "interrupted"])
@pytest.mark.parametrize(("before", "after"), cases(TAKEN))
def test_what_changes_no_number_is_taken(state, before, after, tmp_path, begun):
    begun(tmp_path / "there", state, before)
    options = before | after
    expected = run(tmp_path / "new", **options)
    found = run(tmp_path / "there", **options)
    if "layout" in options:
        close(found, expected)
    else:
        assert everything(found) == everything(expected)
    assert everything(results.load_results(tmp_path / "there" / "results.json")) == everything(
        found
    )


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("new", "finished"),
        *(
            pytest.param(name, state, marks=pytest.mark.heavy)
            for name in METRICS
            for state in ("finished", "interrupted")
            if (name, state) != ("new", "finished")
        ),
    ],
)
def test_a_metric_is_measured_with_the_parameters_that_are_kept(name, state, tmp_path, begun):
    begun(tmp_path / "there", state, {})
    options = {"problem": {"metrics": METRICS[name]}}
    expected = rounded(run(tmp_path / "new", **options).runs[0])
    found = rounded(run(tmp_path / "there", **options).runs[0])
    # Of steps whose parameters are gone there is nothing, and never what it was before.
    first = 6 if state == "finished" else 4
    changed = {m.name for m, f in METRICS[name].items() if (m, f) != (LOSS, squared)}
    known = [e for e in expected.evaluations if e.metric not in changed or e.step >= first]
    assert sorted(map(repr, found.evaluations)) == sorted(map(repr, known))
    assert found.losses.values.tolist() == expected.losses.values.tolist()


def rounded(run):
    return results.run_from_record(results.run_to_record(run))


def test_a_metric_without_parameters_is_refused(tmp_path, begun):
    begun(tmp_path, "finished", {})
    harness.remove(tmp_path / "checkpoints")
    with pytest.raises(ValueError, match="lacks gap, which is new .* no checkpoint of .* step, 6"):
        run(tmp_path, problem={"metrics": METRICS["new"]})
    # One that isn't wanted any more needs none.
    assert run(tmp_path).runs[0].evaluations


def close(found, expected):
    """Whether two records have the same numbers up to rounding."""
    for one, other in zip(found.runs, expected.runs, strict=True):
        np.testing.assert_allclose(one.weights.values, other.weights.values, rtol=1e-4)
        averages = ([e.average for e in run.evaluations] for run in (one, other))
        np.testing.assert_allclose(*averages, rtol=1e-4)
