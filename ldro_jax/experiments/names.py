"""Names of runs, for their files: short, plain, and different on every file system."""

import re
from collections.abc import Iterable

from ldro_jax.runtime import hashing
from ldro_jax.training.method import Method

# Some file systems take no more than 143 bytes for a name, and what is added to it needs some.
_LONGEST = 100


def run_label(method: Method, seed: int, *, several: bool = False) -> str:
    """What a run is called before it is made fit for files.

    Its settings are in it where there are ``several`` of the method.
    """
    setting = "".join(f"-{k}={v}" for k, v in method.settings().items()) if several else ""
    return f"{method.name}{setting}-seed{seed}"


def file_names(labels: Iterable[str]) -> list[str]:
    """Names for files: of at most 100 bytes, and different even where case is folded.

    They have ASCII letters, digits and ``._=-``. A label that is short, in ASCII and not yet taken
    keeps its text, with ``_`` for what a file system may not like. Any other is cut, and digits of
    a hash tell it from others: so one outside ASCII, whose letters all become ``_``, is named the
    same whatever labels come before it.
    """
    made: list[str] = []
    taken: set[str] = set()
    for label in labels:
        name = re.sub(r"[^A-Za-z0-9._=-]+", "_", label)
        if len(name) > _LONGEST or not label.isascii() or name.casefold() in taken:
            seed = name[name.rfind("-seed") :] if "-seed" in name else ""
            end = f"-{hashing.short(label, 12)}{seed}"
            name = name[: len(name) - len(seed)][: _LONGEST - len(end)] + end
        taken.add(name.casefold())
        made.append(name)
    return made
