"""Losses of models of one language each, to compare with: the file that holds them."""

import pathlib
from collections.abc import Sequence
from typing import Any

from ldro_jax.evaluation import perplexity
from ldro_jax.records import files
from ldro_jax.tasks import sequences
from ldro_jax.training.lm_program import LanguageModelProgram

FILE = "references.json"


def read(file: pathlib.Path) -> dict[str, Any]:
    """Reads the losses.

    Args:
      file: a ``references.json``.

    Returns:
      ``vocabulary``, ``eval_length``, ``losses``, from split and language to nats a token, and
      ``data``, what tells their text from other text.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is something else.
    """
    try:
        found = files.read_json(file)
        for split in ("validation", "test"):
            [float(loss) for loss in found["losses"][split].values()]
        return found
    except FileNotFoundError:
        raise FileNotFoundError(
            f"There is no file {file}. Expected the {FILE} that the experiment monolingual writes."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"Expected the {FILE} of the experiment monolingual in {file}, but it can't be "
            f"read ({type(error).__name__}: {error}). Make it again."
        ) from error


def read_for(
    file: pathlib.Path, corpus: sequences.Corpus, program: LanguageModelProgram
) -> dict[str, Any]:
    """Reads the losses, and checks that a run can be compared with them.

    Args:
      file: a ``references.json``.
      corpus: the text of the run.
      program: of the run.

    Returns:
      See :func:`read`.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is something else, or of other languages or another vocabulary.
    """
    found = read(file)
    known = {split: set(found["losses"][split]) for split in ("validation", "test")}
    missing = [n for n in corpus.task_names if any(n not in names for names in known.values())]
    if missing:
        raise ValueError(
            f"{file} has no losses for {', '.join(missing)}, but for "
            f"{', '.join(sorted(known['test']))}. Train the models of the languages that are "
            "missing, or leave them out of this run."
        )
    for what, ours in [
        ("vocabulary", corpus.vocabulary),
        ("eval_length", program.eval_length),
    ]:
        if found.get(what) != ours:
            raise ValueError(
                f"The losses in {file} were measured with another {what}, {found.get(what)}, than "
                f"this run's, {ours}, so they can't be compared."
            )
    return found


def perplexities(
    found: dict[str, Any] | None, task_names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Perplexities of the losses.

    Args:
      found: see :func:`read`; ``None`` if there are none.
      task_names: whose.

    Returns:
      From split and language; empty if there are none.
    """
    if found is None:
        return {}
    return {
        split: {name: float(perplexity.perplexity([losses[name]])[0]) for name in task_names}
        for split, losses in found["losses"].items()
    }
