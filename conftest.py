"""Leaves out modules that need T5X where it is absent: pytest imports all for doctests."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("t5x") else ["ldro_jax/t5x/*"]
