"""Bad inputs: each gives one line that says what to do, and deletes nothing.

A command is run with ``--overwrite`` on a directory that holds a finished experiment.
"""

import json
import re

import jax
import numpy as np
import pytest
from faults import bad_inputs
from helpers.command_line import fails, gin_file, snapshot

from ldro_jax import reporting
from ldro_jax.reporting import __main__ as reporting_main
from ldro_jax.tasks import cifar100
from ldro_jax.training import loop

pytestmark = [
    pytest.mark.faults,
    # Importing seqio brings TensorFlow, whose packages use what is deprecated.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

_HINT = "(LDRO_JAX_TRACEBACK=1 shows where.)"


def cases():
    """The gin file, the arguments and the line of each case."""
    for file, table in bad_inputs.EXPERIMENTS.items():
        small = bad_inputs.SMALL.get(file, ())
        bindings = [*small]
        for line in re.sub("^#.*\n", "", table, flags=re.MULTILINE).strip().splitlines():
            if line.startswith(" "):
                yield file, [f"--gin.{binding}" for binding in bindings], line.strip()
                bindings = [*small]
            else:
                bindings.append(line)
    for argument, line in bad_inputs.FLAGS:
        yield "digits.gin", [argument], line


def _text_dir(folder):
    for language in ("aa", "bb"):
        (folder / language).mkdir(parents=True)
        for split in ("train", "validation"):
            lines = "".join(f"{language} {number}\n" for number in range(40))
            (folder / language / f"{split}.txt").write_text(lines, encoding="utf-8")
    return folder


def _images(dataset, data_dir):
    """Two training images and one test image of each class, instead of what TFDS reads."""
    del dataset, data_dir

    def part(per_class):
        label = np.tile(np.arange(100), per_class)
        image = np.zeros((label.size, 32, 32, 3), np.uint8)
        return {"image": image, "label": label, "coarse_label": label % 20}

    names = tuple(f"coarse {i}" for i in range(20))
    return {"train": part(2), "test": part(1), "task_names": names, "num_classes": 100}


def _must_not_come(*args, **options):
    raise AssertionError("It wasn't noticed before training.")


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """An output directory with the results of an experiment; nothing can be trained or written."""
    directory = tmp_path / "finished"
    for name in ("config.gin", "results.json", "report.html", "runs/a.json", "checkpoints/1/x"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(name.encode())
    (directory / "config.gin").write_text("run.experiment = @other\n")
    for module, name in [(loop, "train"), (reporting, "finish")]:
        monkeypatch.setattr(module, name, _must_not_come)
    monkeypatch.setattr(cifar100, "_read", _images)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return directory


def _problem(said, line):
    """What is wrong with an answer, if anything is."""
    first, *others = said.splitlines()
    if not first.startswith("Error: ") or others != [_HINT]:
        return f"it isn't one line: {said!r}"
    if " at 0x" in said or "Traceback" in said:
        return f"it shows insides: {said!r}"
    pattern = ".*".join(map(re.escape, line.split("…")))
    return None if re.search(pattern, first) else f"it is another line than {line!r}: {said!r}"


@pytest.mark.parametrize("every", [16, pytest.param(1, marks=pytest.mark.heavy)])
def test_each_bad_input_gives_one_line_and_deletes_nothing(every, finished, tmp_path, survived):
    pytest.importorskip("seqio")
    pytest.importorskip("sklearn")
    data = {
        "multilingual_lm_small.gin": _text_dir(tmp_path / "text"),
        "multilingual_lm_mc4.gin": tmp_path / "nothing",
    }
    before, problems = snapshot(finished), []
    for file, arguments, line in list(cases())[::every]:
        flags = [gin_file(file), f"--output_dir={finished}", "--overwrite", *arguments]
        if file in data:
            flags.append(f"--data_dir={data[file]}")
        try:
            # Optax's Adam is not made for strict promotion.
            with jax.numpy_dtype_promotion("standard"):
                problem = _problem(fails(*flags), line)
        except (Exception, pytest.fail.Exception) as error:
            problem = f"it ends with {type(error).__name__}: {error}"
        if (after := snapshot(finished)) != before:
            problem, before = problem or "it has changed what was finished", after
        problems.append(problem and f"{file} {' '.join(arguments)}: {problem}")
    assert len(problems) >= 170 // every
    survived("bad inputs", problems)


def test_bad_inputs_of_the_report(tmp_path, survived):
    valid = {"experiment": "a", "task_names": ["x"], "runs": []}
    contents = {"cut.json": '{"experiment": ', "list.json": "[1]", "empty.json": ""}
    for name, text in {**contents, "no_runs.json": json.dumps(valid)}.items():
        (tmp_path / name).write_text(text)
    problems, table = [], [*contents, "no_runs.json", "absent.json"]
    for name in table:
        with pytest.raises(SystemExit) as error:
            reporting_main.main([str(tmp_path / name), str(tmp_path / "report")])
        said = str(error.value.code)
        is_right = len(said.splitlines()) == 1 and said.startswith("Error: ") and name in said
        is_right = is_right and not (tmp_path / "report").exists()
        problems.append(None if is_right else f"{name}: {said!r}")
    survived("bad inputs of the report", problems)
