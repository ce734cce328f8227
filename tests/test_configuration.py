"""Gin files and the output directory: what is refused, and how that is said."""

import functools
import pathlib
import re

import gin
import pytest

from ldro_jax import configuration

_ROOT = pathlib.Path(__file__).parents[1]
DIGITS = str(_ROOT / "gin_configs" / "experiments" / "digits.gin")


@pytest.fixture(autouse=True)
def _no_gin_bindings_left():
    yield
    gin.clear_config()


def test_gin_flags_are_rewritten():
    argv = ["ldro-jax", "--gin_file=a", "--gin.A=(1, 2)", "--gin.b/C.d='x=y'", "--output_dir=o"]
    assert configuration.rewrite_gin_flags(argv) == [
        "ldro-jax",
        "--gin_file=a",
        "--gin_bindings=A=(1, 2)",
        "--gin_bindings=b/C.d='x=y'",
        "--output_dir=o",
    ]


def test_bindings_win_over_files_and_the_text_reads_back_the_same(tmp_path):
    bindings = ["SEEDS=(7,)", "Schedule.eval_interval=3", "ldro/Method.floor=0.25"]
    configuration.load([DIGITS], bindings)
    text = configuration.text()
    for line in ("SEEDS = (7,)", "Schedule.eval_interval = 3", "ldro/Method.floor = 0.25"):
        assert line in text.splitlines()
    (tmp_path / "config.gin").write_text(text)
    configuration.load([str(tmp_path / "config.gin")], [])
    assert configuration.text() == text
    # And nothing of it is left for the next one.
    configuration.load([DIGITS], [])
    assert "(7,)" not in configuration.text()


def test_what_gin_appends_to_an_error_becomes_the_name_of_the_argument():
    def failing(said, data_dir):
        raise ValueError(said)

    experiment = configuration.load([DIGITS], ["SEEDS=(0,)"])
    for said, expected in [
        ("seeds is wrong.", "compare.seeds is wrong."),
        ("batch sizes are wrong.", "batch sizes are wrong."),
        # What is meant to have several lines keeps them.
        ("Some runs ended.\nOne.\nTwo.", "Some runs ended.\nOne.\nTwo."),
    ]:
        load = functools.partial(failing, said)
        with pytest.raises(ValueError) as error:
            experiment(output_dir="o", problem=load)
        assert "In call to configurable" in str(error.value)
        assert configuration.explain(error.value) == expected


@pytest.mark.parametrize("where", [".", "gin_configs"])
def test_files_are_found_from_anywhere(where, tmp_path, monkeypatch):
    monkeypatch.chdir(_ROOT / where if where == "gin_configs" else tmp_path)
    assert callable(configuration.load(["gin_configs/experiments/digits.gin"], []))


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        (
            "Schedul.train_steps=5",
            "No configurable matching 'Schedul'.*Known names: .*training.Sch",
        ),
        (
            "SEEDS=@foo",
            "matching reference '@foo'.*Known names: cifar100.load, corrupted.corrupted, d",
        ),
        (
            "Schedule.steps=5",
            "parameter named 'steps'.*Known parameters: train_steps, eval_interval, checkpoint_",
        ),
        ("TRAIN_STEP=5", "nothing uses the macro 'TRAIN_STEP'. Known macros: SEEDS, TRAIN_STEPS"),
        (
            "ldr0/Method.floor=0.1",
            "nothing uses the scope 'ldr0'. Known scopes: average, group_dro, ldro, scalar",
        ),
        ("MLP.features=%WIDTH", "Nothing binds the macro WIDTH\\.$"),
        ("SEEDS=(0,", "can't be used"),
        ("SEEDS", "can't be used"),
        ("run.experiment='digits'", "run.experiment must be a function, such as @comp"),
    ],
)
def test_a_slip_in_a_binding_is_explained(binding, message):
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        configuration.load([DIGITS], [binding])


def test_a_new_macro_or_scope_that_is_used_is_welcome():
    bindings = [
        "WIDTH=3",
        "MLP.features=(%WIDTH,)",
        "mine/Method.name='Mine'",
        "mine/Method.weighting='average'",
        "compare.methods=[@mine/Method()]",
    ]
    assert callable(configuration.load([DIGITS], bindings))


def test_a_missing_file_lists_the_experiments():
    with pytest.raises(FileNotFoundError, match=r"no gin file nope\.gin\. Known .*digits\.gin"):
        configuration.load(["nope.gin"], [])


def test_a_missing_include_is_named(tmp_path):
    (tmp_path / "a.gin").write_text('include "gin_configs/nope.gin"\n')
    with pytest.raises(FileNotFoundError, match=r"gin_configs/nope\.gin"):
        configuration.load([str(tmp_path / "a.gin")], [])


def test_files_without_an_experiment_are_refused():
    with pytest.raises(ValueError, match=r"No gin file binds run\.experiment.*digits\.gin"):
        configuration.load([str(_ROOT / "gin_configs" / "methods" / "ldro.gin")], [])
