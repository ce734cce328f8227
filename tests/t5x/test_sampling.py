"""Rows of tasks that are drawn one by one: in uneven turns, by rates, and by the task weights."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import tiny, tiny_lm

from ldro_jax import ldro, transform, weighting
from ldro_jax.tasks.drawing import Drawer
from ldro_jax.training import engine
from ldro_jax.training.method import Method

tiny_t5x = pytest.importorskip(
    "helpers.tiny_t5x", reason="T5X is not installed (scripts/install_t5x.sh)", exc_type=ImportError
)
import seqio  # noqa: E402

from ldro_jax.t5x import drawing  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
N, NAMES, LENGTH, ROWS = tiny_t5x.N, tiny_t5x.NAMES, tiny_t5x.LENGTH, tiny_t5x.ROWS
THREE = NAMES[:3]
MARK, SHARE, MEASURED = (getattr(tiny_t5x.tasks_lib, n) for n in ("MARK", "SHARE", "MEASURED"))


def datasets(size=60, *, at_a_time=3):
    """Of each task rows that say which task and which row they are."""
    tf = drawing.tf

    def of(task):
        tokens = np.full((size, LENGTH), 3 + task, np.int32)
        tokens[:, 0] = np.arange(size)
        return tf.data.Dataset.from_tensor_slices({"decoder_target_tokens": tokens}).batch(
            at_a_time, drop_remainder=True
        )

    return [of(task) for task in range(N)]


def seen(batch, prefix=""):
    """Task and number of each row."""
    tokens = batch[f"{prefix}decoder_target_tokens"]
    return (tokens[:, 1] - 3).tolist(), tokens[:, 0].tolist()


def drawer(batch_size=6, *, seed=0, probabilities=None):
    counts = np.zeros(N, np.int64)
    if probabilities is None:
        return Drawer("balanced", batch_size, counts, seed)
    return Drawer("probabilities", batch_size, counts, seed, probabilities=probabilities)


def make(batch_size=6, *, seed=0, probabilities=None, **options):
    drawn = drawer(batch_size, seed=seed, probabilities=probabilities)
    return drawing.DrawnRows(datasets(), NAMES, drawn, **options)


def test_tasks_take_turns_in_having_a_row_more():
    rows, expected = make(), drawer()
    for _ in range(5):
        draw, expected = expected.next()
        batch = next(rows)
        assert seen(batch) == (draw.tasks.tolist(), draw.indices.tolist())
        known = tiny_t5x.tasks_lib.marks(NAMES, N)
        np.testing.assert_array_equal(batch[MARK], known[draw.tasks])
    assert np.ptp(expected.counts) <= 1


def test_hosts_together_have_the_rows_of_one_draw():
    share = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    whole = make(8, seed=5, probabilities=share, interval=2)
    parts = [
        make(8, seed=5, probabilities=share, interval=2, shard=shard, num_shards=2)
        for shard in range(2)
    ]
    for _ in range(3):
        batch, found = next(whole), [next(part) for part in parts]
        for name in (MARK, SHARE, f"{MEASURED}decoder_target_tokens"):
            together = np.concatenate([own[name] for own in found])
            if name.startswith(MEASURED):
                # Each host has rows of its own.
                together, batch[name] = together[:, 1], batch[name][:, 1]
            np.testing.assert_array_equal(together, batch[name])


@pytest.mark.parametrize("at_a_time", [1, 7])
def test_rows_to_measure_come_when_due_and_do_not_count_as_drawn(at_a_time):
    share = np.array([0.7, 0.1, 0.1, 0.1], np.float32)
    expected, last = drawer(8, seed=1, probabilities=share), None
    rows = drawing.DrawnRows(datasets(at_a_time=at_a_time), NAMES, expected, interval=2)
    for step in range(4):
        draw, expected = expected.next()
        batch = next(rows)
        assert seen(batch) == (draw.tasks.tolist(), draw.indices.tolist())
        tasks, numbers = seen(batch, MEASURED)
        assert tasks == [0, 1, 2, 3] * 2
        if step % 2 == 0:
            last = [*expected.counts, *(expected.counts + 1)]
        assert numbers == last
        np.testing.assert_array_equal(batch[SHARE], np.tile(share, (8, 1)))


@pytest.mark.parametrize("options", [{}, {"probabilities": np.full(N, 0.25, np.float32)}])
def test_its_place_is_saved_and_found_again(tmp_path, options):
    options = options | ({"interval": 2, "seed": 3, "follows_weights": True} if options else {})
    rows = make(**options)
    for _ in range(3):
        next(rows)
    rows.follow([0.4, 0.3, 0.2, 0.1])
    rows.save(tmp_path / "place")
    expected = [next(rows) for _ in range(4)]
    other = make(**options)
    next(other)
    other.load(str(tmp_path / "place"))
    for step, batch in enumerate(expected):
        found = next(other)
        assert found.keys() == batch.keys()
        for name, values in batch.items():
            # What isn't due may be other rows.
            if not name.startswith(MEASURED) or step % 2:
                np.testing.assert_array_equal(found[name], values)
    for name, spec in other.element_spec.items():
        assert (found[name].shape, found[name].dtype) == (spec.shape, spec.dtype)


def test_another_way_of_drawing_does_not_go_on(tmp_path):
    make().save(tmp_path / "place")
    match = "in turn, but now would be from random tasks. Give the run the sampling it began with"
    with pytest.raises(ValueError, match=f"{match}.*save_dataset = False"):
        make(probabilities=np.full(N, 0.25)).restore(tmp_path / "place")
    with pytest.raises(ValueError, match="Expected the place .* Go on with as many hosts. Or let"):
        make().restore(tmp_path / "nowhere")


@pytest.mark.parametrize("had", ["no arrays", "arrays of 0.1"])
def test_a_place_of_an_older_version_is_refused_in_one_line(tmp_path, had):
    make().save(tmp_path / "place")
    (tmp_path / "place.npz").unlink()
    if had == "arrays of 0.1":
        np.savez(tmp_path / "place.npz", step=np.array(3), drawn=np.full(N, 4))
    with pytest.raises(ValueError, match="place: .* version .* format 0, .*Or let") as error:
        make().restore(tmp_path / "place")
    assert "\n" not in str(error.value)


def masked_loop(tx, batches):
    """The run on one device, from masks of the rows of each task."""
    a_model = tiny_t5x.make_model(tiny_t5x.weighted())
    params = jax.device_put(tiny_t5x.make_trainer(a_model).train_state.params, jax.devices()[0])
    chain = optax.chain(tx, tiny_t5x.sgd())
    state, known = chain.init(params), tiny_t5x.tasks_lib.marks(THREE, 3)

    def sums_of(params, rows, belongs):
        losses = tiny_t5x.token_losses(a_model, params, rows).sum(axis=1)
        return losses @ belongs / (rows["decoder_loss_weights"].sum(axis=1) @ belongs).clip(1)

    @jax.jit
    def step(params, state, batch):
        belongs = (batch[MARK][:, None] == known[None]).astype(jnp.float32)
        expected = batch[SHARE][0] * len(belongs) if SHARE in batch else belongs.sum(axis=0)
        losses, pull = jax.vjp(lambda p: sums_of(p, batch, belongs), params)
        apart = {k.removeprefix(MEASURED): x for k, x in batch.items() if k.startswith(MEASURED)}
        rows, among = (apart, jnp.tile(jnp.eye(3), (ROWS // 3, 1))) if apart else (batch, belongs)
        rows = jax.tree.map(lambda x: x[: len(among)], rows)

        def interaction():
            gradients = [
                jax.grad(lambda p, i=i: sums_of(p, rows, among)[i])(params) for i in range(3)
            ]
            flat = jnp.stack([jax.flatten_util.ravel_pytree(g)[0] for g in gradients])
            return flat @ flat.T

        updates, state = chain.update(
            None,
            state,
            params,
            losses=losses,
            pullback=lambda w: pull(w * belongs.sum(axis=0) / expected)[0],
            interaction_fn=interaction,
            present=belongs.sum(axis=0) > 0,
        )
        return optax.apply_updates(params, updates), state

    for batch in batches:
        params, state = step(params, state, batch)
    return params, transform.find_state(state)


def rows_of(seed, tasks):
    """Different rows of some tasks."""
    whole = tiny_t5x.batch(seed, rows=N * len(tasks))
    return jax.tree.map(lambda x: x[tasks + N * np.arange(len(tasks))], whole)


def uneven(seed):
    """The tasks in turn, where the last batch stopped."""
    return rows_of(seed, (seed * ROWS + np.arange(ROWS)) % 3)


def drawn_at_random(seed):
    """Any tasks, one of them absent now and then, and rows of all of them to measure."""
    share = np.array([0.05, 0.15, 0.8], np.float32)
    batch = rows_of(seed, np.random.default_rng(seed).choice(3, ROWS, p=share))
    apart = rows_of(100 + seed, np.arange(ROWS) % 3)
    del apart[MARK]
    batch |= {MEASURED + name: x for name, x in apart.items()}
    return batch | {SHARE: np.tile(share, (ROWS, 1))}


def three_tasks(**options):
    """A trainer of batches that its tasks don't divide."""
    tx = ldro.transform(3, lookahead_lr=0.5, weight_lr=0.4, interaction_interval=2)
    optimizer = tiny_t5x.optimizer_lib.WeightedOptimizer(tx, tiny_t5x.sgd())
    options = {"rows": ROWS, "task_names": THREE} | options
    return tx, tiny_t5x.make_trainer(tiny_t5x.make_model(optimizer), **options)


@pytest.mark.parametrize("microbatches", [None, 2])
@pytest.mark.parametrize("make_batch", [uneven, drawn_at_random])
def test_steps_are_those_of_masks_of_the_rows(make_batch, microbatches):
    batches = [make_batch(seed) for seed in range(6)]
    if make_batch is drawn_at_random:
        marks = tiny_t5x.tasks_lib.marks(THREE, 3)
        assert any(not np.isin(marks, batch[MARK]).all() for batch in batches)
    tx, a_trainer = three_tasks(num_microbatches=microbatches)
    tiny_t5x.train(a_trainer, batches)
    expected = masked_loop(tx, batches)
    assert np.ptp(expected[1].weights) > 0.03
    tiny_t5x.assert_same(a_trainer.train_state, expected)


@pytest.mark.parametrize("uses_interaction", [False, True])
def test_a_task_without_rows_so_far_is_as_if_not_there(uses_interaction):
    def weights(statistics):
        known = weighting.base.known_tasks(statistics)
        found = jnp.where(known, jnp.exp(statistics.losses - statistics.losses.max()), 0)
        return found / found.sum()

    def trained(names, share):
        method = weighting.base.stateless(weights)._replace(uses_interaction=uses_interaction)
        tx = transform.weighted(method, len(names), interaction_interval=2)
        optimizer = tiny_t5x.optimizer_lib.WeightedOptimizer(tx, tiny_t5x.sgd())
        # Of each task as many rows are measured, whatever the number of tasks.
        options = {"rows": ROWS, "task_names": names, "interaction_rows": 4}
        a_trainer = tiny_t5x.make_trainer(tiny_t5x.make_model(optimizer), **options)
        shares = {SHARE: np.tile(np.float32(share), (ROWS, 1))}
        batches = [rows_of(seed, np.arange(ROWS) * (seed + 1) % 5 % 2) | shares for seed in (0, 1)]
        return tiny_t5x.train(a_trainer, batches), a_trainer.train_state

    summary, found = trained(THREE, [0.3, 0.6, 0.1])
    _, expected = trained(THREE[:2], [0.3, 0.6])
    state, smaller = (x.param_states["weighting"] for x in (found, expected))
    np.testing.assert_array_equal(state.seen, [True, True, False])
    np.testing.assert_allclose(state.weights, [*smaller.weights, 0], rtol=1e-6)
    np.testing.assert_allclose(state.interaction[:2, :2], smaller.interaction, rtol=1e-5)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7),
        found.params,
        expected.params,
    )
    assert np.isnan(summary[f"ldro/loss/{THREE[2]}"].value)
    assert summary["ldro/worst_loss"].value > 1 and summary["ldro/worst_task"].value in THREE[:2]


def test_a_task_without_rows_so_far_is_drawn_all_the_same():
    method = weighting.base.stateless(
        lambda statistics: weighting.base.known_tasks(statistics).astype(jnp.float32) / 2
    )
    optimizer = tiny_t5x.optimizer_lib.WeightedOptimizer(
        transform.weighted(method, N), tiny_t5x.sgd()
    )
    iterator = make(8, probabilities=np.float32([0.5, 0.5, 0, 0]), follows_weights=True)
    batches = [rows_of(seed, np.arange(8) % 2) for seed in (0, 1)]
    share = {SHARE: np.tile(iterator.probabilities, (8, 1))}
    a_trainer = tiny_t5x.make_trainer(tiny_t5x.make_model(optimizer), rows=8)
    a_trainer._drawn, a_trainer._began = iterator, True
    tiny_t5x.train(a_trainer, [batch | share for batch in batches])
    weights = a_trainer.train_state.param_states["weighting"].weights
    np.testing.assert_array_equal(weights, [0.5, 0.5, 0, 0])
    # Its weight of zero means nothing.
    np.testing.assert_allclose(iterator.probabilities, [1 / 3, 1 / 3, 1 / 6, 1 / 6], rtol=1e-6)


def test_the_worst_task_of_a_summary_is_so_on_average_over_its_steps():
    def of(losses, seen):
        return tiny_t5x.trainer_lib.WorstTask(jnp.array(losses), jnp.array(seen), THREE)

    late = of([1.0, 2.0, 0.0], [1, 1, 0]).merge(of([1.0, 2.0, 3.0], [1, 1, 1]))
    assert late.compute_value().value == THREE[2]
    below_zero = of([-1.0, -2.0, 0.0], [1, 1, 0])
    assert below_zero.compute() == 0


def test_rows_of_unknown_tasks_are_refused():
    batch = drawn_at_random(0)
    batch[MARK][3] += 1
    with pytest.raises(ValueError, match="don't belong to the trainer's 3 tasks"):
        tiny_t5x.train(three_tasks()[1], [batch])


@pytest.mark.parametrize("name", ["lookahead_online", "group_dro", "static_mixing"])
def test_rows_drawn_by_weights_train_as_in_this_librarys_own_trainer(name):
    rates = {
        "lookahead_online": {"lookahead_lr": 0.5, "weight_lr": 0.5},
        "group_dro": {"weight_lr": 0.1},
        "static_mixing": {"sizes": (1.0, 2.0, 4.0, 8.0), "exponent": 1.0},
    }[name]
    options = {"interaction_interval": 3} if name == "lookahead_online" else {}
    method = Method("drawn", name, rates, sampling="weights", **options)
    problem = tiny_lm.problem(model=tiny_lm.make_decoder)
    program = tiny_lm.make_program(method, problem, optimizer=optax.sgd(0.3), layout=tiny.ONE)
    session, size = program.start([engine.Trial(method, 0)]), tiny_lm.BATCH_SIZE

    def text_of(task):
        tokens = problem.source(0).rows(np.full(400, task), np.arange(400)).astype(np.int32)
        features = {
            "decoder_input_tokens": np.pad(tokens, ((0, 0), (1, 0)))[:, :-1],
            "decoder_target_tokens": tokens,
            "decoder_loss_weights": np.ones_like(tokens),
        }
        return drawing.tf.data.Dataset.from_tensor_slices(features).batch(1)

    tx = transform.weighted(weighting.create(name, rates), N, **options)
    optimizer = tiny_t5x.optimizer_lib.WeightedOptimizer(tx, optax.sgd(0.3))
    network = tiny_t5x.network_lib.DecoderNetwork(tiny_lm.make_decoder(vocab_size=128))
    a_model = tiny_t5x.model_lib.LDRODecoderOnlyModel(
        network, tiny_t5x.vocabulary.load(None), optimizer
    )
    rules = tiny_t5x.partitioning.standard_logical_axis_rules(
        additional_rules=[("head_dim", None), ("norm", None), ("position", None)]
    )
    parts = tiny_t5x.partitioning.PjitPartitioner(
        num_partitions=None, model_parallel_submesh=(1, 2, 1, 1), logical_axis_rules=rules
    )
    a_trainer = tiny_t5x.make_trainer(a_model, parts=parts, rows=size)
    state = a_trainer.train_state
    begin = jax.tree.map(
        lambda x, y: jax.device_put(np.asarray(x), y.sharding),
        jax.tree.unflatten(
            jax.tree.structure(state.params), jax.tree.leaves({"decoder": session.states.params})
        ),
        state.params,
    )
    a_trainer.train_state = state.replace_params(begin)
    iterator = drawing.DrawnRows(
        [text_of(task) for task in range(N)],
        NAMES,
        drawer(size, probabilities=weighting.first_weights(tx.weighting, N)),
        follows_weights=True,
        interval=tx.interval,
    )
    silent = types.SimpleNamespace(update=lambda _: None)
    for end in (4, 8, 12):
        session.advance(end, lambda _: False, silent)
        session.evaluated()
        a_trainer.train(iterator, 4, end - 4).result()
    expected = transform.find_state(session.states.opt_state)
    assert np.ptp(expected.weights) > 0.05
    params = jax.tree.unflatten(
        jax.tree.structure(begin), jax.tree.leaves({"decoder": session.states.params})
    )
    tiny_t5x.assert_same(a_trainer.train_state, (params, expected))


@pytest.fixture
def cfg(tmp_path):
    for language, lines in zip("abc", (20, 10, 40), strict=True):
        folder = tmp_path / "text" / language
        folder.mkdir(parents=True)
        for split in ("train", "validation"):
            (folder / f"{split}.txt").write_text(f"{language * 9}\n" * lines)
    name = tiny_t5x.data.text_mixture(
        str(tmp_path / "text"), vocabulary=tiny_t5x.vocabulary.load(None), exponent=1.0
    )
    return tiny_t5x.utils.DatasetConfig(
        mixture_or_task_name=name,
        task_feature_lengths={"targets": 16},
        split="train",
        batch_size=50,
        shuffle=True,
        seed=3,
        pack=True,
    )


def get(cfg, tmp_path, shards=1, **options):
    return tiny_t5x.data.get_dataset(
        cfg, 0, shards, seqio.DecoderFeatureConverter, model_dir=str(tmp_path / "run"), **options
    )


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_rates_of_the_mixture_with_a_temperature(cfg, tmp_path, temperature):
    options = {"temperature": temperature, "weighting": tiny_t5x.weighting()}
    rows = get(cfg, tmp_path, sampling="rates", **options)
    expected = np.array([2.0, 1.0, 4.0]) ** (1 / temperature)
    expected /= expected.sum()
    decode = tiny_t5x.vocabulary.load(None).decode
    found = ""
    for _ in range(20):
        batch = next(rows)
        np.testing.assert_allclose(batch[SHARE][0], expected, rtol=1e-5)
        tokens = batch["decoder_target_tokens"]
        # Packed within a task: a row has one letter.
        texts = [set(decode(row.tolist())) for row in tokens]
        assert all(len(text) == 1 for text in texts)
        found += "".join(text.pop() for text in texts)
    shares = np.array([found.count(letter) for letter in "abc"]) / 1000
    np.testing.assert_allclose(shares, expected, atol=0.05)


def test_a_static_method_has_its_weights_from_the_first_batch(cfg, tmp_path):
    static = transform.weighted(weighting.static_mixing((1.0, 1.0, 2.0), exponent=1.0), 3)
    rows = get(cfg, tmp_path, sampling="weights", weighting=static)
    batch = next(rows)
    np.testing.assert_allclose(batch[SHARE][0], [0.25, 0.25, 0.5])
    assert rows.follows_weights and not any(name.startswith(MEASURED) for name in batch)


def place(cfg, tmp_path, size, **options):
    """Rows of each task in order, three batches before the place that is saved and three after."""
    rows = get(dataclasses.replace(cfg, batch_size=size), tmp_path, **options)
    before = [next(rows) for _ in range(3)]
    rows.save(str(tmp_path / "place"))
    return before, [next(rows) for _ in range(3)]


def resumed(cfg, tmp_path, size, **options):
    rows = get(dataclasses.replace(cfg, batch_size=size), tmp_path, **options)
    rows.load(str(tmp_path / "place"))
    return [next(rows) for _ in range(3)]


@pytest.mark.parametrize("size", [12, 10])
def test_a_run_goes_on_with_the_row_after_its_last(cfg, tmp_path, size):
    _, expected = place(cfg, tmp_path, size)
    jax.tree.map(np.testing.assert_array_equal, resumed(cfg, tmp_path, size), expected)


@pytest.mark.parametrize("options", [{}, {"sampling": "rates", "weighting": tiny_t5x.weighting()}])
def test_a_run_goes_on_in_batches_of_another_size(cfg, tmp_path, options):
    of_tasks = lambda batches: {  # noqa: E731
        mark: np.concatenate([b["decoder_target_tokens"][b[MARK] == mark] for b in batches])
        for mark in np.unique(np.concatenate([b[MARK] for b in batches]))
    }
    _, after = place(cfg, tmp_path, 12, **options)
    expected, found = of_tasks(after), of_tasks(resumed(cfg, tmp_path, 11, **options))
    for mark in expected.keys() & found.keys():
        count = min(len(expected[mark]), len(found[mark]))
        np.testing.assert_array_equal(found[mark][:count], expected[mark][:count])


def test_batches_that_can_not_be_drawn_are_refused(cfg, tmp_path):
    def refused(match, shards=1, **changes):
        fields = {f.name for f in dataclasses.fields(cfg)}
        own = {k: v for k, v in changes.items() if k in fields}
        options = {k: v for k, v in changes.items() if k not in fields}
        with pytest.raises(ValueError, match=match):
            get(dataclasses.replace(cfg, **own), tmp_path, shards, **options)

    refused("Bind data.get_dataset.weighting = %WEIGHTING", sampling="weights")
    refused("must be one of .*, but it is 'by size'", sampling="by size")
    refused("temperature must be .* but it is 0", sampling="rates", temperature=0.0)
    refused("batch_size must be at least 3, a row of each task, but it is 2", batch_size=2)
    measuring = {"sampling": "rates", "weighting": tiny_t5x.weighting()}
    refused("must be at least 3, a row of each task, but it is 2", batch_size=2, **measuring)
    static = transform.weighted(weighting.static_mixing((1.0, 1.0, 2.0), exponent=1.0), 3)
    drawn = {"sampling": "weights", "weighting": static}
    refused("must be at least 1, a row, but it is 0", batch_size=0, **drawn)
    refused("multiple of the 3 shards of the data, but it is 50", shards=3)
