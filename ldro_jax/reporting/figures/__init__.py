"""Figures of a comparison: each function returns a matplotlib figure and leaves none open."""
