"""What all figures share: matplotlib on demand, one look per method, labels that do not collide.

Figures are made without pyplot, so none is left open in a global list and no backend is chosen for
the program that calls this.
"""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

WIDTH = 8.6  # inches: fills a report's column, with 10-point text still readable
GREY = "#8a8a8a"
# Okabe and Ito's colour-blind-safe palette, its yellow last because it is faint on white.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#B8A800")
# Neither list's length divides the other's, so colour and marker together tell 56 methods apart.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (6, 1.5)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)))
_RC: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.dpi": 150,
    "savefig.dpi": 150,
}


@dataclasses.dataclass(frozen=True)
class Look:
    """How one method is drawn, in every figure."""

    colour: str
    marker: str
    line: Any


def available() -> bool:
    """Whether matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def with_style(draw: Callable) -> Callable:
    """Runs a drawing function under the report's settings, leaving the program's own untouched.

    Args:
      draw: a function that returns a figure.

    Returns:
      The same function; it raises a clear `ImportError` where matplotlib is missing.
    """

    @functools.wraps(draw)
    def styled(*args, **kwargs):
        try:
            import matplotlib
        except ImportError as error:
            raise ImportError(
                "Figures need matplotlib, which is not installed. Install it with "
                "pip install 'ldro-jax[plots]'."
            ) from error
        with matplotlib.rc_context(_RC):
            return draw(*args, **kwargs)

    return styled


def new_figure(width: float, height: float):
    """A figure of a size in inches that belongs to no window and no global list."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def looks(labels: Sequence[str], *, without: Sequence[str] = ()) -> dict[str, Look]:
    """One look per method, decided by its place in the record: the same in every figure.

    Args:
      labels: the methods.
      without: colours that mean something else in this figure.

    Returns:
      The looks by label.
    """
    colours = [colour for colour in COLOURS if colour not in without]
    return {
        label: Look(colours[i % len(colours)], MARKERS[i % len(MARKERS)], LINES[i % len(LINES)])
        for i, label in enumerate(labels)
    }


def short(name: str, width: int = 24) -> str:
    """A name cut to `width` characters; dollar signs are escaped, they would start a formula."""
    name = name if len(name) <= width else name[: width - 1].rstrip() + "…"
    return name.replace("$", r"\$")


def legend_columns(labels: Sequence[str]) -> int:
    """How many columns a legend over the whole width has room for."""
    longest = max((len(label) for label in labels), default=0)
    return max(min(4, len(labels), 104 // (longest + 8)), 1)


def axis_name(results, prefix: str = "") -> str:
    """An axis label with the metric's direction."""
    arrow = "higher is better" if results.higher_is_better else "lower is better"
    return f"{prefix}{short(results.metric, 40)} ({arrow})"


def is_wide(results, values) -> bool:
    """Whether values, such as perplexities from the first step on, need a logarithmic axis."""
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    if results.higher_is_better or not len(values) or values.min() <= 0:
        return False
    return bool(values.max() > 10 * values.min())


def log_if_wide(axis, results, values) -> None:
    """Makes an axis logarithmic, with plain numbers at its ticks, if `values` need it.

    Args:
      axis: `axes.xaxis` or `axes.yaxis`.
      results: the record; the axis has its metric.
      values: all that is drawn.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if is_wide(results, values):
        getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axis.set_minor_formatter(NullFormatter())


def empty_figure(message: str):
    """A small figure that says why there is nothing to see."""
    figure = new_figure(WIDTH, 1.2)
    axes = figure.subplots()
    axes.axis("off")
    axes.text(0.5, 0.5, message, ha="center", va="center", color="#555555")
    return figure


def place_labels(axes, points: np.ndarray, labels: Sequence[str], colours: Sequence[str], avoid):
    """Writes each label near its point where it covers no point and no other label.

    Args:
      axes: the axes, with their limits final.
      points: data coordinates, shape [K, 2].
      labels: the K texts.
      colours: the K colours.
      avoid: data coordinates of further points not to be covered, shape [P, 2].
    """
    figure = axes.figure
    figure.canvas.draw()  # the layout decides where data land, in pixels
    figure.set_layout_engine("none")
    renderer = figure.canvas.get_renderer()
    pixels = axes.transData.transform(np.asarray(points, dtype=float).reshape(-1, 2))
    dots = np.concatenate([pixels, axes.transData.transform(np.reshape(avoid, (-1, 2)))])
    frame = axes.get_window_extent(renderer)
    scale = figure.dpi / 72
    taken: list[tuple[float, float, float, float]] = []
    for pixel, text, colour in zip(pixels, labels, colours, strict=True):
        artist = axes.text(0, 0, text, color=colour, fontsize=10, fontweight="bold", zorder=6)
        size = artist.get_window_extent(renderer)
        best = None
        for rank, (x, y) in enumerate(_offsets(size.width, size.height, scale)):
            box = (
                pixel[0] + x,
                pixel[1] + y,
                pixel[0] + x + size.width,
                pixel[1] + y + size.height,
            )
            cost = (
                rank + 1000 * _overlaps(box, taken, dots, 4 * scale) + 5000 * _outside(box, frame)
            )
            if best is None or cost < best[0]:
                best = (cost, box)
        assert best is not None
        box = best[1]
        taken.append(box)
        artist.set_position(axes.transData.inverted().transform(box[:2]))
        end = np.clip(pixel, box[:2], box[2:])
        if np.hypot(*(end - pixel)) > 16 * scale:
            line = axes.transData.inverted().transform([pixel, end])
            axes.plot(*line.T, color=colour, linewidth=0.6, zorder=2)


def _offsets(width: float, height: float, scale: float) -> Iterator[tuple[float, float]]:
    """Lower left corners of a label around its point, the nearest first."""
    for radius in (9, 16, 26, 40, 58, 80):
        gap = radius * scale
        columns = (gap, -width - gap, -width / 2)
        rows = (-height / 2, gap, -height - gap)
        for column, row in itertools.product(columns, rows):
            if (column, row) != (columns[2], rows[0]):
                yield column, row


def _overlaps(box, taken, dots, margin: float) -> float:
    """How many labels and points a box covers, labels counting ten times."""
    left, bottom, right, top = box
    labels = sum(
        left < b[2] + margin and b[0] < right + margin and bottom < b[3] and b[1] < top
        for b in taken
    )
    inside = (
        (dots[:, 0] > left - margin)
        & (dots[:, 0] < right + margin)
        & (dots[:, 1] > bottom - margin)
        & (dots[:, 1] < top + margin)
    )
    return 10.0 * labels + float(inside.sum())


def _outside(box, frame) -> bool:
    return box[0] < frame.x0 or box[2] > frame.x1 or box[1] < frame.y0 or box[3] > frame.y1


@contextlib.contextmanager
def quiet_means():
    """Means over seeds where some, or all, values are missing: NaN without a warning."""
    import warnings

    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        yield
