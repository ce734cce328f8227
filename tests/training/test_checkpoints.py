"""Checkpoints: what comes back is what went in, and a damaged one is passed over and kept."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldro_jax.records import checkpoints, identity, orbax
from ldro_jax.runtime import processes

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
    restored, *_ = reader.restore({"params": jnp.ones(1_000_000)})
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
    # It has read what another has not; nobody refuses it; the one before is whole for all.
    answers, waited = iter([False, True, True, True]), []
    monkeypatch.setattr(processes, "all_agree", lambda readable: readable and next(answers))
    monkeypatch.setattr(processes, "wait_for_all", waited.append)
    check(restore(saved), 1)
    assert waited == ["moved aside"] and (saved / "unreadable-2").is_dir()


def test_what_another_process_refuses_is_refused_here_and_stays(saved, monkeypatch):
    answers = iter([True, False, False])  # all have read it, and one doesn't take it
    monkeypatch.setattr(processes, "all_agree", lambda holds: holds and next(answers))
    with pytest.raises(checkpoints.RefusedError, match="Another process can't go on from"):
        restore(saved)
    assert (saved / "2").is_dir() and not (saved / "unreadable-2").exists()


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

    monkeypatch.setattr(orbax, "Manager", record)
    for name in ("latest", "best"):
        checkpoints.Checkpoints(tmp_path / name)
    assert made == ["latest", "best"]


def flipped(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(bytes(content))


def large_state(seed):
    rng = np.random.default_rng(seed)
    return {
        "half": jnp.asarray(rng.normal(size=(40, 5)), jnp.bfloat16),
        "params": jnp.asarray(rng.normal(size=(30, 7)), jnp.float32),
        "flags": jnp.asarray(rng.integers(0, 2, 40), bool),
        "step": jnp.int32(seed),
    }


def test_no_flipped_bit_comes_back_unnoticed(tmp_path):
    writer = checkpoints.Checkpoints(tmp_path / "saved")
    for step in (1, 2):
        writer.save(step, large_state(step), RECORD | {"seed": step})
    writer.close()
    rng = np.random.default_rng(0)
    files = [path for path in _files(tmp_path / "saved" / "2") if path.stat().st_size]
    kept = 0
    for trial in range(60):
        directory = tmp_path / str(trial)
        shutil.copytree(tmp_path / "saved", directory)
        chosen = rng.choice(files).relative_to(tmp_path / "saved")
        flipped(directory / chosen, int(rng.integers(2**20)))
        reader = checkpoints.Checkpoints(directory)
        restored, record, _ = reader.restore(large_state(0))
        reader.close()
        assert record == RECORD | {"seed": int(restored["step"])}
        jax.tree.map(np.testing.assert_array_equal, restored, large_state(int(restored["step"])))
        kept += int(restored["step"]) == 2
    # Some bits are of no use; the others cost the checkpoint.
    assert 0 < kept < 60


def test_sums_over_bits_are_those_of_numpy():
    state = large_state(3)
    words = {
        "half": np.asarray(state["half"]).view(np.uint16),
        "params": np.asarray(state["params"]).view(np.uint32),
        "flags": np.asarray(state["flags"]).astype(np.uint8),
        "step": np.asarray(state["step"]).view(np.uint32),
    }
    expected = []
    for name in sorted(state):
        bits, place = words[name].reshape(-1).astype(int), np.arange(words[name].size)
        factors = (2 * place + 1, place * 2654435761 % 2**32 | 1)
        expected.append(
            [sum(int(b) * int(f) for b, f in zip(bits, f, strict=True)) % 2**32 for f in factors]
        )
    assert identity.digest(state) == expected


def test_wide_numbers_are_summed_too():
    with jax.enable_x64(True):
        state = {"a": jnp.arange(5.0), "b": jnp.arange(4)}
        assert state["a"].dtype == jnp.float64
        found = identity.digest(state)
        changed = {
            "a": state["a"].at[3].set(np.nextafter(3.0, 4)),
            "b": state["b"].at[0].set(2**40),
        }
        assert all(x != y for x, y in zip(identity.digest(changed), found, strict=True))


def test_sums_are_the_same_on_many_devices():
    mesh = jax.make_mesh((4, 2), ("a", "b"))
    array = jax.random.normal(jax.random.key(0), (8, 6))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("a", "b"))
    assert identity.digest([jax.device_put(array, spec)]) == identity.digest([array])


def test_the_best_is_kept_and_restored(tmp_path):
    writer = checkpoints.Checkpoints(tmp_path)
    for step in range(1, 6):
        writer.save(step, state(step), RECORD, best=min(step, 2))
    writer.close()
    reader = checkpoints.Checkpoints(tmp_path)
    assert list(reader.steps) == [2, 4, 5]
    assert reader.restore(state(0))[0]["step"] == 5
    assert reader.restore_best(state(0))["step"] == 2
    _garbage(tmp_path / "2")
    assert reader.restore_best(state(0))["step"] == 2
    for name in ("2", "copy-2"):
        _garbage(tmp_path / name)
    with pytest.raises(OSError, match=r"best step, 2, in .* can't be read any more. Run the same"):
        reader.restore_best(state(0))
    reader.close()


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.strip("_"))
def test_the_best_is_there_twice(damage, tmp_path, caplog):
    writer = checkpoints.Checkpoints(tmp_path)
    for step, best in [(1, 1), (2, 2), (3, 2), (4, 2)]:
        writer.save(step, state(step), RECORD, best=best)
    writer.close()
    # Only that of the best, and nothing half made.
    assert {path.name for path in tmp_path.iterdir()} == {"2", "3", "4", "copy-2"}
    whole = contents(tmp_path / "2")
    damage(tmp_path / "2")
    (tmp_path / ".ldro_jax-copy-2").mkdir()  # what a killed process left
    reader = checkpoints.Checkpoints(tmp_path)
    assert reader.restore(state(0))[0]["step"] == 4 and reader.restore_best(state(0))["step"] == 2
    assert f"step 2 is now {tmp_path / 'unreadable-2'}" in caplog.text
    assert contents(tmp_path / "2") == whole
    # The next best has the one copy.
    for step, best in [(5, 5), (6, 5)]:
        reader.save(step, state(step), RECORD, best=best)
    reader.close()
    assert {path.name for path in tmp_path.iterdir()} == {"5", "6", "copy-5", "unreadable-2"}


def test_the_best_outlives_a_kill_while_a_better_one_is_written(tmp_path, monkeypatch):
    writer = checkpoints.Checkpoints(tmp_path)
    for step, best in [(1, 1), (2, 1), (3, 1)]:
        writer.save(step, state(step), RECORD, best=best)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(writer._manager, "save", _killed)
        writer.save(4, state(4), RECORD, best=4)
    shutil.rmtree(tmp_path / "copy-1")
    reader = checkpoints.Checkpoints(tmp_path)
    assert reader.restore(state(0))[0]["step"] == 3 and reader.restore_best(state(0))["step"] == 1
    reader.close()


def _killed(*args, **options):
    raise KeyboardInterrupt


def test_a_copy_that_can_not_be_made_is_told(tmp_path, monkeypatch, caplog):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    writer = checkpoints.Checkpoints(tmp_path)
    for step in (1, 2):
        writer.save(step, state(step), RECORD, best=1)
    writer.close()
    assert f"{tmp_path / 'copy-1'} can't be made (No space left on device)" in caplog.text


def test_none_was_the_best(saved):
    reader = checkpoints.Checkpoints(saved)
    check(reader.restore(state(0)), 2)
    assert reader.restore_best(state(0)) is None
    reader.close()


def test_without_its_best_a_checkpoint_is_not_gone_on_from(tmp_path, caplog):
    writer = checkpoints.Checkpoints(tmp_path, keep=3)
    for step, best in [(1, 1), (2, 1), (3, 3), (4, 3)]:
        writer.save(step, state(step), RECORD, best=best)
    writer.close()
    for name in ("3", "copy-3"):
        _garbage(tmp_path / name)
    reader = checkpoints.Checkpoints(tmp_path, keep=3)
    # Nor from step 2, whose best, that of step 1, was not kept for it.
    assert reader.restore(state(0)) is None
    assert "step 4 can't be used: the best one of its run, of step 3" in caplog.text
    reader.close()


def test_what_belongs_to_a_checkpoint_is_restored_with_it(saved, caplog):
    reader, asked = checkpoints.Checkpoints(saved), []

    def place(step, record):
        asked.append(step)
        if step == 2:
            raise OSError("the place is gone")

    check(reader.restore(state(0), place), 1)
    reader.close()
    assert asked == [2, 1] and "step 2" in caplog.text and "the place is gone" in caplog.text


def test_nothing_is_restored_with_an_array_that_was_altered(saved, monkeypatch):
    # What belongs to it, the place in a stream of text, would stay there when the run starts again.
    digests, asked = iter([[[0, 0]]]), []
    real = identity.digest
    monkeypatch.setattr(identity, "digest", lambda state: next(digests, None) or real(state))
    reader = checkpoints.Checkpoints(saved)
    check(reader.restore(state(0), lambda step, record: asked.append(step)), 1)
    reader.close()
    assert asked == [1]


def test_other_data_is_refused_and_nothing_is_moved(tmp_path):
    one, other = ({"data": {"sizes": [1, 2], "content": name}} for name in "ab")
    writer = checkpoints.Checkpoints(tmp_path / "saved", identity=one)
    for step in (1, 2, 3):  # the best is none of the newest two
        writer.save(step, state(step), RECORD, best=1)
    writer.close()
    before = contents(tmp_path)
    assert {"/".join(name.split("/")[:2]) for name in before} >= {"saved/1", "saved/2", "saved/3"}
    reader = checkpoints.Checkpoints(tmp_path / "saved", identity=other)
    with pytest.raises(ValueError, match="made with other data: content was a, now it is b"):
        reader.restore(state(0))
    reader.close()
    assert contents(tmp_path) == before


def test_another_structure_is_refused_and_named(saved):
    before = contents(saved)
    reader = checkpoints.Checkpoints(saved)
    other = state(0) | {"params": (jnp.zeros((3, 4)),)}
    with pytest.raises(
        ValueError, match=r"\['params'\]\[0\] is float32\[3, 2\] in it, but float32\[3, 4\]"
    ):
        reader.restore(other)
    with pytest.raises(ValueError, match=r"\['new'\] is not there in it"):
        reader.restore(state(0) | {"new": jnp.zeros(1)})
    reader.close()
    assert contents(saved) == before


def test_a_full_disk_is_one_message(tmp_path, monkeypatch):
    writer = checkpoints.Checkpoints(tmp_path)

    def full(*args, **options):
        raise ValueError(
            "RESOURCE_EXHAUSTED: Error writing x [OS error 28: No space left on device]"
        )

    monkeypatch.setattr(writer._manager, "save", full)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}'"):
        writer.save(1, state(1), RECORD)
    writer.close()


def test_another_tree_of_the_same_arrays_is_another_optimizer_and_no_damage(saved):
    before = contents(saved)
    reader = checkpoints.Checkpoints(saved)
    with pytest.raises(ValueError, match="another model, optimizer or version .* the tree is"):
        reader.restore(state(0) | {"empty": ((),)})
    reader.close()
    assert contents(saved) == before
