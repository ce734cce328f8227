"""The language model is the textbook's, sees no token early, and is one function in all forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax.core import meta

from ldro_jax import sharding
from ldro_jax.models import decoder

V, CONTEXT, LAYERS, HEADS, WIDTH = 37, 8, 2, 2, 16
# As many rows as positions, each to change one token of.
ROWS = 8
# Compiles three times as fast, where the function is tested and not the compiler.
FAST = {"xla_backend_optimization_level": 0}


def make(**changes):
    sizes = {"num_layers": LAYERS, "embed_dim": WIDTH, "num_heads": HEADS, "mlp_dim": 24}
    return decoder.Decoder(**{"vocab_size": V, "context": CONTEXT, **sizes} | changes)


def shapes(model):
    tokens = jax.ShapeDtypeStruct((ROWS, CONTEXT), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]


@functools.cache
def parameters(positions="rotary", num_layers=LAYERS):
    """Far from the initial ones, so that every part of the model shows in the losses."""
    generator = np.random.default_rng(0)

    def draw(path, leaf):
        noise = 0.3 * generator.standard_normal(leaf.shape)
        return np.asarray(noise + (path[-1].key == "scale"), leaf.dtype)

    model = make(positions=positions, num_layers=num_layers)
    return jax.tree_util.tree_map_with_path(draw, meta.unbox(shapes(model)))


def stacked(params):
    """The parameters of a model with scanned layers."""
    layers = [params[f"layer_{index}"] for index in range(LAYERS)]
    rest = {name: params[name] for name in params if not name.startswith("layer_")}
    return rest | {"layers": jax.tree.map(lambda *leaves: np.stack(leaves), *layers)}


def nth(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def text(length, seed=1):
    # Token 0, which padding is, among them.
    return np.random.default_rng(seed).integers(0, V, (ROWS, length)).astype(np.int32)


@functools.cache
def _forward(**changes):
    model = make(**changes)

    def losses_and_logits(params, tokens):
        variables = {"params": params}
        return model.apply(variables, tokens), model.apply(variables, tokens, method="logits")

    return jax.jit(losses_and_logits, compiler_options=FAST)


def forward(tokens, positions="rotary", num_layers=LAYERS):
    program = _forward(positions=positions, num_layers=num_layers)
    return jax.tree.map(np.asarray, program(parameters(positions, num_layers), tokens))


def losses_of(tokens, *options):
    return forward(tokens, *options)[0]


def log_likelihood(logits, tokens):
    log_probabilities = scipy.special.log_softmax(logits.astype(np.float64), axis=-1)
    return np.take_along_axis(log_probabilities, tokens[..., None], -1)[..., 0]


def weighted(losses):
    # Every position has a cotangent of its own.
    return (
        losses * jnp.cos(jnp.arange(losses.size, dtype=losses.dtype)).reshape(losses.shape)
    ).sum()


@functools.cache
def _gradients(tasks=False, **changes):
    model = make(**changes)

    def loss_and_losses(params, tokens):
        losses = model.apply({"params": params}, tokens)
        return weighted(losses), losses

    one = jax.grad(loss_and_losses, has_aux=True)
    if tasks:
        return jax.jit(jax.vmap(one, in_axes=(None, 0)))
    return jax.jit(one, compiler_options=FAST)


def textbook(params, tokens, positions):
    """The losses, in NumPy's float64, one position after the other."""
    length, half = tokens.shape[1], WIDTH // HEADS // 2
    params = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)

    def norm(x, scale):
        return scale * x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6)

    def rotary(x):
        # Two numbers are one complex number, which turns by an angle.
        turns = np.outer(np.arange(length), 10_000.0 ** (-np.arange(half) / half))
        z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * turns)[None, :, None]
        return np.concatenate([z.real, z.imag], axis=-1)

    inputs = np.concatenate([np.zeros_like(tokens[:, :1]), tokens[:, :-1]], axis=1)
    x = params["embedding"][inputs]
    if positions == "learned":
        # Each position is as wide as the row over the context, and stands at its middle.
        places = (np.arange(length) + 0.5) * min(CONTEXT / length, 1) - 0.5
        table = params["positions"].T
        x = x + np.stack([np.interp(places, np.arange(CONTEXT), column) for column in table], -1)
    for layer in (params[f"layer_{index}"] for index in range(LAYERS)):
        h = norm(x, layer["attention_norm"]["scale"])
        q, k, v = (np.tensordot(h, layer[name]["kernel"], 1) for name in ("query", "key", "value"))
        if positions == "rotary":
            q, k = rotary(q), rotary(k)
        attended = np.zeros_like(v)
        for row, to, head in np.ndindex(len(tokens), length, HEADS):
            seen = slice(max(to - CONTEXT + 1, 0) if positions == "rotary" else 0, to + 1)
            scores = k[row, seen, head] @ q[row, to, head] / np.sqrt(2 * half)
            attended[row, to, head] = scipy.special.softmax(scores) @ v[row, seen, head]
        x = x + np.tensordot(attended, layer["out"]["kernel"], 2)
        h = norm(x, layer["mlp_norm"]["scale"])
        gate, up = h @ layer["gate"]["kernel"], h @ layer["up"]["kernel"]
        x = x + (gate * scipy.special.expit(gate) * up) @ layer["down"]["kernel"]
    logits = norm(x, params["final_norm"]["scale"]) @ params["embedding"].T
    return -log_likelihood(logits, tokens)


# At twice the context rotary attention has a window, and learned positions are interpolated.
@pytest.mark.parametrize("length", [3, CONTEXT, 2 * CONTEXT])
@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_the_losses_are_the_textbooks(positions, length):
    tokens = text(length)
    losses, logits = forward(tokens, positions)
    assert losses.shape == (ROWS, length) and logits.shape == (ROWS, length, V)
    assert losses.dtype == logits.dtype == np.float32
    # Some tens of roundings, by 6e-8, of numbers up to ten, one after the other.
    expected = textbook(parameters(positions), tokens, positions)
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5)
    # The logits are those that the losses are made of.
    np.testing.assert_allclose(losses, -log_likelihood(logits, tokens), rtol=0, atol=2e-6)


def test_the_gradient_is_the_slope_of_the_textbooks_losses():
    tokens, params = text(CONTEXT), parameters()
    gradient, _ = _gradients()(params, tokens)
    weights = np.cos(np.arange(tokens.size)).reshape(tokens.shape)

    def moved(direction, step):
        there = jax.tree.map(lambda p, d: p + step * d, params, direction)
        return (weights * textbook(there, tokens, "rotary")).sum()

    generator = np.random.default_rng(2)
    for _ in range(3):
        direction = jax.tree.map(lambda leaf: generator.standard_normal(leaf.shape), params)
        slope = (moved(direction, 1e-4) - moved(direction, -1e-4)) / 2e-4
        parts = jax.tree.map(
            lambda g, d: (np.asarray(g, np.float64) * d).sum(), gradient, direction
        )
        # Third derivatives times the step squared, and float32.
        np.testing.assert_allclose(sum(jax.tree.leaves(parts)), slope, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_a_token_changes_no_earlier_loss(positions):
    # Row l has another token l.
    tokens = np.repeat(text(CONTEXT, seed=5)[:1], ROWS, axis=0)
    changed = tokens.copy()
    np.fill_diagonal(changed, (np.diag(tokens) + 1) % V)
    before, after = losses_of(tokens, positions), losses_of(changed, positions)
    place, token = np.meshgrid(np.arange(CONTEXT), np.arange(ROWS))
    # Not by a bit, as it is one program and what is masked is multiplied by zero.
    np.testing.assert_array_equal(after[place < token], before[place < token])
    assert (np.abs(after - before)[place >= token] > 1e-4).all()


def test_no_token_has_an_influence_on_its_own_logits():
    tokens = text(CONTEXT)
    changed = tokens.copy()
    changed[:, -1] = (tokens[:, -1] + 1) % V
    np.testing.assert_array_equal(forward(tokens)[1], forward(changed)[1])


@functools.cache
def _rotate():
    return jax.jit(decoder.rotate, compiler_options=FAST)


def test_rotary_scores_depend_on_the_distance_only():
    generator = np.random.default_rng(3)
    one_q, one_k = generator.standard_normal((2, 1, 1, HEADS, 8)).astype(np.float32)
    # The same query and the same key at all of 16 positions.
    q, k = (np.asarray(_rotate()(np.repeat(one, 16, axis=1))) for one in (one_q, one_k))
    scores = np.einsum("bqhk,bshk->hqs", q, k)
    for head in scores:
        diagonals = [np.diagonal(head, distance) for distance in range(-15, 16)]
        for diagonal in diagonals:
            np.testing.assert_allclose(diagonal, diagonal[0], rtol=0, atol=1e-5)
        # Distances differ, and so do before and after.
        assert len({round(float(diagonal[0]), 3) for diagonal in diagonals}) == 31
    np.testing.assert_array_equal(q[:, 0], one_q[:, 0])
    # Nothing but angles changes.
    lengths = np.linalg.norm(one_q, axis=-1)
    np.testing.assert_allclose(np.linalg.norm(q, axis=-1), np.tile(lengths, (1, 16, 1)), rtol=1e-6)


def test_a_longer_row_begins_with_the_losses_of_a_shorter():
    tokens = text(2 * CONTEXT)
    whole, beginning = losses_of(tokens), losses_of(tokens[:, :CONTEXT])
    np.testing.assert_allclose(whole[:, :CONTEXT], beginning, rtol=0, atol=1e-5)


def test_beyond_the_window_one_layer_sees_nothing():
    # Row s has another token s, which is an input of the next position.
    tokens = np.repeat(text(2 * CONTEXT)[:1], ROWS, axis=0)
    changed = tokens.copy()
    changed[np.arange(ROWS), np.arange(ROWS)] = (tokens[0, :ROWS] + 1) % V
    before, after = (losses_of(t, "rotary", 1) for t in (tokens, changed))
    distance = np.arange(2 * CONTEXT)[None, :] - np.arange(ROWS)[:, None]
    reached = (distance >= 0) & (distance <= CONTEXT)
    np.testing.assert_array_equal(after[~reached], before[~reached])
    assert (np.abs(after - before)[reached] > 1e-5).all()


# A chunk that divides the length and one that doesn't.
FORMS = [
    {"remat": True, "logits_chunk": 3},
    {"scan_layers": True, "logits_chunk": 4},
    {"scan_layers": True, "remat": True, "logits_chunk": 3},
]


def assert_same_gradients(found, expected):
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        # Roundings of sums over 64 positions, relative to the largest entry.
        tolerance = 2e-5 * np.abs(b).max()
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance, err_msg=str(path))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_scanning_rematerialising_and_chunks_change_nothing(form):
    tokens, params = text(CONTEXT), parameters()
    expected, losses = _gradients()(params, tokens)
    stack = stacked if "scan_layers" in form else lambda p: p
    found, found_losses = _gradients(**form)(stack(params), tokens)
    np.testing.assert_allclose(found_losses, losses, rtol=0, atol=1e-5)
    assert_same_gradients(found, stack(jax.device_get(expected)))


# XLA:CPU has miscompiled batched pullbacks: in each of these forms the compiled program is another.
@pytest.mark.parametrize("logits_chunk", [None, 3])
@pytest.mark.parametrize("scan_layers", [False, True])
def test_gradients_of_all_tasks_at_once_are_those_of_each(scan_layers, logits_chunk):
    tokens, params = np.stack([text(CONTEXT, seed) for seed in range(3)]), parameters()
    stack = stacked if scan_layers else lambda p: p
    form = {"scan_layers": scan_layers, "logits_chunk": logits_chunk}
    found, losses = jax.device_get(_gradients(True, **form)(stack(params), tokens))
    for task in range(3):
        expected, expected_losses = jax.device_get(_gradients()(params, tokens[task]))
        np.testing.assert_allclose(losses[task], expected_losses, rtol=0, atol=1e-5)
        assert_same_gradients(nth(found, task), stack(expected))


def test_parameters_and_losses_of_bfloat16_activations_are_float32():
    seen = []

    def look(x):
        seen.append((x.shape, x.dtype))
        return x

    tokens, params = text(CONTEXT), parameters()
    model = make(dtype=jnp.bfloat16, constrain=look)
    # Flax's own norm multiplies bfloat16 by float32.
    with jax.numpy_dtype_promotion("standard"):
        assert {leaf.dtype for leaf in jax.tree.leaves(shapes(model))} == {jnp.dtype("float32")}
        seen.clear()
        gradient, losses = _gradients(dtype=jnp.bfloat16)(params, tokens)
        jax.eval_shape(model.apply, {"params": params}, tokens)
        logits = jax.eval_shape(
            functools.partial(model.apply, method="logits"), {"params": params}, tokens
        )
    assert losses.dtype == logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
    # The embedded tokens and each layer, once for the losses and once for the logits.
    assert seen == [((ROWS, CONTEXT, WIDTH), jnp.bfloat16)] * 2 * (1 + LAYERS)
    expected_gradient, expected = _gradients()(params, tokens)
    error = np.abs(losses - expected)
    # Numbers around one are rounded by 0.2 % a few tens of times.
    assert 1e-4 < error.mean() < 0.02 and error.max() < 0.1
    flat, flat_expected = (
        np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(jax.device_get(tree))])
        for tree in (gradient, expected_gradient)
    )
    assert np.linalg.norm(flat - flat_expected) < 0.06 * np.linalg.norm(flat_expected)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_a_new_model_knows_nothing(scan_layers):
    model = make(scan_layers=scan_layers)

    @functools.partial(jax.jit, compiler_options=FAST)
    def start(key, tokens):
        params = meta.unbox(model.init(key, tokens)["params"])
        return params, model.apply({"params": params}, tokens)

    # The default generator takes twice as long to compile.
    key = jax.random.key(0, impl="unsafe_rbg")
    params, losses = jax.device_get(start(key, text(CONTEXT)))
    # Every token is as likely as any other, but for logits with a standard deviation of 0.02 · √16.
    assert abs(losses.mean() - np.log(V)) < 0.05 and losses.std() < 0.2
    layers = [
        nth(params["layers"], index) if scan_layers else params[f"layer_{index}"]
        for index in range(LAYERS)
    ]
    for layer in layers:
        # 256 numbers or more know their standard deviation to 4.4 %.
        for name in ("query", "key", "value", "gate", "up"):
            assert abs(layer[name]["kernel"].std() / 0.02 - 1) < 0.2
        # Four branches are added.
        for name in ("out", "down"):
            assert abs(layer[name]["kernel"].std() / 0.01 - 1) < 0.2
    # Layers start with parameters of their own.
    assert (layers[0]["query"]["kernel"] != layers[1]["query"]["kernel"]).all()


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_every_axis_of_every_parameter_has_a_rule(positions, scan_layers):
    known = {axis for axis, _ in sharding.Layout().rules()}
    boxed = shapes(make(positions=positions, scan_layers=scan_layers))
    leaves = jax.tree.leaves(boxed, is_leaf=lambda leaf: isinstance(leaf, meta.AxisMetadata))
    num_expected = 2 + (positions == "learned") + (1 if scan_layers else LAYERS) * 9
    assert len(leaves) == num_expected
    for leaf in leaves:
        assert isinstance(leaf, meta.AxisMetadata)
        assert len(leaf.names) == leaf.unbox().ndim and set(leaf.names) <= known
    names = [leaf.names for leaf in leaves]
    assert sum(n[0] == "layers" for n in names) == 9 * scan_layers


def test_layers_with_the_same_axes_are_split_the_same_way():
    plain, scanned = (shapes(make(scan_layers=scan)) for scan in (False, True))
    for (name, *rest), leaf in (
        (tuple(key.key for key in path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            scanned["layers"], is_leaf=lambda leaf: isinstance(leaf, meta.AxisMetadata)
        )
    ):
        one = plain["layer_0"][name][rest[0]]
        assert leaf.names == ("layers", *one.names)
        assert leaf.unbox().shape == (LAYERS, *one.unbox().shape)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": "absolute"}, "one of 'rotary', 'learned', but it is 'absolute'"),
        ({"num_heads": 3}, "multiple of twice num_heads, but they are 16 and 3"),
        ({"mlp_dim": 0}, "mlp_dim must be a positive integer, but it is 0"),
        ({"num_layers": 1.5}, "num_layers must be a positive integer, but it is 1.5"),
        ({"dtype": "int32"}, "dtype must be one of 'float32', .*, but it is 'int32'"),
        ({"dtype": 3}, "dtype must be one of"),
        ({"remat": "yes"}, "remat must be True or False"),
        ({"logits_chunk": 0}, "logits_chunk must be a positive integer"),
        # Rotary positions turn pairs.
        ({"num_heads": 16}, "multiple of twice num_heads, but they are 16 and 16"),
    ],
)
def test_impossible_settings_are_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        shapes(make(**changes))
