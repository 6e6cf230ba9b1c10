"""What all drawings share: colours, lines that differ without colour, and PNG bytes from matplotlib's Agg."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from matplotlib import colormaps, style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

CSS = 100  # CSS pixels an inch: a figure 5 inches wide is shown 500 pixels wide


DPI = 200  # two pixels a CSS pixel


# Okabe and Ito, without the yellow that vanishes on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")


_DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))


_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


_RC = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.parse_math": False,  # a $ in a name is a $
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#777777",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlepad": 8,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.handlelength": 3,
    "lines.markersize": 5.5,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


Item = TypeVar("Item")


@dataclass(frozen=True)
class RenderedFigure:
    """A picture of the report: file stem, PNG bytes, width in CSS pixels, and its words."""

    name: str
    png: bytes
    width: int
    alt: str
    caption: str


@contextmanager
def figure_style() -> Iterator[None]:
    """Matplotlib's defaults and ours, whatever the reader's own matplotlibrc says."""
    with style.context(["default", _RC]):
        yield


def figure(width: float, height: float, layout: str | None = "constrained") -> Figure:
    """An empty figure, in inches, drawn by Agg without any pyplot state."""
    made = Figure(figsize=(width, height), dpi=DPI, layout=layout)
    FigureCanvasAgg(made)
    return made


def finish(made: Figure, name: str, alt: str, caption: str) -> RenderedFigure:
    """Render a figure to bytes that depend on nothing but its content."""
    buffer = io.BytesIO()
    made.savefig(buffer, format="png", metadata={"Software": None})
    return RenderedFigure(name, buffer.getvalue(), round(made.get_figwidth() * CSS), alt, caption)


def line(i: int) -> dict:
    """Line i of a plot: colour, dashes and marker all differ; 28 lines before any two are alike."""
    return {
        "color": _COLOURS[i % len(_COLOURS)],
        "linestyle": _DASHES[i % len(_DASHES)],
        "marker": _MARKERS[i % len(_MARKERS)],
        "markeredgecolor": "white",
        "markeredgewidth": 0.5,
    }


def ramp(i: int, n: int) -> tuple[float, float, float, float]:
    """Colour i of n in an order that grey keeps: dark first."""
    return colormaps["cividis"](0.02 + 0.74 * i / max(n - 1, 1))


def generation_axis(ax: Axes, numbers: Sequence[int]) -> None:
    """Whole generations only, half a generation of air on both sides."""
    ax.set_xlim(min(numbers) - 0.3, max(numbers) + 0.3)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    ax.grid(axis="x", visible=False)


def spread(items: Sequence[Item], limit: int) -> list[Item]:
    """At most `limit` of the items, evenly spread, the first and the last among them."""
    if len(items) <= limit:
        return list(items)
    return [items[round(i * (len(items) - 1) / (limit - 1))] for i in range(limit)]
