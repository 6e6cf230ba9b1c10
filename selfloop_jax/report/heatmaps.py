"""Heat maps by class and group: shares of the groups, accuracy, and the group classifier."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes

from selfloop_jax.analysis.runs import Generation, Run
from selfloop_jax.report.style import INK, RenderedFigure, figure, finish, shown, spread

STAGES = 6  # generations shown, at most
ROWS = 50  # rows of a list before it continues in a second column
VALUES = 10  # columns up to which each square has its value as text

# Inches: height of a row, width of a square with text and without, width of a letter.
ROW_HEIGHT = 0.26
SQUARE = 0.5
NARROW_SQUARE = 0.2
LETTER = 0.085

# Light grey where a share is undefined: no shade of the map is grey.
SHADES = colormaps["Blues"].with_extremes(bad="#f2f2f2")


@dataclass(frozen=True)
class _Map:
    """A figure of heat maps: one float64[C,G] of shares per stage (real, or a generation)."""

    name: str
    title: str
    caption: str
    stages: list[str]
    values: list[np.ndarray]


def share_map(run: Run, prefix: str) -> RenderedFigure | None:
    """Returns the share of each group within a class: of real images, then of each generation."""
    shown = spread([g for g in run.generations if g.generated_counts is not None], STAGES)
    stages = []
    tables = []
    if run.real_counts is not None:
        stages.append("real")
        tables.append(_shares(run.real_counts))
    for generation in shown:
        if generation.generated_counts is not None:
            stages.append(f"gen. {generation.number}")
            tables.append(_shares(generation.generated_counts))
    if not stages:
        return None
    caption = [
        "Share of a group among the images of a class, of real images and of those that each "
        "generation generated; – without images."
    ]
    # Of two crossed groups the share of one says that of the other.
    two = len(run.groups) == 2 and not run.nested
    if two:
        caption.append(f"The rest is {run.groups[1]}.")
    if any(generation.value("generated_unknown_group") for generation in shown):
        caption.append("Images of unknown group are left out.")
    title = f"Share of {run.groups[0] if two else 'groups'}"
    chart = _Map(f"{prefix}groups", title, " ".join(caption), stages, tables)
    if two:
        subgroups = [(label, 0) for label in range(len(run.classes))]
        return _list(chart, subgroups, run.classes)
    return _by_class_and_group(run, chart)


def corrected_map(run: Run, prefix: str) -> RenderedFigure | None:
    """Returns the shares corrected for the group classifier's errors; None without it."""
    measured = [g for g in run.generations if g.record["tables"].get("corrected_shares")]
    if not measured:
        return None
    shown = spread(measured, STAGES)
    shares = [g.record["tables"]["corrected_shares"]["share"] for g in shown]
    chart = _Map(
        f"{prefix}corrected",
        "Share of groups, corrected for the group classifier",
        "Share of a group among the generated images of a class, corrected for the confusion of "
        "the group classifier (annotator) on real held-out images: maximum likelihood on the "
        "simplex; – where the classifier cannot separate the groups of a class. Intervals: "
        "tables.corrected_shares in record.json.",
        _names(shown),
        [np.array(share, float) for share in shares],
    )
    return _by_class_and_group(run, chart)


def recall_map(run: Run, prefix: str) -> RenderedFigure | None:
    """Returns the accuracy of the classifier in each subgroup, by generation."""
    shown = spread([g for g in run.generations if g.recall is not None], STAGES)
    tables = [generation.recall for generation in shown if generation.recall is not None]
    if not tables:
        return None
    chart = _Map(
        f"{prefix}recall",
        "Accuracy in each subgroup",
        f"Share of the {run.split} images of a class and group that the classifier gets right; "
        "– without images. Intervals: tables.recall in record.json.",
        _names(shown),
        tables,
    )
    return _by_class_and_group(run, chart)


def annotator_map(run: Run, prefix: str) -> RenderedFigure | None:
    """Returns the accuracy of the group classifier on real images; None without it."""
    first = run.generations[0]
    quality = first.record.get("annotator") if first.number == 0 else None
    if not quality:
        return None
    chart = _Map(
        f"{prefix}annotator",
        "Accuracy of the group classifier",
        f"Share of the real {quality['split']} images of a class and group whose group the group "
        "classifier (annotator) predicts right; – without images. It predicts the groups of the "
        "generated images.",
        ["real"],
        [_annotator_recall(run, quality["confusion"])],
    )
    return _by_class_and_group(run, chart)


def _names(generations: Sequence[Generation]) -> list[str]:
    return [f"gen. {generation.number}" for generation in generations]


def _annotator_recall(run: Run, confusion: Sequence[Sequence[Sequence[int]]]) -> np.ndarray:
    """float64[C,G] from one confusion matrix per class, over the groups that the class has."""
    recall = np.full((len(run.classes), len(run.groups)), np.nan)
    for label, matrix in enumerate(confusion):
        counts = np.asarray(matrix)
        if not counts.size:
            continue
        # A matrix of nested groups has the groups of its class alone.
        groups = run.data["groups_of_class"][label] if run.nested else range(len(counts))
        total = counts.sum(axis=1)
        # A row without images is NaN below; here it must only not divide by 0.
        right = counts.diagonal() / np.maximum(total, 1)
        recall[label, groups] = np.where(total > 0, right, np.nan)
    return recall


def _shares(counts: np.ndarray) -> np.ndarray:
    """int[C,G] counts -> float64[C,G] shares within a class, NaN where the class is empty."""
    total = counts.sum(axis=1, keepdims=True)
    return np.where(total > 0, counts / np.maximum(total, 1), np.nan)


def _by_class_and_group(run: Run, chart: _Map) -> RenderedFigure:
    """Nested groups as a list, since each lies in one class; crossed ones as squares."""
    if not run.nested:
        return _squares(run, chart)
    subgroups = []
    names = []
    for label, groups in enumerate(run.data["groups_of_class"]):
        for group in groups:
            subgroups.append((label, group))
            names.append(f"{run.classes[label]} · {run.groups[group]}")
    return _list(chart, subgroups, names)


def _list(
    chart: _Map, subgroups: Sequence[tuple[int, int]], names: Sequence[str]
) -> RenderedFigure:
    """One row per subgroup (class, group), one column per stage."""
    classes, groups = np.array(subgroups).T
    values = np.stack([shares[classes, groups] for shares in chart.values], axis=1)
    # A long list, such as the groups of a hundred classes, continues in further columns.
    blocks = np.array_split(np.arange(len(names)), math.ceil(len(names) / ROWS))
    block_width = LETTER * _longest(names) + 0.3 + len(chart.stages) * SQUARE
    width = max(len(blocks) * block_width + 0.2, 3.2)
    fig = figure(width, len(blocks[0]) * ROW_HEIGHT + 0.9)
    fig.suptitle(chart.title, x=0.01, ha="left", fontsize=9.5)
    for ax, block in zip(fig.subplots(1, len(blocks), squeeze=False)[0], blocks, strict=True):
        _heat(ax, values[block], [names[i] for i in block.tolist()], chart.stages)
    ends = []
    # The text for screen readers names the first rows only, to stay short.
    for name, row in zip(names[:ROWS], values, strict=False):
        ends.append(f"{name} {_short(row[0])} to {_short(row[-1])}")
    alt = f"{chart.title}, from {chart.stages[0]} to {chart.stages[-1]}: {'; '.join(ends)}."
    return finish(fig, chart.name, alt, chart.caption)


def _squares(run: Run, chart: _Map) -> RenderedFigure:
    """One map of classes by groups per stage, as many in a row as fit."""
    names = LETTER * _longest(run.classes) + 0.25
    head = 0.7 + 0.06 * _longest(run.groups)
    # Many groups leave no room for text in their squares.
    square = SQUARE if len(run.groups) <= VALUES else NARROW_SQUARE
    width = len(run.groups) * square + 0.2
    # 10.4 inches is the width of the page.
    columns = min(len(chart.stages), max(1, int((10.4 - names) / width)))
    rows = math.ceil(len(chart.stages) / columns)
    height = rows * (len(run.classes) * ROW_HEIGHT + head) + 0.4
    fig = figure(max(columns * width + names, 3.2), height)
    fig.suptitle(chart.title, x=0.01, ha="left", fontsize=9.5)
    axes = fig.subplots(rows, columns, squeeze=False).ravel()
    for i, (stage, values) in enumerate(zip(chart.stages, chart.values, strict=True)):
        labels = run.classes if i % columns == 0 else []  # once per row of maps
        _heat(axes[i], values, labels, run.groups)
        axes[i].set_title(stage)
    for ax in axes[len(chart.stages) :]:
        ax.set_axis_off()
    alt = f"{chart.title}, one map of classes by groups each for {', '.join(chart.stages)}."
    return finish(fig, chart.name, alt, chart.caption)


def _longest(names: Sequence[str]) -> int:
    """Letters of the longest name, as a figure shows it."""
    return max(len(shown(name)) for name in names)


def _heat(ax: Axes, values: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Shares float64[R,K], darker where higher, with their values up to ten columns."""
    # One scale in all maps, so that shades can be compared between generations.
    ax.imshow(np.ma.masked_invalid(values), cmap=SHADES, vmin=0, vmax=1, aspect="auto")
    ax.set_yticks(range(len(rows)), rows)
    ax.set_xticks(range(len(columns)), columns, rotation=0 if _longest(columns) <= 7 else 40)
    ax.tick_params(axis="x", labeltop=True, labelbottom=False, labelsize=8)
    ax.spines[:].set_visible(False)
    # White lines between the squares: minor ticks lie on their borders.
    ax.grid(visible=False)
    ax.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(len(values) + 1) - 0.5, minor=True)
    ax.tick_params(which="minor", length=0)
    ax.grid(which="minor", color="white", linewidth=1.5)
    if len(columns) > VALUES:
        return
    for (row, column), value in np.ndenumerate(values):
        # Ink is hard to read on the dark half of the scale.
        colour = "white" if value > 0.55 else INK
        text = _short(value)
        ax.text(column, row, text, ha="center", va="center", color=colour, fontsize=7.5)


def _short(value: float) -> str:
    """Two decimals; `1` and `0` only where they are exact, a dash for NaN."""
    if math.isnan(value):
        return "–"
    return f"{value:.0f}" if value in (0, 1) else f"{value:.2f}"
