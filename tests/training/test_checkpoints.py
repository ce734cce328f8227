"""Checkpoints: what comes back is what went in, and a damaged one is passed over and kept."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldro_jax.training import checkpoints, processes

RECORD = {"seed": 0, "values": [0.1, None, 1e-30], "name": "L-DRO"}


def state(value):
    return {"step": jnp.int32(value), "params": (jnp.full((3, 2), value / 3),), "empty": ()}


@pytest.fixture
def saved(tmp_path):
    """A directory with checkpoints of the steps 1 and 2."""
    writer = checkpoints.Checkpoints(tmp_path / "saved")
    for value in (1, 2):
        writer.save(value, state(value), RECORD | {"seed": value})
    writer.close()
    return tmp_path / "saved"


def restore(directory):
    reader = checkpoints.Checkpoints(directory)
    try:
        return reader.restore(state(0))
    finally:
        reader.close()


def check(restored, value):
    jax.tree.map(np.testing.assert_array_equal, restored[0], state(value))
    assert restored[0]["params"][0].dtype == jnp.float32
    assert restored[1] == RECORD | {"seed": value}


def test_the_newest_comes_back_whole(saved):
    check(restore(saved), 2)


def test_there_is_none_at_first(tmp_path):
    assert restore(tmp_path / "new") is None


def test_only_the_newest_two_are_kept(saved):
    writer = checkpoints.Checkpoints(saved)
    writer.save(3, state(3), RECORD)
    writer.close()
    assert {path.name for path in saved.iterdir()} == {"2", "3"}


def test_a_checkpoint_outlives_the_buffers_it_was_made_from(tmp_path):
    # The next step is started while the checkpoint is written, and reuses the memory of the state.
    advance = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    writer = checkpoints.Checkpoints(tmp_path)
    current = {"params": jnp.zeros(1_000_000)}
    writer.save(1, current, RECORD)
    for _ in range(5):
        current = advance(current)
    writer.close()
    reader = checkpoints.Checkpoints(tmp_path)
    restored, _ = reader.restore({"params": jnp.ones(1_000_000)})
    reader.close()
    assert not np.asarray(restored["params"]).any()


def _files(directory):
    return sorted(path for path in directory.rglob("*") if path.is_file())


def contents(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in _files(directory)}


def _truncate(checkpoint):
    for path in _files(checkpoint / "state"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _garbage(checkpoint):
    for path in _files(checkpoint):
        path.write_bytes(b"\x00garbage")


def _no_record(checkpoint):
    shutil.rmtree(checkpoint / "record")


def _cut_record(checkpoint):
    for path in _files(checkpoint / "record"):
        path.write_text('{"seed": 2, "val')


def _empty(checkpoint):
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


DAMAGES = [_truncate, _garbage, _no_record, _cut_record, _empty]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.strip("_"))
def test_a_damaged_checkpoint_falls_back_to_the_one_before(saved, damage, caplog):
    damage(saved / "2")
    damaged = contents(saved / "2")
    check(restore(saved), 1)
    assert "The checkpoint of step 2" in caplog.text and "can't be read" in caplog.text
    assert f"is now {saved / 'unreadable-2'}. Falling back" in caplog.text
    assert contents(saved / "unreadable-2") == damaged
    # The run goes on from step 1 and comes to step 2 again.
    writer = checkpoints.Checkpoints(saved)
    writer.save(2, state(2), RECORD | {"seed": 2})
    writer.close()
    check(restore(saved), 2)


def test_without_a_good_one_the_run_starts_again(saved, caplog):
    for name in ("1", "2"):
        _garbage(saved / name)
    assert restore(saved) is None
    assert "step 2" in caplog.text and "step 1" in caplog.text
    assert {path.name for path in saved.iterdir()} == {"unreadable-1", "unreadable-2"}


def test_what_was_moved_aside_stays_however_often_it_happens(saved):
    everything = [contents(saved / "1")]
    for _ in range(3):
        (saved / "2" / "record" / "metadata").write_text("damaged")
        everything.append(contents(saved / "2"))
        writer = checkpoints.Checkpoints(saved)
        check(writer.restore(state(0)), 1)
        # The manager that moved it knows of it: it would not save a step that it has.
        writer.save(2, state(2), RECORD | {"seed": 2})
        writer.close()
        check(restore(saved), 2)
    names = ["1", "unreadable-2", "unreadable-2-2", "unreadable-2-3"]
    assert {path.name for path in saved.iterdir()} == {*names, "2"}
    assert [contents(saved / name) for name in names] == everything


def test_one_that_another_process_cannot_read_is_moved_aside_by_the_first(saved, monkeypatch):
    answers, waited = iter([False, True]), []
    monkeypatch.setattr(processes, "all_agree", lambda readable: readable and next(answers))
    monkeypatch.setattr(processes, "wait_for_all", waited.append)
    check(restore(saved), 1)
    assert waited == ["moved aside"] and (saved / "unreadable-2").is_dir()


def test_only_the_first_process_moves(saved, monkeypatch):
    _garbage(saved / "2")
    before = contents(saved)
    monkeypatch.setattr(processes, "is_first", lambda: False)
    check(restore(saved), 1)
    assert contents(saved) == before


def test_two_at_a_time_have_messages_of_their_own(tmp_path, monkeypatch):
    # Both save the same step, in the background.
    made = []

    def record(directory, options):
        made.append(options.multiprocessing_options.barrier_sync_key_prefix)

    monkeypatch.setattr(checkpoints, "_Manager", record)
    for name in ("latest", "best"):
        checkpoints.Checkpoints(tmp_path / name)
    assert made == ["latest", "best"]
