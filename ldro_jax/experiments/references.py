"""Losses of models of one language each, to compare with: the file that holds them."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from ldro_jax import weighting
from ldro_jax.experiments.arguments import Directories
from ldro_jax.problems.base import Problem
from ldro_jax.problems.language_models import LanguageModel
from ldro_jax.records import files, perplexity
from ldro_jax.runtime import checks, paths
from ldro_jax.training.method import Method

FILE = "references.json"


def read(file: pathlib.Path) -> dict[str, Any]:
    """Reads a ``references.json``.

    Returns:
      ``vocabulary``, ``eval_length``, ``losses``, from split and language to nats a token, and
      ``identity``, what they were made with.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is something else.
    """
    try:
        references = files.read_json(file)
        for split in ("validation", "test"):
            [float(loss) for loss in references["losses"][split].values()]
        return references
    except FileNotFoundError:
        raise FileNotFoundError(
            f"There is no file {file}. Expected the {FILE} that the experiment monolingual writes."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"Expected the {FILE} of the experiment monolingual in {file}, but it can't be "
            f"read ({type(error).__name__}: {error}). Make it again."
        ) from error


def check(references: Any, methods: Sequence[Method]) -> None:
    """Checks what :func:`load` takes before there is any data.

    Raises:
      ValueError: if it is something else, or a method needs references and there are none.
    """
    if callable(references):
        checks.function("Report.references", references, "output_dir", example="@monolingual")
    elif references is not None:
        checks.text("Report.references", references)
    elif any(
        "reference_losses" in weighting.from_data(m.weighting, m.hyperparameters) for m in methods
    ):
        raise ValueError(
            "Report.references must be a references.json, or @monolingual which makes one, for a "
            "method that needs reference_losses and isn't given them, but it is None."
        )


def load(
    references: str | Callable[..., Any] | None,
    problem: Problem,
    where: Directories,
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Reads the references of an experiment, or makes them.

    Args:
      references: a ``references.json``, or a function that makes one, or ``None``.
      problem: what is trained.
      where: directories of the experiment. Its ``ready`` is called when all is checked and before
        anything is written.

    Returns:
      Losses on validation by task, in nats a token, and perplexities by split and task; both empty
      without references.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is something else, or of other tasks or another vocabulary.
    """
    ready = where.ready or (lambda: None)
    if references is None:
        ready()
        return {}, {}
    expected = "None for a problem that isn't a language model"
    checks.require(isinstance(problem, LanguageModel), "Report.references", expected, references)
    assert isinstance(problem, LanguageModel)
    if callable(references):
        folder = paths.absolute(where.output) / "monolingual"
        # It calls ready, since its own arguments are to be checked before that as well.
        references(output_dir=Directories(folder, where.data, ready=ready))
        losses = _read_for(folder / FILE, problem)
    else:
        losses = _read_for(paths.make(references).expanduser(), problem)
        ready()
    return losses["validation"], {
        split: {name: float(perplexity.perplexity(loss)) for name, loss in by_name.items()}
        for split, by_name in losses.items()
    }


def _read_for(file: pathlib.Path, problem: LanguageModel) -> dict[str, dict[str, float]]:
    """The losses of the problem's tasks by split, if models of this problem can be compared."""
    references = read(file)
    splits = {split: references["losses"][split] for split in ("validation", "test")}
    missing = [name for name in problem.task_names if any(name not in x for x in splits.values())]
    if missing:
        raise ValueError(
            f"{file} has no losses for {', '.join(missing)}, but for "
            f"{', '.join(sorted(splits['test']))}. Train the models of the languages that are "
            "missing, or leave them out of this run."
        )
    for what, ours in [
        ("vocabulary", problem.corpus.vocabulary),
        ("eval_length", problem.eval_length),
    ]:
        if references.get(what) != ours:
            raise ValueError(
                f"The losses in {file} were measured with another {what}, {references.get(what)}, "
                f"than this run's, {ours}, so they can't be compared."
            )
    return {
        split: {name: losses[name] for name in problem.task_names}
        for split, losses in splits.items()
    }
