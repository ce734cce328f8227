"""Figures of a comparison: each function returns a matplotlib figure and leaves none open."""


def available() -> bool:
    """Whether matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def trajectories(*args, **kwargs):
    """Paths in the plane; see :func:`ldro_jax.reporting.figures.toy.trajectories`."""
    from ldro_jax.reporting.figures import toy

    return toy.trajectories(*args, **kwargs)
