"""Rows of every objective hold the text, each token once, and are full."""

import itertools

import numpy as np
import pytest

tiny_t5x = pytest.importorskip(
    "helpers.tiny_t5x", reason="T5X is not installed (scripts/install_t5x.sh)", exc_type=ImportError
)
import seqio  # noqa: E402

from ldro_jax.t5x import objectives  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
LENGTHS = {"inputs": 48, "targets": 20}


@pytest.fixture
def lines(tmp_path):
    """A language of 40 numbered lines."""
    folder = tmp_path / "text" / "a"
    folder.mkdir(parents=True)
    for split in ("train", "validation"):
        (folder / f"{split}.txt").write_text("".join(f"line {n:02d}\n" for n in range(40)))
    vocabulary = tiny_t5x.vocabulary.load(None, extra_ids=8)
    return tiny_t5x.data.text.seqio_task(str(tmp_path / "text"), "a", vocabulary)


def rows(lines, objective, lengths=LENGTHS, **options):
    task = objectives.task(lines, objective, [])
    options = {"split": "train", "shuffle": False, "num_epochs": 1} | options
    return list(task.get_dataset(lengths, **options).as_numpy_iterator())


def text_of(lines):
    found = lines.get_dataset(None, split="train", shuffle=False, num_epochs=1)
    return np.concatenate([example["targets"] for example in found.as_numpy_iterator()])


def test_a_prefix_and_what_follows_it(lines):
    found = rows(lines, "prefix_lm")
    joined = np.concatenate([np.r_[row["inputs"], row["targets"]] for row in found])
    text = text_of(lines)
    np.testing.assert_array_equal(joined, text[: text.size // 68 * 68])
    assert all((len(row["inputs"]), len(row["targets"])) == (48, 20) for row in found)
    assert found[0]["inputs_pretokenized"].decode().startswith("line 00line 01line 02")


def test_spans_fill_the_gaps_that_their_sentinels_mark(lines):
    size, noise, spans = objectives.span_sizes(LENGTHS)
    found = rows(lines, "span_corruption", seed=1)
    vocabulary = lines.output_features["targets"].vocabulary
    first, text = vocabulary.vocab_size - 1, text_of(lines)
    assert first - spans >= 259, "sentinels are no bytes"
    for number, row in enumerate(found):
        inputs, targets = row["inputs"].tolist(), row["targets"].tolist()
        assert (len(inputs), len(targets)) == (size - noise + spans + 1, noise + spans + 1)
        assert inputs.pop() == targets.pop() == vocabulary.eos_id
        restored = []
        for token in inputs:
            if token <= first - spans:
                restored.append(token)
                continue
            assert targets.pop(0) == token
            span = next((n for n, t in enumerate(targets) if t > first - spans), len(targets))
            assert span > 0
            restored += [targets.pop(0) for _ in range(span)]
        assert not targets
        np.testing.assert_array_equal(restored, text[number * size :][:size])
    assert len({tuple(row["inputs"] > first - spans) for row in found}) > 3, "places differ"


def test_spans_are_the_same_for_the_same_seed(lines):
    one, same, other = (rows(lines, "span_corruption", seed=seed) for seed in (1, 1, 2))
    for x, y in zip(one, same, strict=True):
        np.testing.assert_array_equal(x["inputs"], y["inputs"])
    assert any((x["inputs"] != y["inputs"]).any() for x, y in zip(one, other, strict=True))


def test_sizes_are_those_of_t5():
    # t5.data.preprocessors.random_spans_helper(512, 0.15, 0, 0, 3.0) gives 568 and 114.
    assert objectives.span_sizes({"inputs": 512, "targets": 114}) == (568, 85, 28)


def test_what_does_not_fit_is_refused(lines):
    with pytest.raises(
        ValueError, match="one of 'lm', 'prefix_lm', 'span_corruption', but it is 'x'"
    ):
        objectives.task(lines, "x", [])
    with pytest.raises(ValueError, match="room for text, .* but TASK_FEATURE_LENGTHS is"):
        objectives.span_sizes({"inputs": 9, "targets": 2})


@pytest.mark.parametrize("objective", ["prefix_lm", "span_corruption"])
@pytest.mark.parametrize(
    "converter", [seqio.EncDecFeatureConverter, seqio.PrefixLMFeatureConverter]
)
def test_batches_hold_the_tasks_in_turn(tmp_path, objective, converter):
    for language in "abc":
        folder = tmp_path / "text" / language
        folder.mkdir(parents=True)
        for split in ("train", "validation"):
            (folder / f"{split}.txt").write_text(f"{language * 9}\n" * 40)
    cfg = tiny_t5x.utils.DatasetConfig(
        mixture_or_task_name=tiny_t5x.data.text_mixture(
            str(tmp_path / "text"),
            vocabulary=tiny_t5x.vocabulary.load(None, extra_ids=8),
            objective=objective,
        ),
        task_feature_lengths=LENGTHS,
        split="train",
        batch_size=6,
        shuffle=True,
        seed=3,
        pack=True,
    )
    dataset = tiny_t5x.data.get_dataset(cfg, 0, 1, converter, model_dir=str(tmp_path / "run"))
    vocabulary = tiny_t5x.vocabulary.load(None)
    for batch in itertools.islice(dataset, 3):
        tokens = batch["decoder_target_tokens"]
        if converter is seqio.EncDecFeatureConverter:
            assert batch["encoder_input_tokens"].shape == (6, 48) and tokens.shape == (6, 20)
            tokens = np.concatenate([batch["encoder_input_tokens"], tokens], axis=1)
        else:
            assert (batch["decoder_causal_attention"].sum(axis=1) > 40).all()
        letters = [vocabulary.decode([t for t in row if t < 259]) for row in tokens.tolist()]
        found = ["".join(sorted(set(text) & set("abc"))) for text in letters]
        assert found == ["a", "b", "c"] * 2
