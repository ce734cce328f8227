"""What a run writes of its evaluation and its machines, kept over restarts."""

import json

import pytest

from ldro_jax.t5x import run_file

CPU = {"device": {"count": 8}, "mesh": {"data": 8}, "versions": {"jax": "0.10.2"}}
GPU = CPU | {"device": {"count": 1}}


def save(folder, step, machine=CPU, tokens=100):
    run_file.save(
        str(folder), step=step, tokens={"b": tokens, "a": 1}, batches={"b": 2, "a": 1},
        machine=machine,
    )  # fmt: skip


def test_another_machine_is_another_entry(tmp_path):
    assert run_file.read(str(tmp_path)) is None
    for step, machine in [(10, CPU), (20, CPU), (30, GPU), (40, GPU), (50, CPU)]:
        save(tmp_path, step, machine, tokens=step)
    found = run_file.read(str(tmp_path))
    assert [m["step"] for m in found.machines] == [10, 30, 50]
    assert found.machines[1]["device"] == {"count": 1}
    assert found.tokens == {"b": 50, "a": 1} and found.batches == {"b": 2, "a": 1}


@pytest.mark.parametrize(
    "text",
    [
        *("", "[1", "[]", '{"format": 1}', '{"format": 1, "tokens": {"a": "x"}}', '{"format": 2}'),
        '{"format": 1, "tokens": {"a": 0}, "batches": {"a": 1}, "machines": []}',
        '{"format": 1, "tokens": {"a": 5}, "batches": {"a": -1}, "machines": []}',
    ],
)
def test_what_is_damaged_is_one_clear_error_and_stops_no_run(tmp_path, text):
    file = tmp_path / "ldro_run.json"
    file.write_text(text)
    with pytest.raises(ValueError, match="ldro_run.json"):
        run_file.read(str(tmp_path))
    save(tmp_path, 10)
    assert [m["step"] for m in run_file.read(str(tmp_path)).machines] == [10]


def test_what_was_altered_is_noticed(tmp_path):
    save(tmp_path, 10)
    file = tmp_path / "ldro_run.json"
    record = json.loads(file.read_text())
    record["tokens"]["a"] = 2
    file.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="not what was written"):
        run_file.read(str(tmp_path))
