"""Macros that nothing uses are named, and the values that a run trains with are printed."""

import gin
import pytest

tiny_t5x = pytest.importorskip(
    "helpers.tiny_t5x", reason="T5X is not installed (scripts/install_t5x.sh)", exc_type=ImportError
)
from ldro_jax.t5x import macros  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
RUN = """
from __gin__ import dynamic_registration
from helpers import tiny_t5x
from ldro_jax.t5x import model
from ldro_jax.t5x import trainer
LOOKAHEAD_LR = 1.0
EVAL_PERIOD = 1000
BATCH_SIZE = 32
MODEL = @model.LDRODecoderOnlyModel()
model.LDRODecoderOnlyModel.optimizer_def = @tiny_t5x.weighted()
tiny_t5x.weighted.lookahead_lr = %LOOKAHEAD_LR
tiny_t5x.make_trainer.rows = %BATCH_SIZE
tiny_t5x.make_trainer.a_model = %MODEL
"""


@pytest.fixture
def parse():
    gin.clear_config()
    yield lambda text: gin.parse_config(RUN + text)
    gin.clear_config()


@pytest.mark.parametrize(
    "name, meant",
    [("LOOKAHED_LR", "LOOKAHEAD_LR"), ("BATCHSIZE", "BATCH_SIZE"), ("MODELL", "MODEL")],
)
def test_a_mistyped_macro_is_refused_with_what_was_meant(parse, name, meant):
    parse(f"{name} = 0.1\n")
    with pytest.raises(ValueError, match=f"nothing refers to {name}. Did you mean {meant}[?]"):
        macros.refuse_mistyped()


def test_others_without_use_are_logged(parse, caplog):
    # As of T5X's own fine-tuning files.
    parse("EVALUATOR_NUM_EXAMPLES = None\nEVAL_BATCH_SIZE = 8\n")
    macros.refuse_mistyped()
    assert "refers to the macros EVALUATOR_NUM_EXAMPLES, EVAL_BATCH_SIZE, EVAL_P" in caplog.text


def test_what_is_used_anywhere_passes(parse, caplog):
    parse(
        "LOOKAHED_LR = 0.5\nBATCHSIZE = 8\n"
        "tiny_t5x.batch.seed = [{'rate': (%LOOKAHED_LR,)}]\ntiny_t5x.batch.rows = %BATCHSIZE\n"
        "tiny_t5x.batch.padding = %EVAL_PERIOD\n"
    )
    macros.refuse_mistyped()
    assert "refers to the macros" not in caplog.text


def test_a_run_is_checked_when_its_data_is_asked_for(parse, tmp_path):
    parse("LOOKAHED_LR = 0.1\n")
    cfg = tiny_t5x.utils.DatasetConfig("nothing", {"targets": 8}, "train", 8, True, 0)
    with pytest.raises(ValueError, match="Did you mean LOOKAHEAD_LR"):
        tiny_t5x.data.get_dataset(cfg, 0, 1, None, model_dir=str(tmp_path))


def test_values_in_force_are_printed(parse, capsys):
    parse("from t5x import train\ntrain.train.model = %MODEL\nLOOKAHEAD_LR = 0.25\n")
    macros.refuse_mistyped()
    printed = capsys.readouterr().out
    assert printed.startswith("Training with optimizer = ") and "lookahead_lr = 0.25" in printed


def test_without_gin_there_is_nothing_to_say(capsys):
    gin.clear_config()
    macros.refuse_mistyped()
    assert not capsys.readouterr().out
