import jax
import numpy as np
import pytest

tiny_t5x = pytest.importorskip(
    "tiny_t5x", reason="T5X is not installed (scripts/install_t5x.sh)", exc_type=ImportError
)
pytestmark = pytest.mark.filterwarnings("ignore")


def params(a_model):
    shape = (tiny_t5x.ROWS, tiny_t5x.LENGTH)
    return a_model.get_initial_variables(
        jax.random.PRNGKey(0), {"decoder_input_tokens": shape}, {"decoder_input_tokens": np.int32}
    )["params"]


@pytest.mark.parametrize("options", [{}, {"z_loss": 0.01}, {"label_smoothing": 0.1}])
@pytest.mark.parametrize("packed", [False, True])
def test_the_losses_of_rows_add_up_to_t5x_own_loss(options, packed):
    a_model = tiny_t5x.make_model(tiny_t5x.weighted(), **options)
    batch = tiny_t5x.batch()
    if packed:
        segments = np.repeat([1, 2], [3, tiny_t5x.LENGTH - 3])[None].repeat(tiny_t5x.ROWS, 0)
        positions = np.r_[0:3, 0 : tiny_t5x.LENGTH - 3][None].repeat(tiny_t5x.ROWS, 0)
        batch |= {"decoder_segment_ids": segments, "decoder_positions": positions}
    losses, metrics = a_model.row_losses(params(a_model), batch, None)
    total, expected = a_model.loss_fn(params(a_model), batch, None)
    assert losses.shape == (tiny_t5x.ROWS,)
    np.testing.assert_allclose(losses.sum(), total, rtol=1e-5)
    one = {name: value[3:4] for name, value in batch.items()}
    np.testing.assert_allclose(losses[3], a_model.loss_fn(params(a_model), one, None)[0], rtol=1e-5)
    assert metrics.keys() == expected.keys()
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), metrics, expected)


def test_refuses_a_loss_normalising_factor():
    with pytest.raises(ValueError, match="must be None, but it is 233472"):
        tiny_t5x.make_model(tiny_t5x.weighted(), loss_normalizing_factor=233472)


def test_padding_does_not_count_where_no_weights_are_given():
    tokens = np.array([[5, 6, 0, 0], [0, 7, 0, 0]])
    found = tiny_t5x.model_lib.token_weights({"decoder_target_tokens": tokens})
    np.testing.assert_array_equal(found, [[1, 1, 0, 0], [0, 1, 0, 0]])
