"""What experiments are given in one piece, and where it was before."""

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from ldro_jax.runtime import checks

_P = ParamSpec("_P")
_R = TypeVar("_R")

# Arguments that `compare` had before, and where they are now.
MOVED = {
    "batch_size": "Batches.size",
    **{
        name: f"Batches.{name}"
        for name in ("sampler", "microbatches", "interaction_rows", "layout", "runs_together")
    },
    **{name: f"Report.{name}" for name in ("name", "description", "select_by", "references")},
    "data_dir": "Directories.data",
    **{name: f"Directories.{name}" for name in ("config_text", "overwrite", "ready")},
}
_ARGUMENTS = {"Batches": "batches", "Report": "report", "Directories": "output_dir"}


@dataclasses.dataclass(frozen=True)
class Report:
    """What the report of an experiment says, and what it compares with.

    Attributes:
      name: short name of the experiment.
      description: a paragraph.
      select_by: "worst" or "average": what on validation decides which setting of each method is
        shown.
      references: losses of models of one task each: a ``references.json``, or a function of
        ``output_dir``, a :class:`Directories`, that makes it first, such as
        :func:`~ldro_jax.experiments.alone.monolingual` with its other arguments bound.

    Raises:
      ValueError: if one of these isn't what it must be.
    """

    name: str = "experiment"
    description: str = ""
    select_by: str = "worst"
    references: str | Callable[..., Any] | None = None

    def __post_init__(self):
        checks.text("name", self.name)
        checks.require(isinstance(self.description, str), "description", "a text", self.description)
        checks.one_of("select_by", self.select_by, ("average", "worst"))


@dataclasses.dataclass(frozen=True)
class Directories:
    """Where an experiment reads and writes.

    Attributes:
      output: where everything goes: ``results.json``, ``report.html``, records, checkpoints.
      data: passed to the problem, if that is a function.
      overwrite: delete what an earlier experiment left in ``output``, when everything else is
        found to be right.
      config_text: the configuration as the report shows it; by default the arguments.
      ready: called once, when all is checked and before anything is written; the caller then
        answers for the directory, as the command line does.

    Raises:
      ValueError: if one of these isn't what it must be.
    """

    output: str | os.PathLike
    data: str | None = None
    overwrite: bool = False
    config_text: str | None = None
    ready: Callable[[], None] | None = None

    def __post_init__(self):
        is_path = isinstance(self.output, (str, os.PathLike))
        checks.require(is_path, "output_dir", "the path of a directory", self.output)
        checks.flag("overwrite", self.overwrite)
        is_path = self.data is None or isinstance(self.data, (str, os.PathLike))
        checks.require(is_path, "data", "the path of a directory, or None", self.data)
        if self.ready is not None:
            checks.function("ready", self.ready, example="a function without arguments")
        if self.overwrite and self.ready is not None:
            raise ValueError(
                "overwrite must be False with ready; the command line has --overwrite."
            )
        if self.config_text is not None:
            is_text = isinstance(self.config_text, str)
            checks.require(is_text, "config_text", "a text", self.config_text)

    @classmethod
    def of(cls, given: "str | os.PathLike | Directories") -> "Directories":
        """Those of an experiment that is given them, or the one to write to alone."""
        return given if isinstance(given, Directories) else cls(given)


def moved(name: str) -> str:
    """Where an argument of before is now, as a sentence; empty if there was none of that name."""
    if name == "trainable":
        return "trainable belongs to the optimizer now: optimizer=ldro.only(optimizer, trainable)."
    if name not in MOVED:
        return ""
    owner, field = MOVED[name].split(".")
    example = f"{_ARGUMENTS[owner]}={owner}({field}=…)"
    return f"{name} is {MOVED[name]} now: write {example}."


def moved_in_gin(function: str, name: str) -> str:
    """The same for gin files and the command line, where a function doesn't have a parameter."""
    if function not in ("compare", "monolingual", "trajectories") or name not in MOVED:
        return ""
    owner, field = MOVED[name].split(".")
    if owner == "Directories":
        flag = {"data": "--data_dir", "overwrite": "--overwrite"}.get(field)
        return f"That is the flag {flag}." if flag else ""
    scope = "alone/" if function == "monolingual" else ""
    return f"{name} is {scope}{MOVED[name]} now."


def without_old_names(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function, which says of arguments of before what to write instead."""

    @functools.wraps(function)
    def called(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        for name in kwargs:
            if instead := moved(name):
                raise ValueError(instead)
        return function(*args, **kwargs)

    # What gin looks at.
    called.__signature__ = inspect.signature(function)  # pyright: ignore[reportAttributeAccessIssue]
    return called
