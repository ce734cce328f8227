"""Parameters that an experiment keeps, loaded by what their run was: those of its record."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

import ldro_jax
from ldro_jax import problems, reporting
from ldro_jax.records import arrays, best, checkpoints, identity


class Bias(NamedTuple):
    """Two parameters of one shape, which aren't in the order of their names."""

    scale: jax.typing.ArrayLike
    offset: jax.typing.ArrayLike


@pytest.fixture(scope="module", params=["together", "alone", "mesh"])
def trained(request, tmp_path_factory):
    """A directory with two settings of a method and two seeds, its record, and its problem."""
    directory, a_problem = tmp_path_factory.mktemp("kept"), tiny.problem()
    options = {
        "together": {"runs_together": 4},
        "alone": {"schedule": tiny.schedule(15, 5, test="best")},
        "mesh": {"layout": tiny.ONE},
    }[request.param]
    options = {"schedule": tiny.schedule(15, 15, 15), **options}
    other = dataclasses.replace(tiny.GROUP_DRO, hyperparameters={"weight_lr": 0.1})
    options |= {"methods": [tiny.GROUP_DRO, other]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reporting, "write_report", lambda *args, **more: None)
        record = tiny.run(directory, problem=a_problem, **options)
    return directory, record, a_problem, request.param


def accuracy(run, step):
    """Of each task on validation."""
    found = (e for e in run.evaluations if (e.step, e.split) == (step, "validation"))
    return list(next(found).per_task.values())


def test_parameters_are_those_of_the_run(trained):
    directory, record, a_problem, kind = trained
    for run in record.runs:
        asked = {"method": run.method, "seed": run.seed, "settings": run.hyperparameters}
        last = ldro_jax.load(directory, step="last", **asked)
        assert {type(x) for x in jax.tree.leaves(last)} == {np.ndarray}
        values = a_problem.evaluate(last, "validation")["accuracy"]
        np.testing.assert_allclose(values, accuracy(run, 15), rtol=1e-6)
        jax.tree.map(
            np.testing.assert_array_equal,
            ldro_jax.load(directory, step=15, problem=a_problem, **asked),
            last,
        )
        if kind == "alone":
            test = run.evaluations[-1]
            values = a_problem.evaluate(ldro_jax.load(directory, **asked), "test")["accuracy"]
            np.testing.assert_allclose(values, list(test.per_task.values()), rtol=1e-6)


def test_the_table_of_what_is_kept_has_its_values_and_where_it_is(trained):
    directory, record, _, kind = trained
    table = best.table(record)
    assert table.note.startswith("Best on validation by the worst value: Group DRO (weight_lr=")
    runs = {
        (f"Group DRO (weight_lr={r.hyperparameters['weight_lr']:g})", r.seed): r
        for r in record.runs
    }
    assert len(table.rows) == len(runs) == 4
    for label, seed, step, *values, place in table.rows:
        run = runs.pop((label, int(seed)))
        at = {e.split: e for e in run.evaluations if e.step == int(step)}
        expected = [
            f"{getattr(at[s], w):.4g}" for s in ("validation", "test") for w in ("average", "worst")
        ]
        assert values == expected
        assert place.split("/")[1] == step
        assert (directory / "checkpoints" / place / "state").is_dir()
    if kind == "alone":
        assert {int(row[2]) for row in table.rows} <= {5, 10, 15}


def test_arrays_are_written_as_they_are_and_half_precision_as_float32(tmp_path):
    given = {
        "layer/kernel": np.arange(6.0).reshape(2, 3),
        "layer/scale": jnp.array([1.5, -3.0], jnp.bfloat16),
        "steps": np.array(3, np.int32),
    }
    arrays.save(given, tmp_path / "new" / "params.npz")
    with np.load(tmp_path / "new" / "params.npz", allow_pickle=False) as found:
        assert {n: x.dtype.name for n, x in found.items()} == {
            **{"layer/kernel": "float64", "layer/scale": "float32", "steps": "int32"},
        }
        for name, array in given.items():
            np.testing.assert_array_equal(found[name], np.asarray(array, found[name].dtype))


def test_what_is_not_kept_is_said(trained):
    directory, _, _, kind = trained
    one = {"method": "Group DRO", "seed": 0, "settings": {"weight_lr": 0.5}}
    for asked, error, message in [
        (
            {},
            ValueError,
            "must tell one run from others, but 4 have any method: ",
        ),
        ({"seed": 0}, ValueError, "but 2 have seed=0: method=.*weight_lr=.*; method=.*weight_lr="),
        (one | {"seed": 7}, FileNotFoundError, "no checkpoint of a run with .* seed=7, .* Found: "),
        (one | {"method": "L"}, FileNotFoundError, "no checkpoint of a run with method='L'"),
        (one | {"step": 3}, FileNotFoundError, r"no checkpoint of step 3 in .*, but of \["),
        (one | {"step": "first"}, ValueError, "step .* must be a positive integer, but it is 'fi"),
    ]:
        with pytest.raises(error, match=message):
            ldro_jax.load(directory, **asked)
    if kind != "alone":
        with pytest.raises(FileNotFoundError, match="No best .*'best'.* of step 15"):
            ldro_jax.load(directory, **one)
    with pytest.raises(FileNotFoundError, match="It has none at all"):
        ldro_jax.load(directory / "nowhere")


def test_a_damaged_checkpoint_is_said(trained, monkeypatch):
    real = identity.digest
    monkeypatch.setattr(identity, "digest", lambda state: [[0, 0], *real(state)[1:]])
    with pytest.raises(OSError, match=r"state is damaged .it is not what was saved."):
        ldro_jax.load(trained[0], seed=0, settings={"weight_lr": 0.5}, step="last")


@pytest.mark.parametrize("part", ["state", "record"])
def test_a_copy_serves_for_a_best_checkpoint_that_is_damaged(part, tmp_path):
    writer = checkpoints.Checkpoints(
        tmp_path / "checkpoints" / "a", identity={"runs": [{"method": "a", "seed": 0}]}
    )
    state = {"step": jnp.int32(1), "params": {"w": jnp.arange(3.0)}}
    for step in (1, 2, 3):
        writer.save(step, state | {"step": jnp.int32(step)}, {}, best=1)
    writer.close()
    for name, expected in (("1", True), ("copy-1", False)):
        for path in (tmp_path / "checkpoints" / "a" / name / part).rglob("*"):
            if path.is_file():
                path.write_bytes(b"damaged")
        if expected:
            np.testing.assert_array_equal(ldro_jax.load(tmp_path)["w"], np.arange(3))
        else:
            said = {"state": "state is damaged", "record": "no checkpoint of step 1"}[part]
            with pytest.raises(OSError, match=said):
                ldro_jax.load(tmp_path)


def test_trees_of_any_kind_come_back_as_they_were_made(tmp_path, monkeypatch):
    def init(key, inputs):
        bias = np.zeros(2, np.float32)
        return [jax.random.normal(key, (2, 2)), {"bias": (Bias(bias + 1, bias),)}]

    def apply(params, inputs):
        bias = params[1]["bias"][0]
        return inputs @ params[0] * bias.scale[None] + bias.offset[None]

    data = tiny.data()
    made = problems.classification(
        load_data=lambda data_dir: data, model=lambda num_classes: (init, apply)
    )
    monkeypatch.setattr(reporting, "write_report", lambda *args, **options: None)
    (run,) = tiny.run(tmp_path, problem=made, seeds=(0,)).runs
    # One method and one seed need no name.
    params = ldro_jax.load(tmp_path, step="last", problem=made)
    assert jax.tree.structure(params) == jax.tree.structure(init(jax.random.key(0), None))
    values = made.evaluate(params, "validation")["accuracy"]
    np.testing.assert_allclose(values, accuracy(run, 10), rtol=1e-6)
    with pytest.raises(ValueError, match="problem must be what was trained, but its parameters"):
        ldro_jax.load(tmp_path, step="last", problem=tiny.problem())
