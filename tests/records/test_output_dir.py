"""The output directory: what is refused, deleted and left alone, and who may write there."""

import errno
import os
import pathlib
import re
import subprocess
import sys

import pytest

from ldro_jax.records import identity, output_dir, results
from ldro_jax.records.output_dir import OutputDir
from ldro_jax.runtime import paths, processes

CONFIG = "x = 1\nrun.experiment = @a\n"
OTHER = "x = 2\ny = 1\nrun.experiment = @a\n"
RECORD = results.Results("tiny", ["a"], "accuracy", True, [])


def snapshot(directory):
    """All files by name, but for the lock."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.name.startswith(paths.TEMPORARY)
    }


def claim(directory, text=CONFIG, **options):
    output = OutputDir(directory, text, **options)
    output.check()
    output.claim()
    output.close()


def unfinished(directory, text=CONFIG):
    """An experiment that was interrupted, beside something that is not part of it."""
    for name in ("runs/a.json", "checkpoints/a/10/state", "thesis.txt", "figures.txt"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(name)
    (directory / "config.gin").write_text(text)
    return directory


def finished(directory):
    unfinished(directory)
    results.save_results(RECORD, directory / "results.json")
    (directory / "report.html").write_text("report")
    return directory


def test_a_new_directory_is_made_with_its_configuration_when_it_is_claimed(tmp_path):
    output = OutputDir(tmp_path / "a" / "b", CONFIG)
    output.check()
    assert not list(tmp_path.iterdir())
    output.claim()
    output.close()
    assert output.path.is_absolute()
    assert snapshot(tmp_path) == {"a/b/config.gin": CONFIG.encode()}


def test_an_unfinished_experiment_goes_on_and_nothing_is_written(tmp_path):
    before = snapshot(unfinished(tmp_path))
    times = (tmp_path / "config.gin").stat()
    claim(tmp_path)
    assert snapshot(tmp_path) == before
    assert (tmp_path / "config.gin").stat() == times


def test_another_configuration_is_written_when_its_runs_are_accepted(tmp_path):
    before = snapshot(unfinished(tmp_path))
    claim(tmp_path, OTHER)
    assert snapshot(tmp_path) == before
    with output_dir.going_on(tmp_path, OTHER) as accept:
        assert snapshot(tmp_path) == before
        accept()
    assert snapshot(tmp_path) == before | {"config.gin": OTHER.encode()}


def test_a_refusal_names_the_lines_in_which_configurations_differ(tmp_path):
    before = snapshot(unfinished(tmp_path))
    error = identity.OtherRunError("It is another.")
    differ = "It is another. The configurations differ: x = 1 there, x = 2; y = 1 now."
    for text, message in [(CONFIG, "It is another."), (OTHER, differ)]:
        with pytest.raises(identity.OtherRunError) as raised, output_dir.going_on(tmp_path, text):
            raise error
        assert str(raised.value) == message
    assert snapshot(tmp_path) == before


def test_lines_of_one_name_come_first(tmp_path):
    words = "".join(f"word {number}\n" for number in range(9))
    unfinished(tmp_path, f"{CONFIG}{words}# rate = 1\n")
    other = output_dir.going_on(tmp_path, f"{CONFIG}# rate = 2\n")
    with pytest.raises(identity.OtherRunError) as raised, other:
        raise identity.OtherRunError("Another.")
    there, now = str(raised.value).split(" there, ")
    assert there.startswith("Another. The configurations differ: rate = 1; word 0; word 1; word 2")
    assert there.endswith("and 6 more lines") and now == "rate = 2 now."


def test_a_finished_experiment_is_known(tmp_path):
    before = snapshot(finished(tmp_path))
    assert output_dir.finished(tmp_path, CONFIG).experiment == "tiny"
    assert output_dir.finished(tmp_path, OTHER) is None
    assert snapshot(tmp_path) == before


def test_a_finished_experiment_without_its_report_is_to_be_reported_again(tmp_path):
    (finished(tmp_path) / "report.html").unlink()
    assert output_dir.finished(tmp_path, CONFIG) is None


@pytest.mark.parametrize("text", ["learning_rate: 0.1\n", "any words"])
def test_a_configuration_of_any_kind_is_known_again(text, tmp_path):
    for _ in range(2):
        claim(tmp_path, text)
        assert (tmp_path / "config.gin").read_text().endswith(text)
    with output_dir.going_on(tmp_path, text) as accept:
        before = (tmp_path / "config.gin").stat()
        accept()
    assert (tmp_path / "config.gin").stat() == before


def test_results_that_are_damaged_are_moved_aside_and_made_again(tmp_path):
    file = finished(tmp_path) / "results.json"
    damaged = file.read_bytes().replace(b"tiny", b"tinz")
    file.write_bytes(damaged)
    claim(tmp_path)
    assert not file.exists() and (tmp_path / "unreadable-results.json").read_bytes() == damaged


@pytest.mark.parametrize("text", ["", CONFIG])
def test_an_empty_configuration_beside_checkpoints_is_repaired(tmp_path, text):
    unfinished(tmp_path, text)
    claim(tmp_path)
    assert (tmp_path / "config.gin").read_text() == CONFIG


def test_what_a_killed_process_left_is_no_obstacle(tmp_path):
    (tmp_path / f"{paths.TEMPORARY}config.gin.abc").write_text("x =")
    (tmp_path / f"{paths.TEMPORARY}lock").write_text("")
    claim(tmp_path)
    assert (tmp_path / "config.gin").read_text() == CONFIG


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"thesis.txt": "precious"}, "holds files, but no experiment"),
        # Another program's, such as T5X's.
        ({"config.gin": "train.total_steps = 5\n"}, r"no experiment \(no config.gin of one\)"),
    ],
)
@pytest.mark.parametrize("step", ["check", "claim"])
def test_what_is_there_is_refused_and_left_alone(files, message, step, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    before = snapshot(tmp_path)
    with pytest.raises(FileExistsError, match=re.compile(message, re.DOTALL)):
        getattr(OutputDir(tmp_path, CONFIG), step)()
    assert snapshot(tmp_path) == before and not (tmp_path / f"{paths.TEMPORARY}lock").exists()


def test_overwriting_deletes_what_experiments_write_and_nothing_else(tmp_path):
    finished(tmp_path)
    output = OutputDir(tmp_path, OTHER, overwrite=True)
    before = snapshot(tmp_path)
    output.check()
    assert snapshot(tmp_path) == before
    output.claim()
    output.close()
    assert snapshot(tmp_path) == {
        "config.gin": OTHER.encode(),
        "thesis.txt": b"thesis.txt",
        "figures.txt": b"figures.txt",
    }


@pytest.mark.parametrize("files", [{"thesis.txt": "a"}, {"config.gin": "train.steps = 5\n"}])
def test_overwriting_needs_an_experiment(files, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    before = snapshot(tmp_path)
    with pytest.raises(FileExistsError, match="no experiment"):
        claim(tmp_path, overwrite=True)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("failing", range(5))
def test_overwriting_can_be_interrupted_anywhere(tmp_path, monkeypatch, failing):
    finished(tmp_path)
    left, remove = [failing], paths.remove

    def remove_some(path):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        remove(path)

    monkeypatch.setattr(paths, "remove", remove_some)
    with pytest.raises(KeyboardInterrupt):
        claim(tmp_path, OTHER, overwrite=True)
    assert (tmp_path / "config.gin").read_text() == CONFIG
    monkeypatch.undo()
    claim(tmp_path, OTHER, overwrite=True)
    assert snapshot(tmp_path) == {
        "config.gin": OTHER.encode(),
        "thesis.txt": b"thesis.txt",
        "figures.txt": b"figures.txt",
    }


def test_links_are_deleted_and_what_they_point_to_stays(tmp_path):
    elsewhere = finished(tmp_path / "elsewhere")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    output = tmp_path / "link"
    (output / "config.gin").write_text(CONFIG)
    for name in ("checkpoints", "report.html"):
        (output / name).symlink_to(elsewhere / name)
    (output / "runs").symlink_to(tmp_path / "nowhere")
    before = snapshot(elsewhere)
    claim(output, OTHER, overwrite=True)
    assert snapshot(elsewhere) == before and output.is_symlink()
    assert {p.name for p in output.iterdir()} == {"config.gin", f"{paths.TEMPORARY}lock"}


def test_a_mount_point_is_emptied(tmp_path, monkeypatch):
    finished(tmp_path)
    mounted = tmp_path / "checkpoints"
    monkeypatch.setattr(os.path, "ismount", lambda path: pathlib.Path(path) == mounted)
    claim(tmp_path, OTHER, overwrite=True)
    assert mounted.is_dir() and not list(mounted.iterdir())


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name_is_refused(name):
    with pytest.raises(ValueError, match="^output_dir is empty. Is it a variable that isn't set"):
        OutputDir(name, CONFIG)


def test_a_place_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(PermissionError, match="can't be written to .Not a directory"):
        OutputDir(tmp_path / "file" / "o", CONFIG).claim()
    with pytest.raises(FileExistsError, match="is a file. Choose a directory"):
        OutputDir(tmp_path / "file", CONFIG).check()


@pytest.mark.skipif(not pathlib.Path("/proc/self").exists(), reason="needs Linux")
def test_a_read_only_place_is_refused_for_root_too():
    with pytest.raises(PermissionError, match="can't be written to"):
        claim(pathlib.Path("/proc/self/o"))


def _link(lock, victim):
    lock.symlink_to(victim)


def _hard_link(lock, victim):
    lock.hardlink_to(victim)


def _pipe(lock, victim):
    os.mkfifo(lock)


def _dangling(lock, victim):
    lock.symlink_to(victim.with_name("new"))


@pytest.mark.skipif(sys.platform == "win32", reason="needs O_NOFOLLOW")
@pytest.mark.parametrize("put", [_link, _hard_link, _pipe, _dangling], ids=lambda f: f.__name__)
@pytest.mark.parametrize("step", ["check", "claim"])
def test_what_stands_in_place_of_the_lock_is_left_alone(put, step, tmp_path):
    victim = tmp_path / "thesis.txt"
    victim.write_text("precious")
    output = unfinished(tmp_path / "o")
    put(output / f"{paths.TEMPORARY}lock", victim)
    with pytest.raises(FileExistsError, match="isn't a plain file. Delete it if no process does"):
        getattr(OutputDir(output, CONFIG), step)()
    assert victim.read_text() == "precious" and not (tmp_path / "new").exists()


def test_the_lock_of_another_user_is_not_written_over(tmp_path, monkeypatch):
    output = unfinished(tmp_path / "o")
    lock = output / f"{paths.TEMPORARY}lock"
    lock.write_text("theirs")
    real = os.getuid()
    monkeypatch.setattr(os, "geteuid", lambda: real + 1)
    # The directory is theirs too, such as one that a group shares: so is the lock.
    assert OutputDir(output, CONFIG).check() is None
    stat = pathlib.Path.stat

    def ours(path, **options):
        found = list(stat(path, **options))
        found[4] = real + 1
        return os.stat_result(found)

    monkeypatch.setattr(pathlib.Path, "stat", ours)
    with pytest.raises(FileExistsError, match="belongs to another user. Delete it"):
        OutputDir(output, CONFIG).check()
    assert lock.read_text() == "theirs"


@pytest.mark.skipif(sys.platform == "win32", reason="needs permissions")
@pytest.mark.parametrize("umask", [0o002, 0o077])
def test_files_are_as_readable_as_the_user_wants_them(umask, tmp_path):
    before = os.umask(umask)
    try:
        claim(tmp_path / "o")
        paths.write(tmp_path / "o" / "runs" / "a.json", "{}")
    finally:
        os.umask(before)
    for path in (tmp_path / "o").rglob("*"):
        expected = 0o777 if path.is_dir() else 0o666
        assert path.stat().st_mode & 0o777 == expected & ~umask, path


def test_a_full_disk_is_one_message_and_leaves_nothing(tmp_path, monkeypatch):
    unfinished(tmp_path, "")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PermissionError, match="No space left on device"):
        claim(tmp_path)
    assert (tmp_path / "config.gin").read_text() == ""
    assert {p.name for p in tmp_path.iterdir() if p.name.startswith(paths.TEMPORARY)} == {
        f"{paths.TEMPORARY}lock"
    }


HOLD = """
import sys
from ldro_jax.records.output_dir import OutputDir
output = OutputDir(sys.argv[1], sys.argv[2])
output.claim()
print("claimed", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs flock")
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_second_process_hears_who_works_there(tmp_path, overwrite):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "o"), CONFIG],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
    )
    try:
        assert holder.stdout.readline() == b"claimed\n"
        output = OutputDir(tmp_path / "o", CONFIG, overwrite=overwrite)
        for step in (output.check, output.claim):
            with pytest.raises(FileExistsError, match=rf"in use by process {holder.pid} on \S+ si"):
                step()
    finally:
        holder.kill()
        holder.communicate()
    # However it ended, its right ends with it.
    claim(tmp_path / "o")


def test_of_several_processes_the_first_has_the_directory(tmp_path, monkeypatch):
    first, second = (OutputDir(tmp_path / "o", CONFIG) for _ in range(2))
    first.check()
    first.claim()
    waited = []
    monkeypatch.setattr(processes, "is_first", lambda: False)
    monkeypatch.setattr(processes, "wait_for_all", waited.append)
    second.check()
    second.claim()
    assert waited == ["output_dir"]
    first.close()
