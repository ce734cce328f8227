"""What all figures share: one look per method, and names that fit.

Figures are made without pyplot, so none is left open in a global list and no backend is chosen for
the program that calls this. Names stand outside the axes, where they cover nothing.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import ArrayLike

from ldro_jax.records.results import Results
from ldro_jax.reporting.comparison import Comparison, compare

WIDTH = 8.6  # inches: fills a report's column, with 10-point text still readable
GREY = "#8a8a8a"
# Okabe and Ito's colour-blind-safe palette, its yellow last because it is faint on white.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#B8A800")
# Neither list's length divides the other's, so colour and marker together tell 56 methods apart.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (6, 1.5)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)))
# More tasks than this get no row or label of their own.
MANY = 60
# Fonts that have letters which the first one lacks. Those that are installed are asked in turn.
_FURTHER_FONTS = (
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK TC", "Noto Sans CJK KR"),
    *("Source Han Sans", "Source Han Sans SC", "Droid Sans Fallback", "WenQuanYi Zen Hei"),
    *("WenQuanYi Micro Hei", "IPAexGothic", "IPAGothic", "TakaoGothic", "VL Gothic", "Yu Gothic"),
    *("Meiryo", "MS Gothic", "Microsoft YaHei", "SimHei", "SimSun", "Malgun Gothic", "NanumGothic"),
    *("Hiragino Sans", "PingFang SC", "PingFang HK", "Apple SD Gothic Neo", "Arial Unicode MS"),
    *("Noto Sans", "Noto Sans Devanagari", "Noto Sans Thai", "Noto Sans Bengali", "FreeSans"),
    *("Nirmala UI", "Leelawadee UI", "Unifont"),
)
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

_P = ParamSpec("_P")
_Drawn = TypeVar("_Drawn")


@functools.cache
def _fonts() -> tuple[str, ...]:
    installed = set(font_manager.get_font_names())
    return ("DejaVu Sans", *(name for name in _FURTHER_FONTS if name in installed))


@functools.cache
def _letters(font: str) -> frozenset[int]:
    return frozenset(font_manager.get_font(font_manager.findfont(font)).get_charmap())


def can_draw(text: str) -> bool:
    """Whether the fonts that are installed have all letters of a text."""
    return all(any(ord(c) in _letters(font) for font in _fonts()) for c in text if c != "\n")


def applied(draw: Callable[_P, _Drawn]) -> Callable[_P, _Drawn]:
    """A decorator of functions that draw: the program's own settings stay as they are."""

    @functools.wraps(draw)
    def drawn(*args: _P.args, **kwargs: _P.kwargs) -> _Drawn:
        settings: dict[Any, Any] = {**_RC, "font.family": list(_fonts())}
        with matplotlib.rc_context(settings):
            return draw(*args, **kwargs)

    return drawn


class OnAxes(Protocol):
    """Draws results on axes that are given, or on those of a new figure, and returns them."""

    def __call__(
        self, results: Comparison | Results, ax: Axes | None = None, **options: Any
    ) -> Axes:
        """Draws."""
        ...


def on_axes(draw: Callable[..., Axes]) -> OnAxes:
    """A decorator of functions that draw a comparison on one axes; they may be given a record."""

    @functools.wraps(draw)
    @applied
    def drawn(results: Comparison | Results, ax: Axes | None = None, **options: Any) -> Axes:
        return draw(compare(results) if isinstance(results, Results) else results, ax, **options)

    return drawn


@dataclasses.dataclass(frozen=True)
class Look:
    """How one method is drawn, in every figure."""

    color: str
    marker: str
    linestyle: Any

    @property
    def options(self) -> dict[str, Any]:
        """Arguments for a line with markers."""
        return dataclasses.asdict(self)


def new_figure(width: float, height: float) -> Figure:
    """A figure of a size in inches that belongs to no window and no global list."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def axes_of(ax: Axes | None, height: float) -> Axes:
    """The axes that were given, or else the axes of a figure of their own."""
    return new_figure(WIDTH, height).subplots() if ax is None else ax


def legend_of(axes: Axes, handles: Sequence[Any], *, above: bool) -> None:
    """A legend above a figure of one axes, or within axes that have others beside them."""
    if above:
        figure: Any = axes.figure
        legend_above(figure, handles)
    else:
        axes.legend(handles=handles)


def looks(items: Iterable[Any], *, without: Sequence[str] = ()) -> dict[Any, Look]:
    """A look for each method or setting, decided by its place: the same in every figure.

    Colours that mean something else in this one are left out.
    """
    colours = [colour for colour in COLOURS if colour not in without]
    return {
        item: Look(colours[i % len(colours)], MARKERS[i % len(MARKERS)], LINES[i % len(LINES)])
        for i, item in enumerate(items)
    }


def task_labels(names: Sequence[str]) -> dict[str, str]:
    """What pictures call the tasks: by their names, or their numbers where no font has these."""
    return {name: name if can_draw(name) else f"task no. {i}" for i, name in enumerate(names, 1)}


def sampled(names: Sequence[str], most: int) -> tuple[Sequence[int], Sequence[str]]:
    """Places and names of as many as there is room for, at even distances."""
    step = max(-(-len(names) // most), 1)
    return range(0, len(names), step), names[::step]


def thickness(count: int) -> float:
    """Of bars, in their distances; gaps between many would make patterns of their own."""
    return 1.0 if count > MANY else 0.7


def short(name: str, width: int = 24) -> str:
    """A name cut to `width` characters; dollar signs are escaped, they would start a formula.

    Letters that no font has become question marks.
    """
    name = "".join(letter if can_draw(letter) else "?" for letter in name)
    name = name if len(name) <= width else name[: width - 1].rstrip() + "…"
    return name.replace("$", r"\$")


def legend_above(figure: Figure, handles: Sequence[Any]) -> None:
    """A legend over the whole width, with as many columns as there is room for."""
    labels = [str(handle.get_label()) for handle in handles]
    longest = max(map(len, labels), default=0)
    columns = max(min(4, len(labels), 104 // (longest + 8)), 1)
    figure.legend(handles=handles, loc="outside upper center", ncols=columns)


def key(label: str, *, width: int = 40, **options: Any) -> Line2D:
    """An entry of a legend, its name cut to `width` characters."""
    return Line2D([], [], label=short(label, width), **options)


def axis_name(values: Any, prefix: str) -> str:
    """An axis label with the direction of the metric; `values` are `Values` or `Frontiers`."""
    return f"{prefix}{short(values.metric, 40)} ({values.better})"


def is_wide(values: Any, drawn: ArrayLike) -> bool:
    """Whether only a logarithmic axis shows all that is drawn; where higher is better, none is."""
    drawn = np.asarray(drawn, dtype=float)
    drawn = drawn[np.isfinite(drawn)]
    if values.higher_is_better or not len(drawn) or not (drawn > 0).all():
        return False
    return bool(drawn.max() > 10 * drawn.min())


def log_if_wide(axis: XAxis | YAxis, values: Any, drawn: ArrayLike) -> None:
    """Makes an axis logarithmic, with plain numbers on it, if :func:`is_wide`."""
    if is_wide(values, drawn):
        getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axis.set_minor_formatter(NullFormatter())


def name_panels(grid: np.ndarray, used: int, xlabel: str, ylabel: str) -> None:
    """Names the axes once per column and row, and clears the panels without content."""
    columns = grid.shape[1]
    for axes in grid.flat[used:]:
        axes.axis("off")
    for column in range(min(columns, used)):
        last = max(i for i in range(used) if i % columns == column)
        # Shared axes hide the tick labels of a panel that has an empty one below it.
        grid.flat[last].tick_params(labelbottom=True)
        grid.flat[last].set_xlabel(xlabel)
    for axes in grid[:, 0]:
        axes.set_ylabel(ylabel)


def shifts(count: int, width: float) -> np.ndarray:
    """Places beside each other, so that equal values don't hide each other."""
    return np.linspace(-width, width, count) if count > 1 else np.zeros(1)
