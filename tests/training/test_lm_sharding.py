"""On a mesh of devices: the same numbers, parameters that are split, and no more memory."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import tiny_lm

from ldro_jax import transform
from ldro_jax.models import decoder
from ldro_jax.training.sharding import Layout

N, STEPS = 8, 20
LAYOUTS = {
    "one": tiny_lm.ONE,
    "data": Layout(data=8),
    "data and model": Layout(data=4, model=2),
    "fully sharded": Layout(data=2, model=2, fully_sharded=True),
}
MODELS = {
    "bigram": tiny_lm.Bigram,
    "plain": tiny_lm.make_decoder,
    "scanned": functools.partial(tiny_lm.make_decoder, num_layers=2, scan_layers=True),
}
EVERY_STEP = dataclasses.replace(tiny_lm.LDRO, name="every step", interaction_interval=1)
DRAWN = dataclasses.replace(tiny_lm.LDRO, name="drawn", sampling="weights")
METHODS = {m.name: m for m in (tiny_lm.AVERAGE, tiny_lm.LDRO, EVERY_STEP, DRAWN)}


@pytest.fixture(scope="module", autouse=True)
def _quickly():
    with tiny_lm.compiled_quickly():
        yield


@functools.cache
def program(layout, model, method="L-DRO", num_tasks=N):
    """Some languages on a layout; the program's step is compiled here, for its memory analysis."""
    found = tiny_lm.make_program(
        METHODS[method], tiny_lm.corpus(num_tasks), make_model=MODELS[model], layout=LAYOUTS[layout]
    )
    found._step = found.lower().compile()
    return found


def batch(a_program, drawn, step):
    uniform = np.full(len(drawn), 1 / len(drawn), np.float32)
    draw = a_program.draw(drawn, uniform, 0, step)
    return a_program.batch(a_program.source(0), draw, uniform), draw.drawn


@functools.cache
def trained(layout, model, method="L-DRO", num_tasks=N, steps=STEPS):
    """Losses, weights and interaction of every step, and the last state."""
    a_program = program(layout, model, method, num_tasks)
    state, drawn, seen = a_program.init(0), np.zeros(num_tasks, np.int64), []
    for step in range(steps):
        rows, drawn = batch(a_program, drawn, step)
        state, losses = a_program.step(state, rows, a_program.method)
        found = transform.find_state(state.opt_state)
        # Copies, since the next step reuses the memory.
        seen.append([np.array(x) for x in (losses, found.weights, found.interaction)])
    return *map(np.array, zip(*seen, strict=True)), state


@pytest.mark.parametrize(
    ("layout", "model", "options"),
    [
        ("data", "scanned", {}),
        ("data and model", "plain", {}),
        ("fully sharded", "plain", {}),
        ("data", "bigram", {"method": "every step"}),
        ("data", "bigram", {"method": "drawn"}),
        # Sixteen rows, so that the tasks take turns in having four.
        ("data", "bigram", {"num_tasks": 5}),
    ],
)
def test_every_layout_trains_the_same(layout, model, options):
    found, expected = (trained(where, model, **options) for where in (layout, "one"))
    # Sums over the devices are taken in another order, and the steps amplify that a little.
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    # Entries where gradients cancel have larger relative errors than others.
    scale = np.abs(expected[2]).max()
    assert scale > 0
    np.testing.assert_allclose(found[2], expected[2], rtol=1e-3, atol=1e-4 * scale)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        found[3].params,
        expected[3].params,
    )
    losses, weights, _, _ = found
    assert np.ptp(losses, axis=0).max() > 0.1 and np.ptp(weights[-1]) > 0.01


def shapes(tree):
    """What one device holds of each array."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.addressable_shards[
            0
        ].data.shape
        for path, leaf in paths
    }


# The whole arrays: embedding [128, 16], query [16, 2, 8], out [2, 8, 16], gate [16, 32] and
# down [32, 16].
SPLIT = {
    "data and model": {
        "embedding": (64, 16),
        "final_norm/scale": (16,),
        "layer_0/attention_norm/scale": (16,),
        "layer_0/down/kernel": (16, 16),
        "layer_0/gate/kernel": (16, 16),
        "layer_0/key/kernel": (16, 1, 8),
        "layer_0/mlp_norm/scale": (16,),
        "layer_0/out/kernel": (1, 8, 16),
        "layer_0/query/kernel": (16, 1, 8),
        "layer_0/up/kernel": (16, 16),
        "layer_0/value/kernel": (16, 1, 8),
    },
    "fully sharded": {
        "embedding": (64, 8),
        "final_norm/scale": (16,),
        "layer_0/attention_norm/scale": (16,),
        "layer_0/down/kernel": (16, 8),
        "layer_0/gate/kernel": (8, 16),
        "layer_0/key/kernel": (8, 1, 8),
        "layer_0/mlp_norm/scale": (16,),
        "layer_0/out/kernel": (1, 8, 8),
        "layer_0/query/kernel": (8, 1, 8),
        "layer_0/up/kernel": (8, 16),
        "layer_0/value/kernel": (8, 1, 8),
    },
}


@pytest.mark.parametrize("layout", SPLIT)
def test_parameters_and_optimizer_are_split_as_the_rules_say(layout):
    state = trained(layout, "plain")[3]
    for tree in (state.params, state.opt_state[1][0].trace):
        assert shapes(tree) == SPLIT[layout]
        for leaf in jax.tree.leaves(tree):
            assert len({shard.device for shard in leaf.addressable_shards}) == len(
                program(layout, "plain").mesh.devices.flat
            )
    small = (state.step, transform.find_state(state.opt_state))
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(small))


def test_stacked_layers_are_split_like_single_ones_and_not_along_the_layers():
    # Nothing is compiled for this.
    found = tiny_lm.make_program(
        tiny_lm.AVERAGE,
        tiny_lm.corpus(N),
        make_model=MODELS["scanned"],
        layout=LAYOUTS["fully sharded"],
    ).shardings.params["layers"]
    assert tuple(found["query"]["kernel"].spec) == (None, "data", "model", None)
    assert tuple(found["down"]["kernel"].spec) == (None, "model", "data")
    assert found["mlp_norm"]["scale"].is_fully_replicated


def test_every_device_gets_its_rows_of_the_same_batch():
    found, expected = (
        batch(program(layout, "bigram", "every step"), np.zeros(N, np.int64), 0)[0]
        for layout in ("data", "one")
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    # One row of each of the eight tasks comes before the second of any, so a device has two tasks.
    assert [shard.data.tolist() for shard in found.tasks.addressable_shards] == [
        [t, t + 1] for t in (0, 2, 4, 6) * 2
    ]
    assert {shard.data.shape for shard in found.tokens.addressable_shards} == {(2, tiny_lm.LENGTH)}


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluation_does_not_depend_on_the_layout(split):
    programs = [program(layout, "bigram", "every step") for layout in ("data", "one")]
    found, expected = (p.evaluate(p.init(0).params, split) for p in programs)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def peak(layout, model, method):
    """Temporary memory of a step on each device, in bytes."""
    return program(layout, model, method)._step.memory_analysis().temp_size_in_bytes


# Of the average loss's step on the same mesh. Measured with jaxlib 0.10.2: 1.5, 1.0 and 0.8. Whole
# gradients of eight tasks on every device would make it 4.5, 2.9 and 4.1.
@pytest.mark.parametrize(
    ("layout", "model", "method"),
    [
        ("data", "scanned", "L-DRO"),
        ("data and model", "plain", "L-DRO"),
        ("data", "bigram", "every step"),
    ],
)
def test_the_interaction_takes_little_memory_beside_a_step_on_the_average_loss(
    layout, model, method
):
    ratio = peak(layout, model, method) / peak(layout, model, "Average")
    assert ratio < 2


def test_the_gradients_of_the_tasks_are_split_over_the_data_axis():
    a_program = tiny_lm.make_program(
        tiny_lm.LDRO, tiny_lm.corpus(N), layout=LAYOUTS["data and model"]
    )
    rows = jax.random.randint(jax.random.key(0), (N, 4, tiny_lm.LENGTH), 0, tiny_lm.VOCAB_SIZE)

    def task_loss(params, tokens):
        return a_program.row_losses(params, tokens).mean()

    gradients_of = jax.jit(a_program._strategy().gradients, static_argnums=0)
    _, gradients = gradients_of(task_loss, a_program.init(0).params, rows)
    # The embedding is [128, 16], over model along the vocabulary, and the kernel [16, 16].
    assert shapes(gradients) == {"embedding": (N, 64, 4), "kernel": (N, 4, 8)}


@pytest.mark.parametrize(
    "layout",
    [Layout(data=4, model=4), Layout(data=16), Layout(model=9)],
    ids=str,
)
def test_a_mesh_needs_devices_and_there_are_eight(layout):
    with pytest.raises(
        ValueError, match="layout asks for a mesh .*, but there are 8.*at most that"
    ):
        layout.mesh()


@pytest.mark.parametrize("options", [{"data": 0}, {"model": 0}, {"model": 2.0}], ids=str)
def test_a_layout_has_positive_numbers_of_parts(options):
    with pytest.raises(ValueError, match="(data|model) must be a positive integer"):
        Layout(**options)


@pytest.mark.parametrize(
    ("layout", "shape"),
    [(Layout(), (8, 1)), (Layout(model=2), (4, 2)), (Layout(model=3), (2, 3))],
    ids=str,
)
def test_by_default_the_data_axis_takes_the_devices_that_are_left(layout, shape):
    assert tuple(layout.mesh().shape.values()) == shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 7}, "batch_size must be at least 8, a row of each task, but it is 7"),
        ({"layout": LAYOUTS["data"], "microbatches": 4}, "data axis, 4 × 8, but it is 16"),
        ({"microbatches": 3}, "data axis, 3 × 1, but it is 16"),
        ({"microbatches": 0}, "microbatches must be a positive integer, but it is 0"),
        ({"batch_size": 16.0}, "batch_size must be a positive integer, but it is 16.0"),
        ({"interaction_rows": 0}, "interaction_rows must be a positive integer, but it is 0"),
        ({"eval_length": -8}, "eval_length must be a positive integer, but it is -8"),
        ({"length": 0}, "length must be a positive integer, but it is 0"),
        # Two heads over four devices.
        (
            {"layout": Layout(data=2, model=4), "make_model": tiny_lm.make_decoder},
            r"layer_0.*key.*kernel.* has the shape \(16, 2, 8\), whose axis of size 2 can't be "
            "split evenly over the 4 devices of the mesh axis 'model'",
        ),
        # The embedding's 16 columns and 128 rows, both.
        (
            {"layout": Layout(data=1, model=3), "make_model": tiny_lm.make_decoder},
            r"embedding.* has the shape \(128, 16\), whose axis of size 128",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_compiled(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_lm.make_program(tiny_lm.AVERAGE, tiny_lm.corpus(N), **options)


def test_the_vocabulary_is_filled_up_so_that_it_can_be_split():
    assert tiny_lm.PADDED_VOCAB == 128 > tiny_lm.VOCAB_SIZE
    a_program = program("one", "plain")
    assert isinstance(a_program._model, decoder.Decoder)
    assert a_program._model.vocab_size == tiny_lm.PADDED_VOCAB
    assert a_program.init(0).params["embedding"].shape == (tiny_lm.PADDED_VOCAB, 16)
