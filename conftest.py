"""Leaves out modules that need T5X where it is absent: pytest imports all for doctests."""

import importlib.util

# The tests' own directory of that name is a package without a file.
_T5X = importlib.util.find_spec("t5x")
collect_ignore_glob = [] if _T5X and _T5X.origin else ["ldro_jax/t5x/*", "tests/tiny_t5x.py"]
