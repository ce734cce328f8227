"""Each row of a split is evaluated once, and tokens and nats are those of a plain loop."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from ldro_jax.t5x import names, run_file, summaries

tiny_t5x = pytest.importorskip(
    "helpers.tiny_t5x", reason="T5X is not installed (scripts/install_t5x.sh)", exc_type=ImportError
)
import seqio  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
evaluation = tiny_t5x.evaluation
LANGUAGES, LENGTH, ROWS = ("a", "b", "c"), 16, 8
TASKS = tuple(f"ldro_text_{language}" for language in LANGUAGES)


@pytest.fixture
def cfg(tmp_path):
    """Languages with a letter each, with 1, 3 and 9 full batches of rows and some more."""
    for language, lines in zip(LANGUAGES, (30, 60, 160), strict=True):
        folder = tmp_path / "text" / language
        folder.mkdir(parents=True)
        (folder / "train.txt").write_text(f"{language * 9}\n")
        (folder / "validation.txt").write_text(f"{language * 9}\n" * lines)
    mixture = tiny_t5x.data.text_mixture(
        str(tmp_path / "text"), vocabulary=tiny_t5x.vocabulary.load(None)
    )
    return tiny_t5x.utils.DatasetConfig(
        mixture_or_task_name=mixture,
        task_feature_lengths={"targets": LENGTH},
        split="validation",
        batch_size=ROWS,
        shuffle=False,
        seed=42,
        pack=True,
    )


def get(cfg, shard=0, shards=1, steps=None):
    return evaluation.get_datasets(cfg, shard, shards, steps, seqio.DecoderFeatureConverter)


def raw_tokens(task):
    rows = seqio.get_mixture_or_task(task).get_dataset(
        {"targets": LENGTH}, split="validation", shuffle=False, num_epochs=1
    )
    return np.concatenate([row["targets"].numpy() for row in rows])


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("cache", [True, False])
def test_each_token_is_there_once(cfg, shards, cache):
    cfg = dataclasses.replace(cfg, use_memory_cache=cache)
    parts = [get(cfg, shard, shards) for shard in range(shards)]
    assert all(tuple(part) == TASKS for part in parts)
    for task in TASKS:
        batches = [list(part[task]) for part in parts]
        # All hosts take as many steps, or they would wait for each other.
        assert len({len(found) for found in batches}) == 1
        joined = [
            jax.tree.map(lambda *x: np.concatenate(x), *turn) for turn in zip(*batches, strict=True)
        ]
        expected = raw_tokens(task)
        assert len(joined) == -(-len(expected) // (ROWS * LENGTH)) and len(joined) > 1
        for batch in joined:
            assert {x.shape for x in batch.values()} == {(ROWS, LENGTH)}
            counted = batch["decoder_loss_weights"] > 0
            np.testing.assert_array_equal(counted, batch["decoder_target_tokens"] > 0)
        found = [batch["decoder_target_tokens"] for batch in joined]
        np.testing.assert_array_equal(np.concatenate(found).ravel()[: len(expected)], expected)
        assert not np.concatenate(found).ravel()[len(expected) :].any()


def test_so_many_batches_are_taken_and_none_twice(cfg):
    found = get(cfg, steps=3)
    counts = {task: len(list(dataset)) for task, dataset in found.items()}
    assert counts["ldro_text_a"] < 3 and counts["ldro_text_c"] == 3
    # Again from the beginning in the next evaluation.
    assert counts == {task: len(list(dataset)) for task, dataset in found.items()}


@pytest.mark.parametrize("cache", [True, False])
def test_a_split_of_exactly_so_many_batches_is_whole(cfg, cache):
    cfg = dataclasses.replace(cfg, use_memory_cache=cache)
    size = len(list(get(cfg)["ldro_text_b"]))
    for steps, is_whole in [(None, True), (size + 1, True), (size, True), (size - 1, False)]:
        split = get(cfg, steps=steps)["ldro_text_b"]
        assert split.is_whole is None
        for _ in range(2):
            assert len(list(split)) == min(size, steps or size)
            assert split.is_whole == is_whole


@pytest.mark.parametrize("whole", [True, False, None])
def test_a_run_writes_down_whether_that_was_all(cfg, tmp_path, whole):
    # A task that is cut off is enough.
    longest = len(list(get(cfg)["ldro_text_c"]))
    datasets = get(cfg, steps=longest - (whole is False))
    if whole is None:
        datasets = tiny_t5x.utils.get_training_eval_datasets(
            cfg, 0, 1, 2, seqio.DecoderFeatureConverter
        )
    model_dir = str(tmp_path / "run")
    with make_trainer(evaluation.EvaluatingTrainer, model_dir, tasks=tuple(datasets)) as a_trainer:
        evaluate(a_trainer, datasets)
    assert run_file.read(model_dir).whole is whole


def test_t5x_takes_zeros_like_a_split(cfg):
    split = get(cfg)["ldro_text_a"]
    zeros = tiny_t5x.utils.get_zeros_batch_like_dataset(split)
    first = next(iter(split))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), zeros) == jax.tree.map(
        lambda x: (x.shape, x.dtype), first
    )


def test_what_can_not_be_evaluated_is_refused(cfg):
    with pytest.raises(ValueError, match="must have the split 'dev' .* but ldro_text_a, .* have"):
        get(dataclasses.replace(cfg, split="dev"))
    with pytest.raises(ValueError, match="a multiple of the 3 shards of the data, but it is 8"):
        get(cfg, 0, 3)
    with pytest.raises(ValueError, match="train.eval_steps must be .* but it is 0"):
        get(cfg, steps=0)


def make_trainer(cls, model_dir=None, *, tasks=TASKS, **options):
    if cls is tiny_t5x.trainer_lib.LDROTrainer:
        a_model = tiny_t5x.make_model(tiny_t5x.weighted(), **options)
        own = {"task_names": tiny_t5x.NAMES}
    else:
        optimizer = tiny_t5x.optimizers.OptaxWrapper(tiny_t5x.sgd())
        a_model = tiny_t5x.make_model(optimizer, tiny_t5x.models.DecoderOnlyModel, **options)
        own = {}
    return tiny_t5x.make_trainer(
        a_model, cls=cls, summary_dir=model_dir, eval_names=tasks, num_microbatches=None, **own
    )


def plain_losses(a_trainer, datasets):
    """Nats and tokens of each task, in float64 on one device."""
    module = tiny_t5x.module()
    params = jax.device_put(a_trainer.train_state.params, jax.devices()[0])
    found = {}
    for task, dataset in datasets.items():
        nats, tokens = 0.0, 0
        for batch in dataset:
            inputs = (batch["decoder_input_tokens"], batch["decoder_target_tokens"])
            positions = {
                "decoder_segment_ids": batch["decoder_segment_ids"],
                "decoder_positions": batch["decoder_positions"],
            }
            logits = module.apply({"params": params}, *inputs, enable_dropout=False, **positions)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, inputs[1])
            counted = batch["decoder_loss_weights"] > 0
            nats += np.asarray(losses, np.float64)[counted].sum()
            tokens += counted.sum()
        found[task] = (nats / tokens, tokens)
    return found


def evaluate(a_trainer, datasets):
    """As ``t5x.train`` does it."""
    return a_trainer.eval(
        {
            name: x.as_numpy_iterator() if isinstance(x, evaluation.tf.data.Dataset) else x
            for name, x in datasets.items()
        }
    )


@pytest.mark.parametrize("cls", [tiny_t5x.trainer_lib.LDROTrainer, evaluation.EvaluatingTrainer])
def test_losses_are_those_of_a_plain_loop(cls, cfg, tmp_path):
    # None of what is part of the training loss counts.
    training = {"z_loss": 0.01, "label_smoothing": 0.1}
    if cls is evaluation.EvaluatingTrainer:
        training["loss_normalizing_factor"] = 7.0
    datasets = get(cfg)
    with make_trainer(cls, str(tmp_path / "run"), **training) as a_trainer:
        expected = plain_losses(a_trainer, datasets)
        found = evaluate(a_trainer, datasets)
        assert a_trainer._model._label_smoothing == 0.1
    losses = []
    for task, (loss, tokens) in expected.items():
        assert found[task][names.TOKENS].value == tokens
        assert found[task][names.BATCHES].value == len(list(datasets[task]))
        # Sums of float32 in a batch.
        np.testing.assert_allclose(found[task][names.NATS].value, loss, rtol=1e-5)
        np.testing.assert_allclose(found[task][names.PERPLEXITY].value, np.exp(loss), rtol=1e-4)
        losses.append(loss)
    over = found[names.OVER_TASKS]
    np.testing.assert_allclose(over[names.AVERAGE_LOSS].value, np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(over[names.WORST_LOSS].value, np.max(losses), rtol=1e-5)
    # T5X's early stopping can monitor it.
    assert isinstance(over[names.AVERAGE_LOSS], evaluation.clu.values.Scalar)


@pytest.mark.parametrize("packed", [False, True])
def test_rows_that_fill_a_batch_add_nothing_to_an_encoder_decoder(packed):
    optimizer = tiny_t5x.optimizers.OptaxWrapper(tiny_t5x.sgd())
    a_model = tiny_t5x.make_model(optimizer, tiny_t5x.models.EncoderDecoderModel)
    batch = tiny_t5x.tasks_lib.unmarked(tiny_t5x.pair_batch(packed=packed))
    filled = jax.tree.map(lambda x: np.concatenate([x, 0 * x]), batch)
    with tiny_t5x.make_trainer(
        a_model, cls=evaluation.EvaluatingTrainer, eval_names=["some", "filled"]
    ) as a_trainer:
        found = a_trainer.eval({"some": iter([batch]), "filled": iter([filled])})
    some, same = (found[name][names.NATS].value for name in ("some", "filled"))
    assert some > 1 and found["some"][names.TOKENS].value == batch["decoder_loss_weights"].sum()
    assert found["filled"][names.TOKENS].value == found["some"][names.TOKENS].value
    np.testing.assert_allclose(same, some, rtol=1e-6)


def test_another_batch_size_makes_no_difference(cfg):
    found = []
    for rows in (8, 16):
        datasets = get(dataclasses.replace(cfg, batch_size=rows))
        with make_trainer(evaluation.EvaluatingTrainer) as a_trainer:
            found.append(evaluate(a_trainer, datasets))
    for task in TASKS:
        first, second = (f[task] for f in found)
        assert first[names.TOKENS].value == second[names.TOKENS].value
        np.testing.assert_allclose(first[names.NATS].value, second[names.NATS].value, rtol=1e-6)


def test_what_is_written_is_on_disk_when_an_evaluation_is_over(cfg, tmp_path):
    model_dir = str(tmp_path / "run")
    with make_trainer(tiny_t5x.trainer_lib.LDROTrainer, model_dir) as a_trainer:
        found = evaluate(a_trainer, get(cfg))
        over = summaries.scalars(f"{model_dir}/{names.OVER_TASKS}")
        for tag, value in found[names.OVER_TASKS].items():
            np.testing.assert_allclose(over[tag][0], value.value, rtol=1e-6)
        assert list(over) == [names.AVERAGE_LOSS, names.WORST_LOSS]
        read = summaries.read(model_dir)
    for task in TASKS:
        np.testing.assert_allclose(read.losses[task][0], found[task][names.NATS].value, rtol=1e-6)
        assert read.file.tokens[task] == len(raw_tokens(task))
    (machine,) = read.file.machines
    assert machine["step"] == 0 and machine["mesh"] == {"data": 4, "model": 2}
    assert machine["device"]["count"] == 8 and machine["device"]["hosts"] == 1
    assert machine["versions"]["jax"] == jax.__version__ and "t5x" in machine["versions"]


def test_the_mixture_of_t5x_own_datasets_is_no_task(cfg, tmp_path):
    datasets = tiny_t5x.utils.get_training_eval_datasets(
        cfg, 0, 1, 2, seqio.DecoderFeatureConverter
    )
    assert "ldro_text" in datasets
    with make_trainer(
        evaluation.EvaluatingTrainer, str(tmp_path / "run"), tasks=tuple(datasets)
    ) as a_trainer:
        found = evaluate(a_trainer, datasets)
    losses = [found[task][names.NATS].value for task in TASKS]
    average = found[names.OVER_TASKS][names.AVERAGE_LOSS].value
    np.testing.assert_allclose(average, np.mean(losses), rtol=1e-6)
    assert tuple(run_file.read(str(tmp_path / "run")).tokens) == TASKS


@pytest.mark.parametrize("nats", [0.0, 88.7, 88.8, 300.0, 800.0, np.inf, np.nan])
def test_every_loss_can_be_written(tmp_path, nats):
    sums = [np.array([x, 0], np.float32) for x in (10 * nats, 10)]
    manager = tiny_t5x.t5x_trainer.MetricsManager("some", str(tmp_path))
    metrics = {
        tag: evaluation.TokenLoss(*sums, np.int32(1), tag) for tag in (names.NATS, names.PERPLEXITY)
    }
    manager.start_duration_timer()
    manager.write_metrics_summary(metrics, 3, 1).result()
    manager.flush()
    found = summaries.scalars(f"{tmp_path}/some")
    with np.errstate(over="ignore"):
        expected = np.float32(np.exp(np.float64(nats)))
    np.testing.assert_allclose(found[names.PERPLEXITY][3], expected, rtol=1e-4)
    np.testing.assert_allclose(found[names.NATS][3], nats, rtol=1e-6)
    manager.close()


def test_a_loss_that_is_not_finite_is_the_worst(cfg, tmp_path):
    with make_trainer(evaluation.EvaluatingTrainer, str(tmp_path / "run")) as a_trainer:
        broken = jax.tree.map(lambda x: x * np.nan, a_trainer.train_state.params)
        a_trainer.train_state = a_trainer.train_state.replace_params(broken)
        found = evaluate(a_trainer, get(cfg, steps=1))[names.OVER_TASKS]
    # Orbax sorts checkpoints by it, which NaN would upset.
    assert found[names.AVERAGE_LOSS].value == found[names.WORST_LOSS].value == np.inf
    written = summaries.scalars(f"{tmp_path}/run/{names.OVER_TASKS}")
    assert written[names.AVERAGE_LOSS][0] == np.inf


@pytest.mark.parametrize("weight", [0, -1])
def test_a_task_without_tokens_is_refused(cfg, weight):
    batch = next(iter(get(cfg)["ldro_text_b"]))
    batch["decoder_loss_weights"] = weight * batch["decoder_loss_weights"]
    with (
        make_trainer(evaluation.EvaluatingTrainer) as a_trainer,
        pytest.raises(ValueError, match="rows that ldro_text_b is evaluated on must have tokens"),
    ):
        a_trainer.eval({"ldro_text_b": iter([batch])})


def test_a_task_without_rows_is_refused(cfg):
    empty = {"ldro_text_b": iter(())}
    with (
        make_trainer(evaluation.EvaluatingTrainer) as a_trainer,
        pytest.raises(ValueError, match="nothing to evaluate ldro_text_b on: .* has no rows"),
    ):
        evaluate(a_trainer, empty)


def test_a_model_without_t5x_metrics_is_refused():
    with pytest.raises(ValueError, match="this model has no 'cross_ent.* It has loss, accuracy"):
        evaluation.token_losses({"loss": 1, "accuracy": 2})


def test_sums_over_many_batches_are_exact():
    """Float32 alone would stop counting at 2^24, and lose the fourth digit of the nats."""
    rng = np.random.default_rng(0)
    batches = rng.uniform(0.5e6, 2e6, 400).astype(np.float32)
    tokens = rng.integers(1, 2**20, 400)
    tokens[0] += tokens.sum() % 2 == 0
    assert tokens.sum() > 2**26 and tokens.sum() % 2

    def one(nats, count):
        sums = [np.array([x, 0], np.float32) for x in (nats, count)]
        return {
            tag: evaluation.TokenLoss(*sums, np.int32(1), tag)
            for tag in (names.NATS, names.TOKENS, names.BATCHES)
        }

    merged = one(batches[0], tokens[0])
    for nats, count in zip(batches[1:], tokens[1:], strict=True):
        merged = tiny_t5x.t5x_trainer.merge_metrics(merged, one(nats, count))
    found = {tag: jax.device_get(metric).compute() for tag, metric in merged.items()}
    assert found[names.TOKENS] == tokens.sum() and found[names.BATCHES] == 400
    expected = batches.astype(np.float64).sum() / tokens.sum()
    np.testing.assert_allclose(found[names.NATS], expected, rtol=1e-12)
