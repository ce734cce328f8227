"""Which tasks to train together."""

from ldro_jax.grouping.selection import Selection, select, select_groups

__all__ = ["Selection", "select", "select_groups"]
