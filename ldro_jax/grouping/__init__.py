"""Which tasks belong together: how they affect each other, and which groups to train."""

from ldro_jax.grouping.affinities import KINDS, AffinityState, affinity, find_state, lookahead
from ldro_jax.grouping.affinities import tracked as tracked
from ldro_jax.grouping.affinities import tracking as tracking
from ldro_jax.grouping.gain import agreement, fitted, gains, of_pairs, predicted, reliability
from ldro_jax.grouping.selection import Selection, select, select_groups

__all__ = [
    "KINDS",
    "AffinityState",
    "Selection",
    "affinity",
    "agreement",
    "find_state",
    "fitted",
    "gains",
    "lookahead",
    "of_pairs",
    "predicted",
    "reliability",
    "select",
    "select_groups",
    "tracked",
    "tracking",
]
