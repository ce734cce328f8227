"""Summaries as T5X writes them become a record, best evaluation last."""

import importlib
import importlib.util
import json
import math

import numpy as np
import pytest

from ldro_jax.t5x import report

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.filterwarnings("ignore")
TASKS = ("ldro_text_ar", "ldro_text_fr")


def write(folder, step, scalars):
    # clu's writer, which T5X uses, writes tensors too: ``tf.summary.scalar``, which needs
    # TensorBoard, does no more than this.
    metadata = tf.compat.v1.SummaryMetadata(
        plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
    )
    with tf.summary.create_file_writer(str(folder)).as_default(step=step):
        for name, value in scalars.items():
            tf.summary.write(name, tf.constant(value, tf.float32), metadata=metadata)


@pytest.fixture
def make_run(tmp_path):
    def make(name, losses, *, steps=(10, 20, 30), tasks=TASKS, weights=True, mixture="ldro_text"):
        """Losses ``[step, task]`` in nats a token."""
        folder = tmp_path / name
        for step, row in zip(steps, losses, strict=True):
            for task, loss in zip(tasks, row, strict=True):
                # A quarter of the tokens is padding, and the loss has a z-loss besides.
                scalars = {
                    "cross_ent_loss_per_all_target_tokens": 0.75 * loss,
                    "non_padding_fraction/loss_weights": 0.75,
                    "loss_per_nonpadding_target_token": loss + 1,
                }
                write(folder / "training_eval" / task, step, scalars)
            write(folder / "training_eval" / mixture, step, scalars)
            scalars = {"timing/steps_per_second": 4.0}
            if weights:
                for index, task in enumerate(tasks):
                    scalars |= {
                        f"ldro/weight/{task}": [0.25, 0.75][index],
                        f"ldro/loss/{task}": float(step + index),
                        f"ldro/nonfinite_losses/{task}": float(index),
                    }
            write(folder / "train", step, scalars)
        if weights:
            (folder / "ldro_tasks.json").write_text(json.dumps({"tasks": list(tasks)}))
        return str(folder)

    return make


def test_a_run_is_read(make_run):
    folder = make_run("ldro", [[3, 4], [1, 2], [2, 2]])
    record = report.read([("L-DRO", folder)])
    (run,) = record.runs
    assert record.task_names == ["ar", "fr"] and (run.method, run.seed) == ("L-DRO", 0)
    # The last evaluation is the best one.
    assert [e.step for e in run.evaluations] == [10, 20] and run.num_steps == 30
    found = run.evaluations[-1].per_task
    np.testing.assert_allclose([found["ar"], found["fr"]], np.exp([1, 2]), rtol=1e-6)
    assert run.evaluations[-1].worst_task == "fr" and run.seconds_per_step == 0.25
    np.testing.assert_array_equal(run.weights.steps, [10, 20, 30])
    np.testing.assert_allclose(run.weights.values, [[0.25, 0.75]] * 3)
    np.testing.assert_allclose(run.losses.values, [[10, 11], [20, 21], [30, 31]])
    assert run.nonfinite_losses == {"fr": 1}


def test_runs_of_one_name_are_seeds_and_stock_runs_have_no_weights(make_run):
    runs = [("Mixing", make_run(f"mixing{n}", [[2, 2]], steps=[10], weights=False)) for n in "ab"]
    record = report.read(runs)
    assert [run.seed for run in record.runs] == [0, 1]
    assert record.runs[0].weights is None and record.task_names == ["ar", "fr"]


@pytest.fixture
def make_stock(make_run, tmp_path):
    """A run of T5X's own trainer on a mixture that this library doesn't know."""

    def make(config):
        # Between the tasks by name, and with evaluations like theirs.
        folder = make_run("stock", [[2, 3]], steps=[10], weights=False, mixture="ldro_text_b")
        (tmp_path / "stock" / "config.gin").write_text(config)
        return folder

    return make


@pytest.mark.parametrize(
    "config",
    [
        "train_eval/utils.DatasetConfig.mixture_or_task_name = 'ldro_text_b'\n",
        "MIX = 'ldro_text_b'\nMIXTURE_OR_TASK_NAME = %MIX\n"
        "train/utils.DatasetConfig.mixture_or_task_name = 'ldro_text_ar'\n"
        "train_eval/utils.DatasetConfig.mixture_or_task_name = \\\n    %MIXTURE_OR_TASK_NAME\n",
    ],
)
def test_the_mixture_of_a_stock_run_is_no_task(make_stock, config):
    assert report.read([("Mixing", make_stock(config))]).task_names == ["ar", "fr"]


@pytest.mark.parametrize(
    "config",
    [
        "",
        "MIXTURE_OR_TASK_NAME = 'ldro_text_b'\n",
        "train_eval/utils.DatasetConfig.mixture_or_task_name = @mixtures.make()\n",
        "train_eval/utils.DatasetConfig.mixture_or_task_name = 'other'\n",
        "train_eval/utils.DatasetConfig.mixture_or_task_name = %UNKNOWN\n",
        "train_eval/utils.DatasetConfig.mixture_or_task_name = %A\nA = %B\nB = %A\n",
    ],
)
def test_where_the_mixture_is_not_named_the_tasks_must_be(make_stock, make_run, tmp_path, config):
    runs = [("Mixing", make_stock(config))]
    with pytest.raises(ValueError, match="ldro_text_ar, ldro_text_b, .* which of them .* --tasks"):
        report.read(runs)
    assert report.read(runs, tasks=TASKS).task_names == ["ar", "fr"]
    # A run with L-DRO says it for all.
    ldro = make_run("ldro", [[3, 4]], steps=[10])
    assert report.read([*runs, ("L-DRO", ldro)]).task_names == ["ar", "fr"]


def test_tasks_may_be_given_on_the_command_line(make_stock, tmp_path, capsys):
    output = tmp_path / "report"
    arguments = [f"Mixing={make_stock('')}", f"--output_dir={output}"]
    report.main([*arguments, "--tasks=ldro_text_fr, ldro_text_ar"])
    assert json.loads((output / "results.json").read_text())["task_names"] == ["fr", "ar"]
    with pytest.raises(SystemExit, match="has no evaluation of de. It has ldro_text_ar"):
        report.main([*arguments, "--tasks=de"])


@pytest.mark.parametrize("text", ["", "[1", "[]", '{"tasks": "ar"}', '{"tasks": [1]}'])
def test_a_damaged_list_of_tasks_is_one_clear_error(make_run, tmp_path, text):
    folder = make_run("ldro", [[3, 4]], steps=[10])
    (tmp_path / "ldro" / "ldro_tasks.json").write_text(text)
    with pytest.raises(ValueError, match="names of the tasks in .*ldro_tasks.json, but"):
        report.read([("L-DRO", folder)])


def test_models_of_one_task_are_references(make_run):
    folder = make_run("ldro", [[3, 4]], steps=[10])
    alone = make_run("alone", [[5], [2]], steps=[10, 20], tasks=TASKS[:1])
    record = report.read([("L-DRO", folder)], [("ar", alone)])
    np.testing.assert_allclose(record.references["validation"]["ar"], math.exp(2), rtol=1e-6)
    with pytest.raises(ValueError, match="no task 'de'. Known are ar, fr"):
        report.read([("L-DRO", folder)], [("de", alone)])
    with pytest.raises(ValueError, match="has no evaluation of ldro_text_fr"):
        report.read([("L-DRO", folder), ("Average", alone)])


def test_the_latest_of_two_values_counts(make_run):
    make_run("ldro", [[3, 4]], steps=[10])
    folder = make_run("ldro", [[1, 2]], steps=[10])
    assert report.read([("L-DRO", folder)]).runs[0].evaluations[0].worst == pytest.approx(
        math.exp(2)
    )


def test_the_command_line_writes_a_report(make_run, tmp_path, capsys):
    folder = make_run("ldro", [[3, 4], [1, 2]], steps=[10, 20])
    report.main([f"L-DRO={folder}", f"--output_dir={tmp_path / 'report'}"])
    assert "L-DRO" in capsys.readouterr().out
    assert (tmp_path / "report" / "results.json").exists()
    assert "<html" in (tmp_path / "report" / "report.html").read_text()


def test_a_directory_without_evaluations_is_one_clear_error(tmp_path):
    with pytest.raises(SystemExit, match="Expected the evaluations of a T5X run in .*found none"):
        report.main([f"L-DRO={tmp_path}", f"--output_dir={tmp_path / 'report'}"])
    with pytest.raises(SystemExit):
        report.main(["L-DRO", f"--output_dir={tmp_path / 'report'}"])


@pytest.mark.skipif(importlib.util.find_spec("t5x.trainer") is not None, reason="T5X is there")
@pytest.mark.parametrize("name", ["model", "trainer", "optimizer", "data", "tasks", "network"])
def test_without_t5x_only_the_report_works(name):
    with pytest.raises(ImportError, match="ldro_jax.t5x needs T5X, but .*scripts/install_t5x.sh"):
        importlib.import_module(f"ldro_jax.t5x.{name}")


def test_the_report_trains_nothing(run_python):
    found = run_python("import sys, ldro_jax.t5x.report; print('\\n'.join(sys.modules))").split()
    assert not [name for name in found if name.startswith(("ldro_jax.training", "t5x", "tensorf"))]
