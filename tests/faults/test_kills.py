"""Killed at any operation on files, a run goes on and ends with the same numbers to the bit."""

import functools
import random

import pytest
from faults import harness, kinds
from helpers import tiny_mc4

pytestmark = pytest.mark.faults

EXPERIMENTS = ["digits", "together", "synthetic", "multilingual", "streamed", *kinds.KINDS]


def arguments(name, folder):
    """The command line of a tiny experiment, but for the output directory."""
    if name in kinds.KINDS:
        return [f"--kind={name}"]
    if name == "digits":
        return harness.DIGITS
    if name == "together":
        return harness.TOGETHER
    if name == "synthetic":
        return harness.SYNTHETIC
    pytest.importorskip("seqio")
    if name == "multilingual":
        return harness.multilingual(folder / "text")
    tfds = pytest.importorskip("tensorflow_datasets")
    return harness.streamed(tiny_mc4.make_data(tfds, folder / "tfds"), ("zh", "sw"))


def whole(runners, args, folder):
    """What an uninterrupted run comes to, and how many operations it takes."""
    operations = runners.whole(args, folder / "whole")
    return harness.outcome(folder / "whole"), operations


def survives(runners, args, expected, output_dir, **kill):
    """Nothing, or what went wrong when a run was killed and started again."""
    status, _, said = runners.run(args, output_dir, **kill)
    if status not in (-9, 0):
        return f"{kill}: it ended with {status} instead of being killed: {said[-500:]}"
    status, _, said = runners.run(args, output_dir)
    if status:
        return f"{kill}: started again it ended with {status}: {said[-500:]}"
    if harness.outcome(output_dir) != expected:
        return f"{kill}: it came to other numbers"
    if left := harness.leftovers(output_dir):
        return f"{kill}: it left {left}"
    harness.remove(output_dir)
    return None


@pytest.mark.heavy
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_killed_before_each_operation(name, runners, tmp_path, survived):
    args = arguments(name, tmp_path)
    expected, operations = whole(runners, args, tmp_path)

    def one(number):
        output_dir = tmp_path / f"killed{number}"
        return survives(runners, args, expected, output_dir, kill=number)

    assert operations > 10
    survived(f"kill points of {name}", runners.map(one, range(1, operations + 1)))


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["digits", "multilingual"])
def test_killed_at_any_moment(name, runners, tmp_path, survived):
    # Between operations of Python as well, while TensorStore writes.
    args = arguments(name, tmp_path)
    expected, _ = whole(runners, args, tmp_path)
    moments = random.Random(0)

    def one(number):
        delay = moments.uniform(0.2, 6)
        return survives(runners, args, expected, tmp_path / f"killed{number}", delay=delay)

    survived(f"kill moments of {name}", runners.map(one, range(40)))


# The default run has it within one process, in tests/experiments/test_together.py.
@pytest.mark.heavy
def test_killed_between_two_records_of_a_group(runners, tmp_path, survived):
    """And with others of its runs in the group that goes on: one at a time."""
    args = harness.TOGETHER
    expected, operations = whole(runners, args, tmp_path)
    killed, kill = tmp_path / "killed", operations
    while len(list((killed / "runs").glob("*.json"))) != 1:
        harness.remove(killed)
        kill -= 2
        status, _, said = runners.run(args, killed, kill=kill)
        assert status == -9 and kill > 0, said
    alone = harness.copied(killed, tmp_path / "alone")
    args_alone = [*args, "--gin.Batches.runs_together=1"]
    # The configuration is another one, which the directory isn't asked about here.
    problems = [survives_now(runners, args, expected["record"], killed, "resumed at step 6")]
    config = (alone / "config.gin").read_text().replace("runs_together = 2", "runs_together = 1")
    (alone / "config.gin").write_text(config)
    problems.append(
        survives_now(runners, args_alone, expected["record"], alone, "resumed at step 6")
    )
    survived("records of a group", problems)


def survives_now(runners, args, expected, output_dir, words):
    """Nothing, or what went wrong when a killed run was started again, which says something."""
    status, _, said = runners.run(args, output_dir)
    if status or words not in said:
        return f"started again it ended with {status}: {said[-500:]}"
    return None if harness.record(output_dir) == expected else "it came to other numbers"


@pytest.mark.parametrize(
    "name", ["digits", *(pytest.param(x, marks=pytest.mark.heavy) for x in kinds.KINDS)]
)
def test_killed_again_and_again(name, runners, tmp_path, survived):
    """A short form: one experiment, killed at a later operation each time."""
    args = arguments(name, tmp_path)
    expected, operations = whole(runners, args, tmp_path)
    kill = functools.partial(runners.run, args, tmp_path / "killed")
    points = [9, operations // 3, 2 * operations // 3]
    assert points[0] < points[1]
    problems = []
    for point in points:
        status, _, said = kill(kill=point)
        # What is done already isn't done again, so the last ones may come to the end.
        problems.append(None if status in (-9, 0) else f"kill={point}: {status}: {said[-500:]}")
    problems.append(survives(runners, args, expected, tmp_path / "killed", kill=operations))
    survived(f"kill points of {name} in a row", problems)
