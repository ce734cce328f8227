"""The experiments that come with the package; imports nothing that takes time."""

import dataclasses
import pathlib
import re

_PACKAGE = pathlib.Path(__file__).resolve().parent
# Where gin_configs/ lies in a clone, and where in an installed package.
ROOTS = (_PACKAGE.parent, _PACKAGE)
FOLDER = "gin_configs/experiments"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A gin file that comes with the package.

    Attributes:
      path: where it is.
      about: the first sentence of the comment that it begins with.
      needs_data: whether its command has a ``--data_dir``.
    """

    path: pathlib.Path
    about: str
    needs_data: bool

    @classmethod
    def read(cls, path: pathlib.Path) -> "Experiment":
        """Reads the comment at the top of a gin file."""
        text = path.read_text(encoding="utf-8")
        comment = re.match(r"(#.*\n)*", text)[0]  # pyright: ignore[reportOptionalSubscript]
        paragraph = " ".join(re.sub(r"^# ?", "", comment, flags=re.M).split("\n\n")[0].split())
        # There is no capital letter behind an abbreviation.
        return cls(
            path, re.split(r"(?<=[.?!]) (?=\(?[A-Z])", paragraph)[0], "--data_dir" in comment
        )


def experiments() -> dict[str, Experiment]:
    """All of them by name, such as "digits"."""
    files = (file for root in ROOTS for file in (root / FOLDER).glob("*.gin"))
    return {file.stem: Experiment.read(file) for file in sorted(files)}
