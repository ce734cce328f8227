"""The record survives saving and loading; broken files are explained."""

import base64
import dataclasses
import io
import json
import math
import os
import pathlib

import numpy as np
import pytest

from ldro_jax.records import json_types, results
from ldro_jax.records.results import Results, ResultsError, Run, Series

NAMES = ["a", "b", "c"]


def plain(value):
    """Nested lists and dictionaries that compare equal, to the digits that are kept.

    Without where a record was found, which is no part of it.
    """
    if dataclasses.is_dataclass(value):
        fields = (f.name for f in dataclasses.fields(value) if f.compare)
        return {name: plain(getattr(value, name)) for name in fields}
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return pytest.approx(value, rel=6e-6, abs=0, nan_ok=True)
    return int(value) if isinstance(value, np.integer) else value


def numbers(value):
    """The same without a tolerance, so that it can be compared with the other."""
    if isinstance(value, dict):
        return {k: numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [numbers(v) for v in value]
    return value.expected if hasattr(value, "expected") else value


def test_the_worst_is_the_lowest_accuracy_and_the_highest_loss():
    accuracy = results.summarise_evaluation(7, "test", "accuracy", NAMES, [0.5, 0.25, 0.75], True)
    assert (accuracy.average, accuracy.worst, accuracy.worst_task) == (0.5, 0.25, "b")
    loss = results.summarise_evaluation(7, "test", "loss", NAMES, [0.5, 0.25, 0.75], False)
    assert (loss.average, loss.worst, loss.worst_task) == (0.5, 0.75, "c")
    assert loss.per_task == {"a": 0.5, "b": 0.25, "c": 0.75}


def test_of_equal_worst_values_the_first_is_named():
    assert results.summarise_evaluation(1, "t", "m", NAMES, [2, 1, 1], True).worst_task == "b"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("higher_is_better", [True, False])
def test_a_value_that_is_not_finite_is_the_worst(bad, higher_is_better):
    entry = results.summarise_evaluation(1, "t", "m", NAMES, [1, bad, 3], higher_is_better)
    assert entry.worst_task == "b"
    assert math.isnan(entry.worst) and math.isnan(entry.average)


@pytest.mark.parametrize("values", [[1, 2], [[1, 2, 3]], []])
def test_one_value_per_task_is_required(values):
    with pytest.raises(ValueError, match="one value for each of the 3 tasks"):
        results.summarise_evaluation(1, "t", "m", NAMES, values, True)


def test_a_series_needs_one_value_per_step():
    with pytest.raises(ValueError, match=r"2 steps and values of shape \(3, 1\)"):
        Series([0, 1], [[1], [2], [3]])


def by_hand(path):
    """A record as somebody would edit it, who takes the checksum out."""
    record = json.loads(path.read_text())
    del record["checksum"]
    return record


def test_a_record_survives_the_round_trip(full, tmp_path):
    path = results.save_results(full, tmp_path / "new" / "results.json")
    assert numbers(plain(results.load_results(path))) == plain(full)
    assert os.listdir(path.parent) == ["results.json"]


def test_numbers_are_compact_and_not_finite_ones_become_null(made_up, tmp_path):
    entry = made_up.evaluation(5, [1 / 3, math.inf])
    weights = Series([0], [[np.nan, 0.5]])
    run = Run("m", 0, 5, {"rate": np.float32(0.1), "k": np.int64(3)}, math.nan, [entry], weights)
    path = results.save_results(made_up.results([run]), tmp_path / "results.json")
    record = by_hand(path)
    stored = record["runs"][0]
    assert record["format"] == 2
    assert stored["hyperparameters"] == {"rate": 0.1, "k": 3}
    assert stored["seconds_per_step"] is None
    assert stored["evaluations"]["average"] == [None]
    # Whoever has NumPy alone can read the rest.
    file = np.load(io.BytesIO(base64.b64decode(stored["arrays"])))
    assert set(file) == {"per_task/0", "weights/steps", "weights/values"}
    assert stored["evaluations"]["per_task"] == [0]
    assert stored["per_task"] == [["task 0", "task 1"]]
    np.testing.assert_array_equal(file["per_task/0"], np.float32([[1 / 3, np.nan]]))
    np.testing.assert_array_equal(file["weights/values"], [[np.nan, 0.5]])
    loaded = results.load_results(path).runs[0]
    assert math.isnan(loaded.evaluations[0].per_task["task 1"])
    assert math.isnan(loaded.weights.values[0, 0])


def test_a_record_of_format_1_had_all_numbers_in_json_and_is_read(full, tmp_path):
    run = dataclasses.replace(full.runs[-1], evaluations=list(full.runs[-1].evaluations))
    run.evaluations[0] = dataclasses.replace(run.evaluations[0], per_task={})
    record = dataclasses.replace(full, runs=[run, dataclasses.replace(run, weights=None)])
    (tmp_path / "old.json").write_text(json.dumps({"format": 1, **json_types.plain(record)}))
    assert numbers(plain(results.load_results(tmp_path / "old.json"))) == plain(record)


@pytest.mark.parametrize(
    "name",
    [
        "cifar100",
        pytest.param("digits", marks=pytest.mark.heavy),
        pytest.param("digits_methods", marks=pytest.mark.heavy),
        "multilingual_lm",
    ],
)
def test_the_records_beside_the_code_survive_the_round_trip(name, tmp_path):
    file = pathlib.Path(__file__).parents[2] / "results" / name / "results.json"
    record = results.load_results(file)
    path = results.save_results(record, tmp_path / "results.json")
    assert numbers(plain(results.load_results(path))) == plain(record)
    assert path.stat().st_size < 1.01 * file.stat().st_size


def test_numbers_survive_to_the_bit_that_float32_has_and_with_seven_digits_others(tmp_path):
    single = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32).astype(np.float64)
    for values, rtol in [(single, 0), (single / 3, 1e-7), (single * 1e300, 0), (single * 1e-42, 0)]:
        per_task = [
            results.summarise_evaluation(i, "test", "m", NAMES, row, True)
            for i, row in enumerate(values)
        ]
        run = Run("m", 0, 1, evaluations=per_task, weights=Series(range(40), values))
        path = results.save_results(Results("x", NAMES, "m", True, [run]), tmp_path / "a.json")
        (found,) = results.load_results(path).runs
        np.testing.assert_allclose(found.weights.values, values, rtol=rtol)
        per_task = [list(e.per_task.values()) for e in found.evaluations]
        np.testing.assert_array_equal(per_task, found.weights.values)


def test_evaluations_of_other_tasks_keep_their_order_and_names(tmp_path):
    values = [{"a": 1.0, "b": 2.0}, {}, {"c": 3.0}, {"a": 4.0, "b": 5.0}, {}, {"b": 6.0, "a": 7.0}]
    evaluations = [
        results.Evaluation(i, "test", "m", per_task, 0.5, 0.25, "a")
        for i, per_task in enumerate(values)
    ]
    run = Run("m", 0, 1, evaluations=evaluations)
    path = results.save_results(Results("x", NAMES, "m", True, [run]), tmp_path / "results.json")
    (found,) = results.load_results(path).runs
    assert [list(e.per_task.items()) for e in found.evaluations] == [
        list(per_task.items()) for per_task in values
    ]
    assert list(found.evaluations) == evaluations


def damaged(text, change):
    """The text of arrays with some damage to it."""
    if change == "short":
        return text[: len(text) // 2]
    if change == "other":
        return "not arrays"
    content = bytearray(base64.b64decode(text))
    content[content.index(b".npy") + 200] ^= 1  # among the numbers
    return base64.b64encode(bytes(content)).decode()


@pytest.mark.parametrize("change", ["short", "other", "bit", "gone"])
def test_damaged_arrays_are_found_even_without_a_checksum(change, made_up, tmp_path):
    path = results.save_results(made_up.record(NAMES), tmp_path / "results.json")
    record = by_hand(path)
    run = record["runs"][1]
    if change == "gone":
        del run["arrays"]
    else:
        run["arrays"] = damaged(run["arrays"], change)
    path.write_text(json.dumps(record))
    with pytest.raises(ResultsError, match="does not fit"):
        results.load_results(path)


def test_what_many_evaluations_of_many_tasks_take():
    # A figure of its own is in benchmarks/records.py; here, that nothing holds a name for each
    # number, as format 1 did.
    rng, names = np.random.default_rng(0), [f"a task with a long name, {i}" for i in range(50)]
    values = rng.normal(size=(200, 50)).astype(np.float32)
    evaluations = [
        results.summarise_evaluation(i, "test", "m", names, row, True)
        for i, row in enumerate(values)
    ]
    record = results.run_to_record(Run("m", 0, 1, evaluations=evaluations))
    assert len(json.dumps(record)) < 200 * 50 * 7


def test_a_single_run_survives_a_checkpoint(full):
    for run in full.runs[::4]:
        record = json.loads(json.dumps(results.run_to_record(run), allow_nan=False))
        assert numbers(plain(results.run_from_record(record))) == plain(run)


def test_an_unusual_hyperparameter_is_kept_as_text(made_up, tmp_path):
    run = Run("m", 0, 1, {"schedule": complex(1, 2), "shape": (2, 3)})
    path = results.save_results(made_up.results([run]), tmp_path / "results.json")
    assert results.load_results(path).runs[0].hyperparameters == {
        "schedule": "(1+2j)",
        "shape": [2, 3],
    }


def test_a_failed_write_leaves_the_old_file(made_up, tmp_path, monkeypatch):
    path = results.save_results(made_up.results([]), tmp_path / "results.json")
    before = path.read_text()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        results.save_results(made_up.results([], description="new"), path)
    assert path.read_text() == before
    assert os.listdir(tmp_path) == ["results.json"]


def test_a_missing_file_is_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match="Expected a results file at .*found none"):
        results.load_results(tmp_path / "results.json")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b'{"format": 1, "runs": [{"met'])
def test_a_damaged_file_is_explained(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(ResultsError, match="Expected JSON in .*damaged"):
        results.load_results(path)


def test_a_record_that_was_altered_is_explained(made_up, tmp_path):
    path = results.save_results(made_up.results([]), tmp_path / "results.json")
    text = path.read_text()
    for place in range(0, len(text) - 1, 7):
        flipped = text[:place] + chr(ord(text[place]) ^ 1) + text[place + 1 :]
        path.write_text(flipped)
        try:
            # A bit of the name of the checksum is of no use.
            assert numbers(plain(results.load_results(path))) == plain(made_up.results([]))
        except ResultsError as error:
            assert str(path) in str(error)
    path.write_text(text.replace('"loss"', '"lost"').replace('"accuracy"', '"accuracx"'))
    with pytest.raises(ResultsError, match='its checksum is another.*take "checksum" out of it'):
        results.load_results(path)
    # A NaN is no JSON, but Python reads it.
    path.write_text(text.replace('"runs":[]', '"runs":[NaN]'))
    with pytest.raises(ResultsError, match="its checksum is another"):
        results.load_results(path)


def test_the_order_of_the_keys_makes_no_difference(made_up, tmp_path):
    path = results.save_results(made_up.results([]), tmp_path / "results.json")
    record = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(record.items())), indent=1))
    assert numbers(plain(results.load_results(path))) == plain(made_up.results([]))


@pytest.mark.parametrize("record, found", [({"format": 3}, "3"), ({}, "None"), ([1], "'list'")])
def test_another_format_is_explained(tmp_path, record, found):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(record))
    with pytest.raises(ResultsError, match=f"format 1 or 2 in .*found format {found}.*version"):
        results.load_results(path)


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda r: r.pop("runs"), "'runs'"),
        (lambda r: r.pop("metric"), "metric"),
        (lambda r: r["runs"][0].pop("method"), "method"),
        (lambda r: r["runs"][0]["evaluations"].pop("worst"), "'worst'"),
        (lambda r: r["runs"][0]["evaluations"]["worst"].append(1), "longer"),
        (lambda r: r["runs"][0].update(weights={"steps": [1, 2], "values": [[1]]}), "2 steps"),
        (lambda r: r.update(runs=3), "int"),
    ],
)
def test_an_incomplete_record_says_which_part(made_up, tmp_path, change, named):
    path = tmp_path / "results.json"
    results.save_results(made_up.results([made_up.run("m", 0, [0.1, 0.2])]), path)
    record = by_hand(path)
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(ResultsError, match=f"does not fit.*{named}"):
        results.load_results(path)


def test_an_unknown_key_is_ignored(tmp_path):
    path = tmp_path / "results.json"
    results.save_results(Results("x", NAMES, "loss", False, [Run("m", 0, 1)]), path)
    record = by_hand(path)
    record["added_later"] = record["runs"][0]["added_later"] = 1
    path.write_text(json.dumps(record))
    assert results.load_results(path).runs[0].method == "m"


def test_references_and_sizes_survive_and_a_missing_number_is_nan(tmp_path):
    record = Results(
        "x",
        NAMES,
        "perplexity",
        False,
        [],
        references={"test": {"a": np.float32(12.5), "b": math.inf}, "validation": {}},
        task_sizes={"a": np.int64(1234567890123), "b": math.nan},
        select_by="average",
    )
    path = results.save_results(record, tmp_path / "results.json")
    assert json.loads(path.read_text())["references"]["test"] == {"a": 12.5, "b": None}
    found = results.load_results(path)
    assert found.references["test"]["a"] == 12.5 and math.isnan(found.references["test"]["b"])
    assert found.references["validation"] == {}
    assert found.task_sizes["a"] == 1234567890123 and math.isnan(found.task_sizes["b"])
    assert found.select_by == "average"


def test_a_record_from_before_there_were_references_is_read(tmp_path):
    path = results.save_results(Results("x", NAMES, "m", True, []), tmp_path / "results.json")
    record = by_hand(path)
    for name in ("references", "task_sizes", "select_by"):
        record.pop(name)
    path.write_text(json.dumps(record))
    found = results.load_results(path)
    assert (found.references, found.task_sizes, found.select_by) == ({}, {}, "worst")


def test_a_run_from_before_failures_of_solvers_were_counted_is_read(made_up, tmp_path):
    run = made_up.run("m", 0, [0.1, 0.2])
    path = results.save_results(made_up.results([run]), tmp_path / "results.json")
    record = by_hand(path)
    assert record["runs"][0].pop("unsolved_steps") == 0
    path.write_text(json.dumps(record))
    assert results.load_results(path).runs[0].unsolved_steps == 0


def test_a_setting_is_selected_by_the_worst_task_or_the_average(tmp_path):
    with pytest.raises(ValueError, match="'worst' or 'average'; found 'best'"):
        Results("x", NAMES, "m", True, [], select_by="best")
    path = results.save_results(Results("x", NAMES, "m", True, []), tmp_path / "results.json")
    path.write_text(json.dumps(by_hand(path)).replace('"worst"', '"best"'))
    with pytest.raises(ResultsError, match="does not fit.*found 'best'"):
        results.load_results(path)


@pytest.mark.parametrize("change", [{"references": [1]}, {"task_sizes": {"a": "many"}}])
def test_references_of_another_kind_are_explained(tmp_path, change):
    path = results.save_results(Results("x", NAMES, "m", True, []), tmp_path / "results.json")
    path.write_text(json.dumps({**by_hand(path), **change}))
    with pytest.raises(ResultsError, match="does not fit"):
        results.load_results(path)


def test_a_record_shows_itself_in_short():
    def run(seed, *values, split="test", step=9, **options):
        made = [results.summarise_evaluation(step, split, "accuracy", NAMES, values, True)]
        early = results.summarise_evaluation(3, split, "accuracy", NAMES, [0, 0, 0], True)
        return Run("a <b>", seed, 9, evaluations=[*made, early], **options)

    two = [run(0, 0.5, 0.25, 0.75), run(1, 0.7, 0.35, 0.75), run(2, 1, 1, 1, stopped="diverged")]
    grid = [dataclasses.replace(two[0], method="c", hyperparameters={"r": i}) for i in range(40)]
    steps = np.arange(5000)
    weights = Series(steps, np.ones((5000, 3)))
    long = [dataclasses.replace(r, weights=weights) for r in (*two, *grid)]
    record = Results("toy", NAMES, "accuracy", True, long)
    assert repr(record) == "<Results 'toy': 2 methods, 43 runs, 3 tasks, accuracy>"
    page, lines = record._repr_html_(), str(record).splitlines()
    assert lines[0] == "toy: accuracy on test"
    assert lines[3].split() == ["a", "<b>", "0.55", "0.3", "0.0", "2", "of", "3"]
    # (−1/6 − 1/6 + 0) / 3 of the means of a.
    assert lines[4].split() == ["c", "(r=0)", "0.5", "0.25", "-11.1", "1", "of", "1"]
    assert lines[-2] == "and 21 more settings" and "to a <b>, in %" in lines[-1]
    row = "<tr><td>a &lt;b&gt;</td><td>0.55</td><td>0.3</td><td>0.0</td><td>2 of 3</td></tr>"
    assert row in page and "and 21 more settings" in page
    assert max(map(len, (repr(long[0]), repr(weights), page, str(record)))) < 4000
    validation = Results("toy", NAMES, "accuracy", True, [run(0, 1, 1, 1, split="validation")])
    assert "on validation" in str(validation)
    assert str(Results("empty", NAMES, "accuracy", True, [])).startswith("empty: accuracy on test")
    unknown = Results("toy", NAMES, "loss", False, two)
    assert str(unknown).splitlines()[3].split() == ["a", "<b>", "–", "–", "0", "of", "3"]
