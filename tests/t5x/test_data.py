"""Batches that T5X gets: full rows of one language each, the languages in turn."""

import dataclasses
import itertools

import numpy as np
import pytest

from ldro_jax.t5x import run_file

tiny_t5x = pytest.importorskip(
    "helpers.tiny_t5x", reason="T5X is not installed (scripts/install_t5x.sh)", exc_type=ImportError
)
import seqio  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
LANGUAGES, LENGTH = ("b", "a", "c"), 16


@pytest.fixture
def cfg(tmp_path):
    """Languages with a letter each; c has four times as much text as a."""
    for language, lines in zip(LANGUAGES, (20, 10, 40), strict=True):
        folder = tmp_path / "text" / language
        folder.mkdir(parents=True)
        (folder / "train.txt").write_text(f"{language * 9}\n" * lines)
        (folder / "validation.txt").write_text(f"{language * 9}\n" * 20)
    vocabulary = tiny_t5x.vocabulary.load(None)
    return tiny_t5x.utils.DatasetConfig(
        mixture_or_task_name=tiny_t5x.data.text_mixture(
            str(tmp_path / "text"), vocabulary=vocabulary
        ),
        task_feature_lengths={"targets": LENGTH},
        split="train",
        batch_size=12,
        shuffle=True,
        seed=3,
        pack=True,
    )


def get(cfg, tmp_path, shard=0, shards=1):
    return tiny_t5x.data.get_dataset(
        cfg, shard, shards, seqio.DecoderFeatureConverter, model_dir=str(tmp_path / "run")
    )


def languages_of(tokens):
    """Which letters each row holds, besides the ends of documents."""
    decode = tiny_t5x.vocabulary.load(None).decode
    return ["".join(sorted(set(decode(row.tolist())))) for row in tokens]


@pytest.mark.parametrize("shards", [1, 2])
def test_rows_belong_to_the_languages_in_turn(cfg, tmp_path, shards):
    assert tiny_t5x.data.num_tasks(cfg.mixture_or_task_name) == 3
    for shard in range(shards):
        for batch in itertools.islice(get(cfg, tmp_path, shard, shards), 5):
            assert batch["decoder_target_tokens"].shape == (12 // shards, LENGTH)
            found = languages_of(batch["decoder_target_tokens"])
            assert found == ["a", "b", "c"] * (4 // shards)
            # Full rows: no token is padding, and every one counts.
            assert batch["decoder_target_tokens"].all() and batch["decoder_loss_weights"].all()


def test_names_are_in_the_order_of_the_rows(cfg):
    names = tiny_t5x.data.task_names(cfg.mixture_or_task_name)
    assert names == ("ldro_text_a", "ldro_text_b", "ldro_text_c")


def test_no_token_is_lost_or_repeated_in_a_pass(cfg, tmp_path):
    task = seqio.get_mixture_or_task("ldro_text_a")
    rows = task.get_dataset({"targets": LENGTH}, split="train", shuffle=False, num_epochs=1)
    tokens = np.concatenate([row["targets"].numpy() for row in rows])
    one = [*tiny_t5x.vocabulary.load(None).encode("a" * 9), 1]
    np.testing.assert_array_equal(tokens, one * 10)


def test_other_tasks_than_those_a_run_began_with_are_refused(cfg, tmp_path):
    names = tiny_t5x.data.task_names(cfg.mixture_or_task_name)
    get(cfg, tmp_path)
    # A start that fails before the first step leaves the tasks open.
    assert not (tmp_path / "run").exists()
    run_file.save_tasks(str(tmp_path / "run"), names)
    get(cfg, tmp_path)
    fewer = tiny_t5x.data.text_mixture(
        str(tmp_path / "text"), vocabulary=tiny_t5x.vocabulary.load(None), languages=("a", "c")
    )
    with pytest.raises(ValueError, match="begun with the tasks ldro_text_a, ldro_text_b, .* now"):
        get(dataclasses.replace(cfg, mixture_or_task_name=fewer), tmp_path)


@pytest.mark.parametrize("shards", [1, 2])
def test_rows_carry_the_mark_of_their_task(cfg, tmp_path, shards):
    names = tiny_t5x.data.task_names(cfg.mixture_or_task_name)
    marks = [
        next(get(cfg, tmp_path, shard, shards))[tiny_t5x.tasks_lib.MARK] for shard in range(shards)
    ]
    assert marks[0].dtype == np.int32
    tiny_t5x.tasks_lib.check_rows({tiny_t5x.tasks_lib.MARK: np.concatenate(marks)}, names)


def test_languages_take_turns_in_having_a_row_more(cfg, tmp_path):
    uneven = dataclasses.replace(cfg, batch_size=16)
    rows = [iter(get(uneven, tmp_path, shard, 2)) for shard in range(2)]
    found = ""
    for _ in range(3):
        for own in rows:
            found += "".join(languages_of(next(own)["decoder_target_tokens"]))
    assert found == "abc" * 16


@pytest.mark.parametrize("exponent", [0.0, 1.0])
def test_static_mixing_draws_by_size(cfg, tmp_path, exponent):
    name = tiny_t5x.data.text_mixture(
        str(tmp_path / "text"), vocabulary=tiny_t5x.vocabulary.load(None), exponent=exponent
    )
    mixed = dataclasses.replace(cfg, mixture_or_task_name=name, batch_size=50)
    dataset = tiny_t5x.utils.get_dataset(mixed, 0, 1, seqio.DecoderFeatureConverter)
    found = [
        letter
        for batch in dataset.take(20).as_numpy_iterator()
        for letter in languages_of(batch["decoder_target_tokens"])
    ]
    shares = np.array([found.count(letter) for letter in "abc"]) / 1000
    expected = np.array([1, 2, 4]) / 7 if exponent else np.full(3, 1 / 3)
    np.testing.assert_allclose(shares, expected, atol=0.06)


def test_text_that_is_not_utf8_is_refused(cfg, tmp_path):
    (tmp_path / "text" / "a" / "train.txt").write_bytes(b"\xff\xfe\n")
    with pytest.raises(ValueError, match="Expected UTF-8 text in .*train.txt, but line 1 is not"):
        tiny_t5x.data.text_mixture(
            str(tmp_path / "text"), vocabulary=tiny_t5x.vocabulary.load(None)
        )
