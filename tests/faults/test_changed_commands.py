"""The same directory and another command: the right numbers, or an error that says why.

Beside :mod:`test_changes`, which has the changes of the Python API.
"""

import re

import pytest
from faults import harness
from faults.test_changes import files_of

pytestmark = pytest.mark.faults

# The command line: flags, and what the error says; nothing where it is taken.
COMMANDS = {
    "rate": (["--gin.optax.sgd.learning_rate=0.01"], "learning_rate = 0.05 there.* = 0.01 now"),
    "width": (["--gin.MLP.features=(5,)"], r"another loss or model.*\(4,\) there.*\(5,\) now"),
    "batch_size": (["--gin.Batches.size=80"], "another batch_size: it was 160, now it is 80"),
    "data": (["--gin.digits.load.seed=1"], "other data: content was .*, now it is"),
    "eval_interval": (["--gin.Schedule.eval_interval=3"], "eval_interval: it was 2, now it is 3"),
    "fewer steps": (["--gin.TRAIN_STEPS=2"], "steps, and train_steps is 2 now"),
    "nothing": ([], None),
    "more": (
        ["--gin.SEEDS=(0, 1)", "--gin.TRAIN_STEPS=10", "--gin.Report.select_by='average'"],
        None,
    ),
}


@pytest.mark.parametrize(
    "names", [("rate",), pytest.param(tuple(COMMANDS), marks=pytest.mark.heavy)], ids=len
)
def test_the_command_line_does_the_same(names, runners, tmp_path, survived):
    operations = runners.whole(harness.DIGITS, tmp_path / "finished")
    status, _, said = runners.run(harness.DIGITS, tmp_path / "killed", kill=int(0.7 * operations))
    assert status == -9, said

    def one(trial):
        name, source = trial
        flags, message = COMMANDS[name]
        args, target = [*harness.DIGITS, *flags], tmp_path / f"{name}-{source}"
        before = files_of(harness.copied(tmp_path / source, target))
        status, _, said = runners.run(args, target)
        if message is not None:
            line = harness.errors(said)[:1] or [said[-500:]]
            right = status == 1 and re.search(message, line[0]) and "--overwrite" in line[0]
            kept = {p: c for p, c in files_of(target).items() if not p.name.startswith(".")}
            return None if right and kept == before else f"{name} of {source}: {status}: {line}"
        runners.run(args, tmp_path / f"{name}-{source}-new")
        if status or harness.record(target) != harness.record(tmp_path / f"{name}-{source}-new"):
            return f"{name} of {source}: {status}, or other numbers: {said[-500:]}"
        is_finished = "is finished; look at its report.html" in said
        return None if is_finished == (name == "nothing" and source == "finished") else said[-500:]

    trials = [(name, source) for name in names for source in ("finished", "killed")]
    survived("changed commands", runners.map(one, trials))


@pytest.mark.heavy
def test_a_finished_experiment_needs_its_data(runners, tmp_path):
    pytest.importorskip("seqio")
    args = harness.multilingual(tmp_path / "text")
    status, _, said = runners.run(args, tmp_path / "o")
    assert status == 0, said
    nowhere = [f"--data_dir={tmp_path / 'nowhere'}", "--gin.text.load.languages=('aa', 'bb')"]
    status, _, said = runners.run([*args, *nowhere], tmp_path / "o")
    assert status == 1 and "nowhere" in harness.errors(said)[0], said
    # References are known by what they were made with as well.
    rate = "--gin.alone/Batches.size=4"
    status, _, said = runners.run([*args, rate], tmp_path / "o")
    assert status == 1 and "another batch_size: it was 2, now it is 4" in said, said
