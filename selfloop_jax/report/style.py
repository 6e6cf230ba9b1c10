"""Style of all figures: colours, lines that differ without colour, and PNG bytes from Agg."""

import io
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar

import numpy as np
from matplotlib import colormaps, style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

CSS = 100  # CSS pixels per inch: a figure 5 inches wide is shown 500 pixels wide
DPI = 200  # two pixels per CSS pixel

GREY = "#777777"
# Okabe and Ito 2008, without the yellow that vanishes on white; then grey, and wine of Tol 2021.
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9"),
    *(GREY, "#882255"),
)
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")
INK = "#222222"

FONT = "DejaVu Sans"  # comes with matplotlib
RC = {
    "font.family": FONT,
    "font.size": 9,
    "text.parse_math": False,  # a $ in a name is a $
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
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
    """A figure of the page: file stem, PNG bytes, width in CSS pixels, alt text and caption."""

    name: str
    png: bytes
    width: int
    alt: str
    caption: str


@contextmanager
def figure_style() -> Iterator[None]:
    """Applies matplotlib's defaults and ours, whatever the reader's matplotlibrc says."""
    with style.context(["default", RC]):
        yield


def figure(
    width: float, height: float, layout: Literal["constrained"] | None = "constrained"
) -> Figure:
    """Returns an empty figure, in inches, rendered by Agg without any pyplot state."""
    empty = Figure(figsize=(width, height), dpi=DPI, layout=layout)
    # The canvas attaches itself to the figure.
    FigureCanvasAgg(empty)
    return empty


@cache
def _glyphs() -> frozenset[int]:
    """The characters that the figures' font has."""
    return frozenset(get_font(findfont(FONT)).get_charmap())


def shown(text: str) -> str:
    r"""The text with \u732b and the like in place of characters that the figures' font lacks.

    As empty boxes, two different names would look alike. The page's own text needs none of this.
    """
    return "".join(
        letter if ord(letter) in _glyphs() or letter.isspace() else ascii(letter)[1:-1]
        for letter in text
    )


def finish(fig: Figure, name: str, alt: str, caption: str) -> RenderedFigure:
    """Renders a figure to bytes that depend on its content only."""
    for text in fig.findobj(Text):
        text.set_text(shown(text.get_text()))
    # The axis keeps names of its own, which it would set again.
    for axis in itertools.chain(*((ax.xaxis, ax.yaxis) for ax in fig.axes)):
        names = [label.get_text() for label in axis.get_ticklabels()]
        if any(shown(name) != name for name in names):
            axis.set_ticklabels([shown(name) for name in names])
    buffer = io.BytesIO()
    # matplotlib would write its own version into the file.
    fig.savefig(buffer, format="png", metadata={"Software": None})
    return RenderedFigure(name, buffer.getvalue(), round(fig.get_figwidth() * CSS), alt, caption)


def line(i: int) -> dict[str, Any]:
    """Returns the look of line i: colour, dashes and marker differ, for 36 lines."""
    # 9 colours and 4 dashes have no common divisor, so their pairs repeat after 36 lines.
    return {
        "color": COLOURS[i % len(COLOURS)],
        "linestyle": DASHES[i % len(DASHES)],
        "marker": MARKERS[i % len(MARKERS)],
        "markeredgecolor": "white",
        "markeredgewidth": 0.5,
    }


def plot_seeds(ax: Axes, x: Sequence[int], values: np.ndarray, colour: str) -> None:
    """Plots each seed, float[S,G], as a thin line with a dot in every generation."""
    look: dict[str, Any] = {"color": colour, "linewidth": 0.6, "alpha": 0.4}
    # Dots, because a mean with an interval hides how few seeds it rests on, and outliers.
    ax.plot(x, values.T, marker="o", markersize=2.6, markeredgewidth=0, **look)


def ramp(i: int, n: int) -> tuple[float, float, float, float]:
    """Returns colour i of n, dark first: their order survives in greyscale."""
    # Only up to 0.76: the light end of the map vanishes on white.
    return colormaps["cividis"](0.02 + 0.74 * i / max(n - 1, 1))


def generation_axis(ax: Axes, numbers: Sequence[int]) -> None:
    """Sets a horizontal axis of whole generations with a margin on both sides."""
    ax.set_xlim(min(numbers) - 0.3, max(numbers) + 0.3)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    ax.grid(axis="x", visible=False)
    ax.set_xlabel("generation")


def spread(items: Sequence[Item], limit: int) -> list[Item]:
    """Returns at most `limit` of the items, evenly spread, with the first and the last."""
    if len(items) <= limit:
        return list(items)
    return [items[round(i * (len(items) - 1) / (limit - 1))] for i in range(limit)]
