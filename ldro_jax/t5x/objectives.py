"""Objectives that a model learns from text: language modelling, prefixes, and span corruption.

References:
  Raffel et al., *Exploring the limits of transfer learning*, JMLR 2020 (sections 3.1.4 and 3.2.1);
  Xue et al., *mT5*, NAACL 2021; Xue et al., *ByT5*, TACL 2022.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import seqio
import tensorflow as tf

from ldro_jax.runtime import checks

# T5 and mT5 leave out this share of the text, in spans of this many tokens on average.
NOISE_DENSITY, SPAN_LENGTH = 0.15, 3.0


def task(
    of_lines: seqio.Task, objective: str, metric_fns: Sequence[Callable[..., Any]]
) -> seqio.Task:
    """The same text with documents put one after another and cut into full rows.

    Args:
      of_lines: a task whose feature ``targets`` holds the tokens of a document.
      objective: one of :data:`OBJECTIVES`:

        * ``"lm"``: rows of ``targets`` tokens;
        * ``"prefix_lm"``: of each row the first ``inputs`` tokens are given, and the ``targets``
          tokens after them are to be predicted. For encoder-decoders, and for decoders with
          ``inputs_bidirectional_attention``;
        * ``"span_corruption"``: T5's and mT5's. Spans are left out, and sentinels, the last ids of
          the vocabulary, stand in their place (a SentencePiece vocabulary needs as many
          ``extra_ids``; bytes take their last ids, as ByT5 does).

        The tokens after the last full row of a pass are left out, but for ``"lm"``.
      metric_fns: of ``(number of tokens of each row, log-likelihoods)``, for evaluation.

    Returns:
      The task, with the name of ``of_lines``.

    Raises:
      ValueError: if the objective is unknown.
    """
    checks.one_of("objective", objective, tuple(OBJECTIVES))
    feature = of_lines.output_features["targets"]
    names = ("targets",) if objective == "lm" else ("inputs", "targets")

    def rows(dataset, sequence_length):
        return OBJECTIVES[objective](
            dataset.map(lambda example: example["targets"]), sequence_length, feature.vocabulary
        )

    def count(output, example, is_target=False):
        return example["targets"].size if is_target else output

    return seqio.Task(
        of_lines.name,
        source=of_lines.source,
        preprocessors=[*of_lines.preprocessors, rows],
        output_features=dict.fromkeys(names, feature),
        postprocess_fn=count,
        metric_fns=list(metric_fns),
    )


def _lm(documents, lengths, vocabulary):
    del vocabulary
    # seqio's evaluation wants a text besides.
    return documents.rebatch(lengths["targets"]).map(
        lambda row: {"targets": row, "targets_pretokenized": ""}
    )


def _prefix_lm(documents, lengths, vocabulary):
    given = lengths["inputs"]
    rows = documents.rebatch(given + lengths["targets"], drop_remainder=True)
    return rows.map(lambda row: _pair(row[:given], row[given:], vocabulary))


def _span_corruption(documents, lengths, vocabulary):
    size, noise, spans = span_sizes(lengths)
    sentinels = vocabulary.vocab_size - 1 - tf.range(spans)[:, None]

    @seqio.map_over_dataset(num_seeds=2)
    def corrupt(row, seeds):
        kept, left_out = _parts(size - noise, spans, seeds[0]), _parts(noise, spans, seeds[1])
        pieces = tf.RaggedTensor.from_row_lengths(
            tf.ensure_shape(row, (size,)), tf.reshape(tf.stack([kept, left_out], axis=1), [-1])
        )
        marks = tf.cast(sentinels, row.dtype)
        end = tf.constant([vocabulary.eos_id], row.dtype)
        inputs = tf.concat([pieces[0::2], marks], axis=1).flat_values
        targets = tf.concat([marks, pieces[1::2]], axis=1).flat_values
        return _pair(tf.concat([inputs, end], 0), tf.concat([targets, end], 0), vocabulary)

    return corrupt(documents.rebatch(size, drop_remainder=True))


def span_sizes(lengths: Mapping[str, int]) -> tuple[int, int, int]:
    """How span corruption fills inputs and targets of some lengths, sentinels and end among them.

    Returns:
      Numbers of tokens of text in a row, of tokens among them that are left out, and of spans.

    Raises:
      ValueError: if they are too short for a single span.
    """
    size = lengths["inputs"] + lengths["targets"]
    while size > 1:
        noise = min(max(round(size * NOISE_DENSITY), 1), size - 1)
        spans = max(round(noise / SPAN_LENGTH), 1)
        fits = size - noise + spans < lengths["inputs"] and noise + spans < lengths["targets"]
        if fits and spans <= size - noise:
            return size, noise, spans
        size -= 1
    raise ValueError(
        "Span corruption needs room for text, a sentinel and an end in inputs and targets, but "
        f"TASK_FEATURE_LENGTHS is {dict(lengths)}. T5's and mT5's are inputs 512 and targets 114."
    )


def _parts(total, parts, seed):
    """Lengths of parts of a row, at least 1 each, every division as likely as another."""
    places = tf.random.experimental.stateless_shuffle(tf.range(1, total), seed)[: parts - 1]
    return tf.experimental.numpy.diff(tf.concat([[0], tf.sort(places), [total]], axis=0))


def _pair(inputs, targets, vocabulary):
    def text_of(tokens):
        # A text would end with the first document.
        return vocabulary.decode_tf(tf.boolean_mask(tokens, tokens != vocabulary.eos_id))

    # T5X writes the texts beside what is predicted.
    pair = {"inputs": inputs, "targets": targets}
    return pair | {f"{name}_pretokenized": text_of(tokens) for name, tokens in pair.items()}


OBJECTIVES = {"lm": _lm, "prefix_lm": _prefix_lm, "span_corruption": _span_corruption}
