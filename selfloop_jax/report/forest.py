"""Forest plot: the contrast of every loop and metric with its intervals, margin and seeds."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from selfloop_jax.analysis.verdicts import Finding
from selfloop_jax.report.panels import number_text, title_of
from selfloop_jax.report.style import COLOURS, GREY, INK, RenderedFigure, figure, finish
from selfloop_jax.report.verdicts import asked, needed, with_interval

# Inches: width of the figure, left and right edge of the plot, heights of a row, of a line of a
# heading, of the margins above and below the rows.
WIDTH, LEFT, RIGHT = 10.4, 2.75, 6.3
ROW, HEADING, TOP, BOTTOM = 0.36, 0.21, 0.25, 0.48
LETTERS = 146  # of a heading, per line
NAME = 37  # letters of the name of a row, at most

# Left edge and title of the columns of text.
COLUMNS = (
    (RIGHT + 0.15, "contrast, interval"),
    (RIGHT + 1.85, "joint p"),
    (RIGHT + 2.4, "verdict"),
)


@dataclass(frozen=True)
class _Block:
    """The findings that ask one thing: rows below one heading."""

    heading: tuple[str, ...]  # lines
    rows: list[Finding]

    @property
    def height(self) -> float:
        """In inches, with a gap above."""
        return 0.14 + HEADING * len(self.heading) + ROW * len(self.rows)


def forest(found: Sequence[Finding], name: str) -> RenderedFigure:
    """Returns a row per finding: seeds, mean, interval of its own and of all at once, margin."""
    blocks = _blocks(found)
    height = TOP + sum(block.height for block in blocks) + BOTTOM
    fig = figure(WIDTH, height, layout=None)
    ax = fig.add_axes(
        (LEFT / WIDTH, BOTTOM / height, (RIGHT - LEFT) / WIDTH, 1 - (TOP + BOTTOM) / height)
    )
    # One unit of the vertical axis is an inch, counted from the top.
    ax.set_ylim(height - TOP - BOTTOM, 0)
    ax.set_xlim(*_range(found))
    ax.set_yticks([])
    ax.grid(axis="y", visible=False)
    ax.spines["left"].set_visible(False)
    ax.axvline(0, color=GREY, linewidth=0.9, zorder=1)
    for x, title in COLUMNS:
        _write(ax, x, -0.12, title, color="#555555", size=8)
    metrics = list(dict.fromkeys(title_of(finding.metric) for finding in found))
    y = 0.0
    for block in blocks:
        y += 0.14
        for line in block.heading:
            # On white, so that no line of the grid crosses the words.
            white = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
            _write(ax, 0.05, y + HEADING / 2, line, size=8.8, weight="bold", bbox=white)
            y += HEADING
        for finding in block.rows:
            _row(ax, y + ROW / 2, finding, len(metrics) > 1)
            y += ROW
    what = metrics[0] if len(metrics) == 1 else "bias"
    ax.set_xlabel(f"contrast in {what} (right: the loop is more biased than its control)")
    return finish(fig, name, _alt(found), _caption(found))


def _blocks(found: Sequence[Finding]) -> list[_Block]:
    """The findings by what they ask, in their order."""
    groups: dict[tuple[str, str, bool], list[Finding]] = {}
    for finding in found:
        key = (finding.estimand.name, finding.control, finding.planned)
        groups.setdefault(key, []).append(finding)
    blocks = []
    for (_, control, planned), rows in groups.items():
        heading = f"{asked(rows[0])} (control: {control}{'' if planned else '; not planned'})"
        blocks.append(_Block(tuple(textwrap.wrap(heading, LETTERS)), rows))
    return blocks


def _range(found: Sequence[Finding]) -> tuple[float, float]:
    """Ends of the horizontal axis: all seeds, means and margins, and intervals of three seeds on.

    The interval of two seeds, and that of all contrasts at once of few seeds, would squeeze the
    dots into one point: such ends are cut, and arrows say so.
    """
    ends = [0.0]
    for one in found:
        ends += [*one.contrasts, one.margin, -one.margin]
        if one.seeds > 2:
            ends += [one.contrast.low, one.contrast.high]
    values = np.array(ends)
    values = values[np.isfinite(values)]
    low, high = values.min(), values.max()
    pad = max(0.1 * (high - low), 0.01)
    return float(low - pad), float(high + pad)


def _row(ax: Axes, y: float, one: Finding, several: bool) -> None:
    """One finding, around y; `several`: with the name of its metric."""
    colour = COLOURS[0] if one.planned else "#555555"
    if one.margin > 0:
        size = (2 * one.margin, ROW)
        ax.add_patch(Rectangle((-one.margin, y - ROW / 2), *size, color="#ececec", lw=0, zorder=0))
    middle = y - 0.04
    _interval(ax, middle, one.simultaneous, colour, 0.8)
    _interval(ax, middle, (one.contrast.low, one.contrast.high), colour, 2.6)
    diamond: dict[str, Any] = {"color": colour, "markersize": 4.8, "markeredgecolor": "white"}
    ax.plot(one.contrast.mean, middle, "D", markeredgewidth=0.6, **diamond)
    # Below the interval, so that neither hides the other.
    dots = one.contrasts[np.isfinite(one.contrasts)]
    look: dict[str, Any] = {"color": colour, "alpha": 0.55, "markersize": 3.6}
    ax.plot(dots, np.full(len(dots), y + 0.11), "o", markeredgewidth=0, **look)
    _write(ax, 0.05, y - 0.07 * several, _shortened(one.arm.name), size=8.8)
    if several:
        _write(ax, 0.05, y + 0.09, _shortened(title_of(one.metric)), size=7.5, color="#555555")
    (x, _), (x_p, _), (x_verdict, _) = COLUMNS
    _write(ax, x, y, with_interval(one.contrast.mean, one.contrast.low, one.contrast.high))
    _write(ax, x_p, y, number_text(one.contrast.p if one.seeds else None))
    missing = needed(one)
    _write(ax, x_verdict, y - 0.07 * bool(missing), one.verdict, color=colour)
    _write(ax, x_verdict, y + 0.09, missing, size=7.5, color="#555555")


def _shortened(text: str) -> str:
    return text if len(text) <= NAME else f"{text[: NAME - 1]}…"


def _interval(ax: Axes, y: float, ends: tuple[float, float], colour: str, width: float) -> None:
    """A line between two ends; an end outside of the axis becomes an arrow at its edge."""
    low, high = ends
    if np.isnan(low):
        return
    left, right = ax.get_xlim()
    ax.plot([max(low, left), min(high, right)], [y, y], color=colour, lw=width, zorder=2)
    look: dict[str, Any] = {"color": colour, "markersize": 4, "clip_on": False}
    if low < left:
        ax.plot(left, y, "<", **look)
    if high > right:
        ax.plot(right, y, ">", **look)


def _write(ax: Axes, x: float, y: float, text: str, **look: Any) -> None:
    """Text that begins x inches from the left edge of the figure, y inches below the rows' top."""
    every: dict[str, Any] = {"ha": "left", "va": "center", "size": 8.5, "color": INK} | look
    ax.text((x - LEFT) / (RIGHT - LEFT), y, text, transform=ax.get_yaxis_transform(), **every)


def _alt(found: Sequence[Finding]) -> str:
    rows = []
    for one in found:
        contrast = with_interval(one.contrast.mean, one.contrast.low, one.contrast.high)
        rows.append(
            f"{one.arm.name}, {title_of(one.metric)}, {one.estimand.name} against {one.control}: "
            f"{contrast}, joint p {number_text(one.contrast.p)}, {one.verdict}"
        )
    return f"Forest plot of contrasts. {'; '.join(rows)}."


def _caption(found: Sequence[Finding]) -> str:
    parts = [
        "Dots: each seed. Diamond: their mean; thick line: its t interval; thin line: the interval "
        "that holds for all contrasts of one family at once (Sidak)."
    ]
    if any(one.margin > 0 for one in found):
        parts.append("Grey band: the margin; a change has to lie outside of it.")
    parts.append(
        "Joint p: of a contrast of 0, by flipping the signs of all arms of a seed together. Right "
        "of 0 the loop became more biased than its control."
    )
    if any(needed(one) for one in found):
        parts.append(
            "Seeds needed, roughly: to tell the contrast from the margin (from 0 without one) with "
            "80 % power, were the true contrast the observed one."
        )
    return " ".join(parts)
