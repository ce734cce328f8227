"""Bindings for the classes of T5X, as in its own gin files, count for those derived from them."""

import pathlib
import re

import gin
import jax
import numpy as np
import pytest

tiny_t5x = pytest.importorskip(
    "helpers.tiny_t5x", reason="T5X is not installed (scripts/install_t5x.sh)", exc_type=ImportError
)
import seqio  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
HEADER = """
from __gin__ import dynamic_registration
import optax
import seqio
from helpers import tiny_t5x
from t5x import decoding
from t5x import models
from t5x import trainer as t5x_trainer
from t5x import utils
from ldro_jax.t5x import model
from ldro_jax.t5x import trainer
"""
# By its path: gin looks for names in packages, and takes fright at folders that are none.
STOCK = """
include "{folder}/base.gin"
DROPOUT_RATE = 0.0
models.DecoderOnlyModel:
  module = @tiny_t5x.module()
  z_loss = 0.01
  label_smoothing = 0.1
  inputs_bidirectional_attention = True
  feature_converter_cls = @seqio.PrefixLMFeatureConverter
  decode_fn = @decoding.beam_search
""".replace("{folder}", str(pathlib.Path(tiny_t5x.network.__file__).parent / "models"))
OURS = """
OPTIMIZER = @tiny_t5x.weighted()
MODEL = @model.LDRODecoderOnlyModel()
"""


@pytest.fixture
def parse():
    gin.clear_config()

    def parsed(*texts):
        gin.parse_config(HEADER + "".join(texts))

    yield parsed
    gin.clear_config()


def model_of(scope=""):
    return gin.get_configurable(f"{scope}ldro_jax.t5x.model.LDRODecoderOnlyModel")()


def params_of(a_model):
    shape = {"decoder_input_tokens": (tiny_t5x.ROWS, tiny_t5x.LENGTH)}
    return a_model.get_initial_variables(jax.random.PRNGKey(0), shape)["params"]


def with_prefix(batch):
    """The first four tokens of each row are the input."""
    prefix = np.repeat([1, 0], [4, tiny_t5x.LENGTH - 4]).astype(np.int32)
    return batch | {"decoder_causal_attention": np.tile(prefix, (tiny_t5x.ROWS, 1))}


def test_a_class_of_ones_own_is_what_the_page_says(parse):
    page = (pathlib.Path(__file__).parents[2] / "docs" / "t5x.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"^MODEL = @my_models.*?(?=^```)", page, re.DOTALL | re.MULTILINE)
    assert "class LDROMine(ldro_jax.t5x.model.LDROModel, Mine):" in page
    lines = lines.replace("my_models.network", "tiny_t5x.module").replace("my_models", "tiny_t5x")
    lines = lines.replace("tiny_t5x.vocabulary()", "seqio.ByteVocabulary()")
    rest = (
        "from ldro_jax.t5x import optimizer\n"
        "optimizer.WeightedOptimizer.weighting = @tiny_t5x.weighting()\n"
        "optimizer.WeightedOptimizer.optimizer = %OPTIMIZER\nOPTIMIZER = @tiny_t5x.sgd()\n"
    )
    parse(rest, lines, "tiny_t5x.Mine.z_loss = 0.02\n")
    found = gin.get_configurable("tiny_t5x.LDROMine")()
    assert type(found) is tiny_t5x.LDROMine and found._z_loss == 0.02
    tiny_t5x.train(tiny_t5x.make_trainer(found), [tiny_t5x.batch()])
    # The bindings of a stock base.gin have no effect on such a class, which must not pass.
    gin.clear_config()
    parse(rest, STOCK, lines)
    with pytest.raises(ValueError, match="DecoderOnlyModel is bound in gin .* Bind Mine instead"):
        gin.get_configurable("tiny_t5x.LDROMine")()


def test_the_model_has_the_bindings_of_a_stock_file(parse):
    parse(STOCK, OURS)
    found = model_of()
    assert type(found) is tiny_t5x.model_lib.LDRODecoderOnlyModel
    assert (found._z_loss, found._label_smoothing) == (0.01, 0.1)
    assert found._inputs_bidirectional_attention
    assert found.FEATURE_CONVERTER_CLS is gin.get_configurable(seqio.PrefixLMFeatureConverter)
    assert found.decode_fn.__name__ == "beam_search"
    assert isinstance(found.optimizer_def, tiny_t5x.optimizer_lib.WeightedOptimizer)


def test_a_prefix_is_seen_in_both_directions(parse):
    # A file of T5X's own of such a model: examples/decoder_only/examples/base_wmt_from_scratch.gin.
    parse(STOCK, OURS)
    a_model, batch = model_of(), with_prefix(tiny_t5x.batch(padding=False))
    params = params_of(a_model)
    # The first prediction changes with a later token of the prefix, and not with one after it.
    weights = np.zeros((tiny_t5x.ROWS, tiny_t5x.LENGTH), np.int32)
    weights[:, 0] = 1
    batch["decoder_loss_weights"] = weights

    def losses(position):
        inputs = batch["decoder_input_tokens"].copy()
        inputs[:, position] += 1
        return a_model.row_losses(params, batch | {"decoder_input_tokens": inputs}, None)[0]

    before, _ = a_model.row_losses(params, batch, None)
    assert np.abs(losses(3) - before).min() > 0
    np.testing.assert_array_equal(losses(5), before)


def test_what_is_bound_for_ours_counts_first(parse):
    parse(STOCK, OURS, "model.LDRODecoderOnlyModel.z_loss = 0.0\n")
    assert (model_of()._z_loss, model_of()._label_smoothing) == (0.0, 0.1)
    given = tiny_t5x.make_model(tiny_t5x.weighted(), label_smoothing=0.2)
    assert (given._z_loss, given._label_smoothing) == (0.01, 0.2)


def test_scopes_count_as_for_t5x(parse):
    parse(STOCK, OURS, "large/models.DecoderOnlyModel.z_loss = 0.02\n")
    assert (model_of("large/")._z_loss, model_of()._z_loss) == (0.02, 0.01)


def test_what_counts_for_nothing_is_not_called(parse):
    parse(
        "models.DecoderOnlyModel:\n  module = @tiny_t5x.module()\n  vocabulary = %UNKNOWN\n"
        "  optimizer_def = %UNKNOWN\n  z_loss = 0.01\nUNKNOWN = %gin.REQUIRED\n"
    )
    assert tiny_t5x.make_model(tiny_t5x.weighted())._z_loss == 0.01


def test_a_loss_normalising_factor_of_a_stock_file_is_refused_by_name(parse):
    factor = "LOSS_NORMALIZING_FACTOR = 233472\n"
    parse(STOCK, OURS, factor)
    with pytest.raises(
        ValueError, match="Bind LDRODecoderOnlyModel.loss_normalizing_factor = None"
    ):
        model_of()
    parse(STOCK, OURS, factor, "model.LDRODecoderOnlyModel.loss_normalizing_factor = None\n")
    assert model_of()._loss_normalizing_factor is None


def decodes(a_model, **options):
    """How many texts are asked of the decoding function."""
    seen = []

    def decode_fn(inputs, num_decodes, **_):
        seen.append(num_decodes)
        return inputs[:, None].repeat(num_decodes, 1), np.zeros((len(inputs), num_decodes))

    a_model._decode_fn = decode_fn
    params = params_of(a_model)
    # The vocabulary of the stock file is not at hand.
    options["decoder_params"] = {"eos_id": 1}
    a_model.predict_batch_with_aux(params, with_prefix(tiny_t5x.batch(padding=False)), **options)
    return seen[0]


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (1, 2, 0)])
def test_decoding_has_the_bindings_of_a_stock_file(parse, order):
    binding = "models.DecoderOnlyModel.predict_batch_with_aux.num_decodes = 8\n"
    texts = (binding, STOCK, OURS)
    parse(*(texts[index] for index in order))
    assert decodes(model_of()) == 8
    assert decodes(model_of(), num_decodes=2) == 2


def test_bindings_for_other_methods_are_refused_by_name(run_python):
    # In a process of its own: gin forgets bindings, but not what has been registered for them.
    text = HEADER + STOCK + OURS + "models.BaseTransformerModel.loss_fn.dropout_rng = None"
    output = run_python(
        f"import gin\nfrom helpers import tiny_t5x\ngin.parse_config({text!r})\n"
        "try:\n  gin.get_configurable('ldro_jax.t5x.model.LDRODecoderOnlyModel')()\n"
        "except ValueError as error:\n  print(error)\n"
    )
    assert "BaseTransformerModel.loss_fn is bound in gin (dropout_rng), but" in output
    assert "Remove them." in output


def test_the_trainer_has_the_bindings_of_a_stock_file(parse):
    parse(
        "t5x_trainer.Trainer:\n  num_microbatches = 2\n"
        "  learning_rate_fn = @optax.constant_schedule()\n"
        "  weight_metrics_computer = @t5x_trainer.WeightMetricsComputer()\n"
        "optax.constant_schedule.value = 0.25\n"
        "trainer.LDROTrainer.task_names = ('ar', 'fr', 'ru', 'sw')\n"
    )
    cls = gin.get_configurable("ldro_jax.t5x.trainer.LDROTrainer")
    a_model, parts = tiny_t5x.make_model(tiny_t5x.weighted()), tiny_t5x.partitioner()
    start = tiny_t5x.initializer(a_model, parts)

    def make(**options):
        return cls(
            model=a_model,
            train_state=start.from_scratch(jax.random.PRNGKey(0)),
            partitioner=parts,
            train_state_axes=start.train_state_axes,
            eval_names=[],
            summary_dir=None,
            rng=jax.random.PRNGKey(1),
            **options,
        )

    found = make()
    assert (found._num_microbatches, found._learning_rate_fn(0)) == (2, 0.25)
    assert found._weight_metrics_computer is not None
    assert make(num_microbatches=None)._num_microbatches is None


PAIRS = """
models.EncoderDecoderModel:
  module = @tiny_t5x.encoder_decoder_module()
  input_vocabulary = @seqio.ByteVocabulary()
  output_vocabulary = @seqio.ByteVocabulary()
  optimizer_def = %OPTIMIZER
  z_loss = 0.01
  label_smoothing = 0.1
  decode_fn = @decoding.temperature_sample
models.EncoderDecoderModel.predict_batch_with_aux.num_decodes = 8
models.EncoderDecoderModel.score_batch.return_intermediates = True
MODEL = @model.LDROEncoderDecoderModel()
OPTIMIZER = @tiny_t5x.weighted()
"""


def test_an_encoder_decoder_has_the_bindings_of_a_stock_file(parse):
    parse(PAIRS)
    found = gin.get_configurable("ldro_jax.t5x.model.LDROEncoderDecoderModel")()
    assert isinstance(found, tiny_t5x.model_lib.LDROEncoderDecoderModel)
    assert (found._z_loss, found._label_smoothing) == (0.01, 0.1)
    assert found.decode_fn.__name__ == "temperature_sample"
    start = tiny_t5x.initializer(found, tiny_t5x.partitioner())
    params = start.from_scratch(jax.random.PRNGKey(0)).params
    batch = tiny_t5x.tasks_lib.unmarked(tiny_t5x.pair_batch())
    scores, intermediates = found.score_batch(params, batch)
    assert scores.shape == (tiny_t5x.ROWS,) and "decoder" in intermediates
    assert found.score_batch(params, batch, return_intermediates=False).shape == scores.shape
    decodes, _ = found.predict_batch_with_aux(
        params, batch, jax.random.PRNGKey(0), return_all_decodes=True
    )
    assert decodes.shape[:2] == (tiny_t5x.ROWS, 8)


@pytest.mark.parametrize(
    "binding",
    ["models.BaseTransformerModel.z_loss = 0.1", "t5x_trainer.BaseTrainer.rng = None"],
)
def test_bindings_for_base_classes_are_refused_by_name(parse, binding):
    # T5X's own classes would be left without them.
    parse(STOCK, OURS, f"{binding}\n")
    name = binding.split(" ")[0].split(".")[1]
    with pytest.raises(ValueError, match=f"{name} is bound in gin .* no effect .* Bind "):
        if name == "BaseTrainer":
            tiny_t5x.make_trainer(tiny_t5x.make_model(tiny_t5x.weighted()))
        else:
            model_of()
