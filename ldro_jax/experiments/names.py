"""Names of runs, for their files: short, plain, and different on every file system."""

import hashlib
import re
from collections.abc import Iterable

from ldro_jax.training.method import Method

# Some file systems take no more than 143 bytes for a name, and what is added to it needs some.
_LONGEST = 100


def run_label(method: Method, seed: int, *, several: bool = False) -> str:
    """What a run is called before it is made fit for files.

    Args:
      method: of the run.
      seed: of the run.
      several: whether there are several settings of the method.

    Returns:
      Any text.
    """
    setting = "".join(f"-{k}={v}" for k, v in method.settings().items()) if several else ""
    return f"{method.name}{setting}-seed{seed}"


def file_names(labels: Iterable[str]) -> list[str]:
    """Names for files: of at most 100 bytes, and different even where case is folded.

    A name that is short enough, in ASCII, and that no label before has taken, is the label itself
    with ``_`` for what a file system may not like. Otherwise it is cut, and some digits of a hash
    tell it from others: words that are all ``_`` are to be the same whatever comes before them.

    Args:
      labels: of all runs, all different.

    Returns:
      A name for each, of ASCII letters, digits and ``._=-``.
    """
    found: list[str] = []
    taken: set[str] = set()
    for label in labels:
        name = re.sub(r"[^A-Za-z0-9._=-]+", "_", label)
        if len(name) > _LONGEST or not label.isascii() or name.casefold() in taken:
            digest = hashlib.sha256(label.encode(errors="backslashreplace")).hexdigest()[:12]
            seed = name[name.rfind("-seed") :] if "-seed" in name else ""
            end = f"-{digest}{seed}"
            name = name[: len(name) - len(seed)][: _LONGEST - len(end)] + end
        taken.add(name.casefold())
        found.append(name)
    return found
