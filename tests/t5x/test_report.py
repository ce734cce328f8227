"""Summaries as T5X writes them become a record, best evaluation last."""

import importlib
import importlib.util
import json
import math
import re

import numpy as np
import pytest

from ldro_jax.t5x import report, report_sections, run_file, summaries

pytestmark = pytest.mark.filterwarnings("ignore")
TASKS = ("ldro_text_ar", "ldro_text_fr")


def write(folder, step, scalars):
    tf = pytest.importorskip("tensorflow")
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
                scalars["ldro/unsolved_steps"] = step / 10
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
    assert run.nonfinite_losses == {"fr": 1} and run.unsolved_steps == 3


def test_runs_of_one_name_are_seeds_and_stock_runs_have_no_weights(make_run):
    runs = [("Mixing", make_run(f"mixing{n}", [[2, 2]], steps=[10], weights=False)) for n in "ab"]
    record = report.read(runs)
    assert [run.seed for run in record.runs] == [0, 1]
    assert record.runs[0].weights is None and record.task_names == ["ar", "fr"]
    assert record.runs[0].unsolved_steps == 0


CONFIG = """
train_eval/utils.DatasetConfig.split = 'validation'
train_eval/utils.DatasetConfig.batch_size = 32
train.train.train_eval_get_dataset_fn = @evaluation.get_datasets
train.train.eval_steps = {steps}
m.optimizer_def = @optimizers.adam()
optimizers.adam.learning_rate = 0.01
"""
STOCK = "train.train.eval_steps = 20\ntrain_eval/utils.DatasetConfig.batch_size = 32\n"
MACHINE = {
    "device": {"platform": "gpu", "kind": "NVIDIA H100", "count": 16, "hosts": 2},
    "mesh": {"data": 8, "model": 2},
    "versions": {"jax": "0.10.2", "t5x": "0.0.0 (cc342d41)"},
}


@pytest.fixture
def make_counted(make_run, tmp_path):
    """A run whose trainer counts tokens."""

    def make(name, losses, *, config=None, tokens=(1000, 250), batches=(8, 2), **options):
        folder = make_run(name, losses, **options)
        for task, row in zip(TASKS, np.transpose(losses), strict=True):
            for step, loss in zip((10, 20, 30), row, strict=False):
                # T5X's own means are off by another 1.
                scalars = {"ldro/nats_per_token": loss + 1, "ldro/perplexity": np.exp(loss + 1)}
                write(tmp_path / name / "training_eval" / task, step, scalars)
        text = CONFIG.format(steps=None) if config is None else config
        (tmp_path / name / "config.gin").write_text(text)
        counts = [dict(zip(TASKS, x, strict=True)) for x in (tokens, batches)]
        run_file.save(folder, step=10, tokens=counts[0], batches=counts[1], machine=MACHINE)
        return folder

    return make


def test_losses_by_the_token_count_first(make_counted):
    folder = make_counted("ldro", [[3, 4], [1, 2], [2, 2]])
    record = report.read([("L-DRO", folder)])
    found = record.runs[0].evaluations[-1].per_task
    np.testing.assert_allclose([found["ar"], found["fr"]], np.exp([2, 3]), rtol=1e-6)
    assert record.data == {"split": "validation", "tokens": {"ar": 1000, "fr": 250}}
    assert record.versions == MACHINE["versions"] and record.device == MACHINE["device"]
    assert record.runs[0].hyperparameters == {"optimizer": "optimizers.adam", "learning_rate": 0.01}
    assert "over the whole validation split. 1,250 tokens" in record.description


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CONFIG.format(steps=None), "over the whole validation split"),
        # All tasks had fewer batches.
        (CONFIG.format(steps=9), "over the whole validation split"),
        (CONFIG.format(steps=8), "not over the whole .*: at most 8 batches of 32 rows of each"),
        (STOCK, "not over the whole .*: 20 batches of 32 rows of each task, rows again and again"),
        ("", "not over the whole .*: unknown, without a config.gin"),
    ],
)
def test_the_report_says_how_much_was_evaluated(make_counted, config, expected):
    folder = make_counted("ldro", [[3, 4]], steps=[10], config=config)
    assert re.search(expected, report.read([("L-DRO", folder)]).description)


@pytest.mark.parametrize("whole", [True, False])
def test_a_split_of_exactly_eval_steps_batches_is_whole(make_counted, whole):
    folder = make_counted("ldro", [[3, 4]], steps=[10], config=CONFIG.format(steps=8))
    found = run_file.read(folder)
    run_file.save(
        folder, step=10, tokens=found.tokens, batches=found.batches, machine=MACHINE, whole=whole
    )
    expected = "over the whole" if whole else "not over the whole .*: at most 8 batches of 32 rows"
    assert re.search(f"Perplexities are {expected}", report.read([("A", folder)]).description)


def test_all_runs_that_were_evaluated_in_part_are_named(make_counted):
    folders = [make_counted(name, [[3, 4]], steps=[10], config=STOCK) for name in "ab"]
    found = report.read([("A", folders[0]), ("B", folders[1])]).description
    assert f"it has fewer ({folders[0]}, {folders[1]})." in found


def seeded(seed):
    bound = f"RANDOM_SEED = {seed}\ntrain.train.random_seed = %RANDOM_SEED\n"
    return CONFIG.format(steps=None) + bound


def test_runs_have_their_own_seeds(make_counted):
    runs = [
        ("A", make_counted(f"a{seed}", [[3, 4]], steps=[10], config=seeded(seed)))
        for seed in (7, "None", 0)
    ]
    # One that is not known is another one.
    assert [run.seed for run in report.read(runs).runs] == [7, 1, 0]
    again = make_counted("again", [[3, 4]], steps=[10], config=seeded(7))
    # The same seed with another method is a pair.
    assert [run.seed for run in report.read([runs[0], ("B", again)]).runs] == [7, 7]
    with pytest.raises(ValueError, match="A in .*a7 and .*again both have RANDOM_SEED = 7"):
        report.read([*runs, ("A", again)])
    with pytest.raises(ValueError, match="must have different seeds"):
        report.read([runs[0], runs[0]])


def test_other_tokens_are_refused(make_counted, make_run):
    runs = [("A", make_counted("a", [[3, 4]], steps=[10]))]
    runs += [("B", make_counted("b", [[3, 4]], steps=[10], tokens=(1000, 249)))]
    with pytest.raises(ValueError, match="ldro_text_fr .*a was evaluated on 250 and .*b on 249"):
        report.read(runs)
    with pytest.raises(ValueError, match="on 250 and"):
        report.read(runs[:1], [("fr", runs[1][1])])
    config = CONFIG.format(steps=None).replace("'validation'", "'validation[:500]'")
    runs[1] = ("B", make_counted("c", [[3, 4]], steps=[10], config=config))
    with pytest.raises(ValueError, match="a was on 'validation' and .*c on 'validation.:500.'"):
        report.read(runs)
    # A part of a split is named, and counts as that.
    record = report.read(runs[1:])
    assert "the whole validation[:500] split" in record.description
    assert record.runs[0].evaluations[0].split == "validation"


def test_the_worst_task_may_choose(make_run):
    folder = make_run("ldro", [[5, 5], [1, 4], [3, 3]])
    steps = {
        by: report.read([("L-DRO", folder)], select_by=by).runs[0].evaluations[-1].step
        for by in ("average", "worst")
    }
    assert steps == {"average": 20, "worst": 30}


def test_an_evaluation_that_is_not_finite_is_never_the_best(make_run):
    folder = make_run("ldro", [[math.nan, 1], [3, 3], [4, math.inf]])
    for by in ("average", "worst"):
        record = report.read([("L-DRO", folder)], select_by=by)
        assert record.runs[0].evaluations[-1].step == 20


def test_tasks_are_known_from_what_was_counted(make_counted, make_run, tmp_path):
    folder = make_counted("stock", [[3, 4]], steps=[10], weights=False, config=STOCK)
    assert not (tmp_path / "stock" / "ldro_tasks.json").exists()
    assert report.read([("Mixing", folder)]).task_names == ["ar", "fr"]


def test_the_page_has_tokens_devices_checkpoints_and_settings(make_counted, make_run, tmp_path):
    pytest.importorskip("matplotlib")
    folders = [make_counted(name, [[3, 4], [1, 2]], steps=[10, 20]) for name in ("a", "b")]
    (tmp_path / "a" / "checkpoint_20").mkdir()
    (tmp_path / "a" / "model-info.txt").write_text("x\nTotal number of parameters: 106944\n")
    stock = make_run("stock", [[3, 4], [2, 2]], steps=[10, 20], weights=False)
    arguments = [f"L-DRO={folder}" for folder in folders] + [f"<Stock>={stock}"]
    report.main([*arguments, f"--output_dir={tmp_path / 'report'}"])
    page = (tmp_path / "report" / "report.html").read_text()
    text = re.sub(r"<[^>]+>", " ", page)
    text = re.sub(r"\s+", " ", text)
    for expected in [
        "not over the whole validation split: unknown, without a config.gin",
        "L-DRO, seed 0 validation the whole split 20 there 106,944",
        "L-DRO, seed 1 validation the whole split 20 not there –",
        "&lt;Stock&gt;, seed 0 validation unknown, without a config.gin 20 not there –",
        "task tokens L-DRO &lt;Stock&gt; ar 1,000 7.389 7.389 fr 250 20.09 7.389",
        "L-DRO, seed 0; L-DRO, seed 1 step 10 16 × NVIDIA H100 (gpu) on 2 hosts 8 data × 2 model "
        "jax 0.10.2, t5x 0.0.0 (cc342d41)",
        "&lt;Stock&gt;, seed 0 – not recorded – by T5X&#39;s own trainer",
        "optimizer = optimizers.adam, learning_rate = 0.01",
        "16 × NVIDIA H100",
    ]:
        assert expected in text, expected
    saved = json.loads((tmp_path / "report" / "results.json").read_text())
    assert saved["data"]["tokens"] == {"ar": 1000, "fr": 250}


def test_configurations_are_shown_where_they_differ(make_counted, tmp_path):
    other = CONFIG.format(steps=None).replace("0.01", "\\\n    0.02")
    folders = [
        make_counted("a", [[3, 4]], steps=[10]),
        make_counted("b", [[3, 4]], steps=[10], config=other),
    ]
    found = [summaries.read(folder) for folder in folders]
    record = report.read([("L-DRO", folder) for folder in folders])
    text = report_sections.configurations(record, found)
    assert text.startswith(f"# L-DRO, seed 0\n{CONFIG.format(steps=None)}")
    assert text.endswith(
        "# L-DRO, seed 1, where it differs\noptimizers.adam.learning_rate = 0.02\n"
    )


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
