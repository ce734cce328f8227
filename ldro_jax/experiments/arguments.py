"""What experiments are given in one piece."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

from ldro_jax.runtime import checks


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

    def __post_init__(self) -> None:
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

    output: str | os.PathLike[str]
    data: str | None = None
    overwrite: bool = False
    config_text: str | None = None
    ready: Callable[[], None] | None = None

    def __post_init__(self) -> None:
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
    def of(cls, given: "str | os.PathLike[str] | Directories") -> "Directories":
        """What is given, or an object with that directory as its ``output``."""
        return given if isinstance(given, Directories) else cls(given)
