"""Whatever happens to a file in an output directory, the numbers are right or one line says why."""

import random

import pytest
from faults import harness, test_kills

pytestmark = pytest.mark.faults


def flip(path, random_bits):
    content = bytearray(path.read_bytes())
    bit = random_bits.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    return f"bit {bit}"


def truncate(path, random_bits):
    size = random_bits.randrange(path.stat().st_size)
    path.write_bytes(path.read_bytes()[:size])
    return f"{size} bytes"


def empty(path, random_bits):
    path.write_bytes(b"")


def delete(path, random_bits):
    path.unlink()


DAMAGES = [flip, truncate, empty, delete]


def one_method(args):
    """The experiment with L-DRO alone, which leaves fewer files."""
    name = "--gin.compare.methods="
    return [f"{name}[@ldro/Method()]" if arg.startswith(name) else arg for arg in args]


def directories(runners, args, folder, parts):
    """One that is finished, and some that were interrupted."""
    expected, operations = test_kills.whole(runners, args, folder)
    found = [folder / "whole"]
    for part in parts:
        found.append(folder / f"interrupted{part}")
        status, _, said = runners.run(args, found[-1], kill=int(part * operations))
        assert status == -9, said
    return expected["record"], found


def survives(runners, args, expected, source, path, damage, seed, target):
    """Nothing, or what went wrong after some damage to a copy of a directory."""
    damaged = harness.copied(source, target) / path
    how = damage(damaged, random.Random(seed))
    what = f"{damage.__name__} {path} of {source.name} ({how}, {target})"
    status, _, said = runners.run(args, target)
    if status:
        if status == 1 and harness.errors(said):
            harness.remove(target)
            return None
        return f"{what}: it ended with {status}: {said[-700:]}"
    if harness.record(target) != expected:
        return f"{what}: it came to other numbers"
    harness.remove(target)
    return None


def files_in(directory):
    names = (p.relative_to(directory) for p in sorted(directory.rglob("*")) if p.is_file())
    return [name for name in names if (directory / name).stat().st_size]


@pytest.mark.heavy
@pytest.mark.parametrize("name", test_kills.EXPERIMENTS)
def test_every_file_is_damaged_in_every_way(name, runners, tmp_path, survived):
    args = one_method(test_kills.arguments(name, tmp_path))
    expected, sources = directories(runners, args, tmp_path, [0.75])
    trials = [
        (source, path, damage)
        for source in sources
        for path in files_in(source)
        for damage in DAMAGES
    ]

    def one(numbered):
        number, trial = numbered
        target = tmp_path / f"damaged{number}"
        return survives(runners, args, expected, *trial, number, target)

    survived(f"damaged files of {name}", runners.map(one, enumerate(trials)))


@pytest.mark.heavy
@pytest.mark.parametrize(("name", "count"), [("digits", 200), ("multilingual", 60)])
def test_bits_are_flipped_in_checkpoints(name, count, runners, tmp_path, survived):
    args = one_method(test_kills.arguments(name, tmp_path))
    expected, (_, *sources) = directories(runners, args, tmp_path, [0.55, 0.75, 0.9])
    chosen = random.Random(1)

    def one(number):
        source = sources[number % len(sources)]
        files = [path for path in files_in(source) if "checkpoints" in path.parts]
        # Large files have more bits to flip.
        sizes = [(source / path).stat().st_size for path in files]
        (path,) = chosen.choices(files, sizes) if files else ("config.gin",)
        target = tmp_path / f"flipped{number}"
        return survives(runners, args, expected, source, path, flip, number, target)

    survived(f"bit flips of {name}", runners.map(one, range(count)))


def test_some_files_are_damaged(runners, tmp_path, survived):
    """A short form: the files that decide how an interrupted run goes on."""
    args = harness.DIGITS
    expected, operations = test_kills.whole(runners, args, tmp_path)
    source = tmp_path / "interrupted"
    status, _, said = runners.run(args, source, kill=int(0.8 * operations))
    assert status == -9, said
    files = files_in(source)
    (run,) = (path for path in files if path.parts[0] == "runs")
    steps = [p for p in files if p.match("checkpoints/L-DRO*/[0-9]/record/metadata")]
    newest = max(steps)
    arrays = (source / newest).parents[1].glob("state/**/d/*")
    array = max(arrays, key=lambda path: path.stat().st_size)
    trials = [(run, flip), (newest, truncate), (array.relative_to(source), flip)]
    trials.append(("config.gin", empty))

    def one(numbered):
        number, (path, damage) = numbered
        target = tmp_path / f"damaged{number}"
        return survives(runners, args, expected["record"], source, path, damage, number, target)

    survived("damaged files", runners.map(one, enumerate(trials)))
