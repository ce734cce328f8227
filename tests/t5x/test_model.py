import jax
import numpy as np
import pytest

tiny_t5x = pytest.importorskip(
    "helpers.tiny_t5x", reason="T5X is not installed (scripts/install_t5x.sh)", exc_type=ImportError
)
pytestmark = pytest.mark.filterwarnings("ignore")


def params(a_model):
    batch = tiny_t5x.tasks_lib.unmarked(tiny_t5x.pair_batch())
    shapes = {name: feature.shape for name, feature in batch.items()}
    types = {name: np.int32 for name in batch}
    return a_model.get_initial_variables(jax.random.PRNGKey(0), shapes, types)["params"]


CLASSES = [tiny_t5x.model_lib.LDRODecoderOnlyModel, tiny_t5x.model_lib.LDROEncoderDecoderModel]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("options", [{}, {"z_loss": 0.01}, {"label_smoothing": 0.1}])
@pytest.mark.parametrize("packed", [False, True])
def test_the_losses_of_rows_add_up_to_t5x_own_loss(cls, options, packed):
    a_model = tiny_t5x.make_model(tiny_t5x.weighted(), cls, **options)
    batch = tiny_t5x.pair_batch(packed=packed)
    if not issubclass(cls, tiny_t5x.models.EncoderDecoderModel):
        batch = {name: x for name, x in batch.items() if not name.startswith("encoder")}
    losses, metrics = a_model.row_losses(params(a_model), batch, None)
    total, expected = a_model.loss_fn(params(a_model), batch, None)
    assert losses.shape == (tiny_t5x.ROWS,)
    np.testing.assert_allclose(losses.sum(), total, rtol=1e-5)
    one = {name: value[3:4] for name, value in batch.items()}
    np.testing.assert_allclose(losses[3], a_model.loss_fn(params(a_model), one, None)[0], rtol=1e-5)
    assert metrics.keys() == expected.keys()
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), metrics, expected)


class Mine(tiny_t5x.models.EncoderDecoderModel):
    """With arguments of its own, as a team may have."""

    def __init__(self, *args, note, **kwargs):
        super().__init__(*args, **kwargs)
        self.note = note


class LDROMine(tiny_t5x.model_lib.LDROModel, Mine):
    """And for training with L-DRO."""


def test_a_model_of_ones_own_needs_two_lines():
    a_model = tiny_t5x.make_model(tiny_t5x.weighted(), LDROMine, note="ours", z_loss=0.01)
    assert (a_model.note, a_model._z_loss) == ("ours", 0.01)
    batch = tiny_t5x.pair_batch()
    losses, _ = a_model.row_losses(params(a_model), batch, None)
    total, _ = a_model.loss_fn(params(a_model), batch, None)
    np.testing.assert_allclose(losses.sum(), total, rtol=1e-5)


class OtherLoss(tiny_t5x.models.EncoderDecoderModel):
    def loss_fn(self, params, batch, dropout_rng):
        loss, metrics = super().loss_fn(params, batch, dropout_rng)
        return loss + 1, metrics


class LDROOtherLoss(tiny_t5x.model_lib.LDROModel, OtherLoss):
    pass


def test_refuses_a_model_with_another_loss():
    with pytest.raises(TypeError, match="OtherLoss has a loss_fn of its own, but LDROOtherLoss"):
        tiny_t5x.make_model(tiny_t5x.weighted(), LDROOtherLoss)


def test_refuses_a_loss_normalising_factor():
    with pytest.raises(ValueError, match="must be None, but it is 233472"):
        tiny_t5x.make_model(tiny_t5x.weighted(), loss_normalizing_factor=233472)


def test_padding_does_not_count_where_no_weights_are_given():
    tokens = np.array([[5, 6, 0, 0], [0, 7, 0, 0]])
    found = tiny_t5x.model_lib.token_weights({"decoder_target_tokens": tokens})
    np.testing.assert_array_equal(found, [[1, 1, 0, 0], [0, 1, 0, 0]])
