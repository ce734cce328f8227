"""The interaction in every step, from the pass that gives the training gradient."""

import jax
import numpy as np
import pytest

tiny_t5x = pytest.importorskip(
    "helpers.tiny_t5x", reason="T5X is not installed (scripts/install_t5x.sh)", exc_type=ImportError
)
pytestmark = pytest.mark.filterwarnings("ignore")
N, ROWS = tiny_t5x.N, tiny_t5x.ROWS
BATCHES = [tiny_t5x.batch(seed) for seed in range(5)]


class Watched(tiny_t5x.model_lib.LDRODecoderOnlyModel):
    """Notes how many rows it is given."""

    def row_losses(self, params, batch, dropout_rng):
        self.seen = {*getattr(self, "seen", ()), batch["decoder_target_tokens"].shape[0]}
        return super().row_losses(params, batch, dropout_rng)


def trained(batches=BATCHES, model_parallel=2, options=None, **changes):
    a_model = tiny_t5x.make_model(tiny_t5x.weighted(interaction_interval=1, **changes), Watched)
    a_trainer = tiny_t5x.make_trainer(
        a_model, parts=tiny_t5x.partitioner(model_parallel), **(options or {})
    )
    summary = tiny_t5x.train(a_trainer, batches)
    return a_trainer.train_state, a_model.seen, summary


def expected(lagged):
    tx = tiny_t5x.weighting(interaction_interval=1, lagged=lagged)
    return tiny_t5x.plain_loop(tx, tiny_t5x.sgd(), BATCHES)


@pytest.mark.parametrize("lagged", [False, True])
def test_one_pass_over_the_rows_of_each_task_does(lagged):
    state, seen, _ = trained(lagged=lagged)
    # The rows of one task, and never the whole batch.
    assert seen == {ROWS // N}
    tiny_t5x.assert_same(state, expected(lagged))


@pytest.mark.parametrize("lagged", [False, True])
@pytest.mark.parametrize(
    "options, rows",
    [
        ({"num_microbatches": 2}, {ROWS // 2, ROWS // N}),
        # Rows of a task that the devices don't divide are filled up.
        ({"model_parallel": 1}, {ROWS, 8}),
        ({"interaction": "tiled"}, {ROWS, ROWS // N}),
    ],
)
def test_otherwise_the_matrix_takes_a_pass_of_its_own(lagged, options, rows):
    options = dict(options)
    model_parallel = options.pop("model_parallel", 2)
    state, seen, _ = trained(lagged=lagged, model_parallel=model_parallel, options=options)
    assert seen == rows
    tiny_t5x.assert_same(state, expected(lagged))


@pytest.mark.parametrize("lagged", [False, True])
def test_metrics_are_those_of_the_whole_batch(lagged):
    _, _, found = trained(lagged=lagged)
    _, _, whole = trained(lagged=lagged, options={"num_microbatches": 2})
    for name in whole.keys() - {key for key in whole if key.startswith("timing/")}:
        if name == "ldro/worst_task":
            assert found[name].value == whole[name].value
        else:
            np.testing.assert_allclose(found[name].value, whole[name].value, rtol=1e-4)


@pytest.mark.parametrize("lagged", [False, True])
def test_a_task_without_tokens_adds_nothing(lagged):
    batch = dict(BATCHES[0])
    weights = batch["decoder_loss_weights"].copy()
    weights[1::N] = 0
    batch["decoder_loss_weights"] = weights
    state, _, _ = trained([BATCHES[1], batch], lagged=lagged)
    found = state.param_states["weighting"]
    before, _, _ = trained([BATCHES[1]], lagged=lagged)
    kept = before.param_states["weighting"]
    np.testing.assert_allclose(found.losses[1], kept.losses[1], rtol=1e-6)
    np.testing.assert_allclose(found.interaction[1], kept.interaction[1], rtol=1e-5)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


def test_a_matrix_of_halves_takes_a_pass_of_its_own():
    weighting = tiny_t5x.weighting(interaction_interval=1, interaction="split")
    optimizer = tiny_t5x.optimizer_lib.WeightedOptimizer(weighting, tiny_t5x.sgd())
    a_model = tiny_t5x.make_model(optimizer, Watched)
    a_trainer = tiny_t5x.make_trainer(a_model, interaction="split")
    tiny_t5x.train(a_trainer, BATCHES)
    # Halves of tokens, unlike those of rows, don't weigh the same.
    assert ROWS in a_model.seen
    tiny_t5x.assert_same(
        a_trainer.train_state, tiny_t5x.plain_loop(weighting, tiny_t5x.sgd(), BATCHES)
    )
