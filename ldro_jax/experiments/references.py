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
) -> dict[str, Any] | None:
    """Reads the references of an experiment, or makes them.

    Args:
      references: a ``references.json``, or a function that makes one, or ``None``.
      problem: what is trained.
      where: directories of the experiment. Its ``ready`` is called when all is checked and before
        anything is written.

    Returns:
      See :func:`read`; ``None`` without references.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is something else, or of other tasks or another vocabulary.
    """
    ready = where.ready or (lambda: None)
    if references is None:
        ready()
        return None
    expected = "None for a problem that isn't a language model"
    checks.require(isinstance(problem, LanguageModel), "Report.references", expected, references)
    assert isinstance(problem, LanguageModel)
    if not callable(references):
        found = read_for(paths.make(references).expanduser(), problem)
        ready()
        return found
    folder = paths.absolute(where.output) / "monolingual"
    # It calls ready, since its own arguments are to be checked before that as well.
    references(output_dir=Directories(folder, where.data, ready=ready))
    return read_for(folder / FILE, problem)


def read_for(file: pathlib.Path, problem: LanguageModel) -> dict[str, Any]:
    """As :func:`read`; raises ``ValueError`` also for other languages or another vocabulary."""
    found = read(file)
    known = {split: set(found["losses"][split]) for split in ("validation", "test")}
    missing = [n for n in problem.task_names if any(n not in names for names in known.values())]
    if missing:
        raise ValueError(
            f"{file} has no losses for {', '.join(missing)}, but for "
            f"{', '.join(sorted(known['test']))}. Train the models of the languages that are "
            "missing, or leave them out of this run."
        )
    for what, ours in [
        ("vocabulary", problem.corpus.vocabulary),
        ("eval_length", problem.eval_length),
    ]:
        if found.get(what) != ours:
            raise ValueError(
                f"The losses in {file} were measured with another {what}, {found.get(what)}, than "
                f"this run's, {ours}, so they can't be compared."
            )
    return found


def validation_losses(found: dict[str, Any] | None, task_names: Sequence[str]) -> dict[str, float]:
    """Losses of tasks on validation by name, in nats a token; none without references."""
    return {} if found is None else {n: found["losses"]["validation"][n] for n in task_names}


def perplexities(
    found: dict[str, Any] | None, task_names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Perplexities of tasks by split and name; none without references."""
    if found is None:
        return {}
    return {
        split: {name: float(perplexity.perplexity([losses[name]])[0]) for name in task_names}
        for split, losses in found["losses"].items()
    }
