"""Heat maps by class and group: the shares of the groups, and how many of each subgroup are recognised."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes

from selfloop_jax.analysis.runs import Run
from selfloop_jax.report.style import RenderedFigure, figure, finish, spread

_STAGES = 6  # generations shown


_ROWS = 50  # rows of a list before a second one stands beside it


_ROW, _CELL, _NARROW, _LETTER = (
    0.26,
    0.5,
    0.2,
    0.085,
)  # inches: row, cell, cell without text, letter


_SHADES = colormaps["Blues"].with_extremes(bad="#f2f2f2")


@dataclass(frozen=True)
class _Map:
    """What a drawing of maps shows: one float64[C,G] of shares per stage (real, or a generation)."""

    name: str
    title: str
    caption: str
    stages: list[str]
    values: list[np.ndarray]


def share_map(run: Run, prefix: str) -> RenderedFigure | None:
    """Share of each group among the images of a class: real ones, then each generation; None without any."""
    shown = spread([g for g in run.generations if g.joint is not None], _STAGES)
    stages, joints = [f"gen. {g.number}" for g in shown], [g.joint for g in shown]
    if run.reference is not None:
        stages, joints = ["real", *stages], [run.reference, *joints]
    if not stages:
        return None
    parts = [
        "Share of a group in the images of a class, real ones and those of each generation; – if none."
    ]
    two = len(run.data["groups"]) == 2 and not run.nested
    if two:
        parts.append("The rest is {1}.".format(*run.data["groups"]))
    if any(g.value("samples", "unknown_group") for g in shown):
        parts.append("Images of unknown group are left out.")
    title = "Share of {}".format(run.data["groups"][0] if two else "groups")
    chart = _Map(
        f"{prefix}groups", title, " ".join(parts), stages, [_shares(joint) for joint in joints]
    )
    if two:
        cells = [(c, 0) for c in range(len(run.data["classes"]))]
        return _list(chart, cells, [str(name) for name in run.data["classes"]])
    return _nested_list(run, chart) if run.nested else _squares(run, chart)


def corrected_map(run: Run, prefix: str) -> RenderedFigure | None:
    """Shares of the groups freed of the annotator's errors, by generation; None without an annotator."""
    shown = spread(
        [g for g in run.generations if (g.record["samples"] or {}).get("corrected")], _STAGES
    )
    if not shown:
        return None
    tables = [g.record["samples"]["corrected"]["share"] for g in shown]
    chart = _Map(
        f"{prefix}corrected",
        "Share of groups, corrected for the annotator",
        "As above, with the annotator's confusion on real held-out images taken out (maximum likelihood on "
        "the simplex); – where it cannot tell the groups of a class apart. Intervals: samples.corrected in "
        "record.json.",
        [f"gen. {g.number}" for g in shown],
        [np.array(table, float) for table in tables],
    )
    return _nested_list(run, chart) if run.nested else _squares(run, chart)


def recall_map(run: Run, prefix: str) -> RenderedFigure | None:
    """Share of the images of each subgroup that are predicted as their class, by generation."""
    shown = spread([g for g in run.generations if g.recall is not None], _STAGES)
    if not shown:
        return None
    chart = _Map(
        f"{prefix}recall",
        "Accuracy in each subgroup",
        f"Share of the {run.split} images of a class and group that the classifier gets right; – if none.",
        [f"gen. {g.number}" for g in shown],
        [g.recall for g in shown],
    )
    return _nested_list(run, chart) if run.nested else _squares(run, chart)


def annotator_map(run: Run, prefix: str) -> RenderedFigure | None:
    """Share of the held-out real images of each subgroup whose group the annotator tells right."""
    first = run.generations[0]
    quality = first.record.get("annotator") if first.number == 0 else None
    if not quality:
        return None
    chart = _Map(
        f"{prefix}annotator",
        "Group annotator",
        f"Share of the real {quality['split']} images of a class and group whose group the annotator tells "
        "right; – if none. Groups of generated images are what it says of them.",
        ["real"],
        [_annotator_recall(run, quality["confusion"])],
    )
    return _nested_list(run, chart) if run.nested else _squares(run, chart)


def _annotator_recall(run: Run, confusion: Sequence[Sequence[Sequence[int]]]) -> np.ndarray:
    """float64[C,G] from one table per class of the groups it has; crossed, a class has all of them."""
    recall = np.full((len(run.data["classes"]), len(run.data["groups"])), np.nan)
    for c, table in enumerate(np.asarray(rows) for rows in confusion):
        if not table.size:
            continue
        groups = run.data["members"][c] if run.nested else range(len(table))
        total = np.maximum(table.sum(axis=1), 1)
        recall[c, groups] = np.where(table.sum(axis=1) > 0, table.diagonal() / total, np.nan)
    return recall


def _shares(joint: np.ndarray) -> np.ndarray:
    """int[C,G] counts -> float64[C,G] shares within a class, NaN where the class is empty."""
    total = joint.sum(axis=1, keepdims=True)
    return np.where(total > 0, joint / np.maximum(total, 1), np.nan)


def _nested_list(run: Run, chart: _Map) -> RenderedFigure:
    """A row per group, under the class it lies in."""
    cells = [(c, g) for c, groups in enumerate(run.data["members"]) for g in groups]
    return _list(
        chart, cells, [f"{run.data['classes'][c]} · {run.data['groups'][g]}" for c, g in cells]
    )


def _list(chart: _Map, cells: Sequence[tuple[int, int]], names: Sequence[str]) -> RenderedFigure:
    """One row per (class, group) cell, one column per stage."""
    classes, groups = np.array(cells).T
    values = np.stack([shares[classes, groups] for shares in chart.values], axis=1)
    blocks = np.array_split(np.arange(len(names)), math.ceil(len(names) / _ROWS))
    block_width = _LETTER * max(map(len, names)) + 0.3 + len(chart.stages) * _CELL
    made = figure(max(len(blocks) * block_width + 0.2, 3.2), len(blocks[0]) * _ROW + 0.9)
    made.suptitle(chart.title, x=0.01, ha="left", fontsize=9.5)
    for ax, block in zip(made.subplots(1, len(blocks), squeeze=False)[0], blocks, strict=True):
        _heat(ax, values[block], [names[i] for i in block], chart.stages)
    told = [
        f"{name} {_short(v[0])} to {_short(v[-1])}" for name, v in zip(names, values, strict=True)
    ]
    alt = f"{chart.title}, from {chart.stages[0]} to {chart.stages[-1]}: {'; '.join(told[:_ROWS])}."
    return finish(made, chart.name, alt, chart.caption)


def _squares(run: Run, chart: _Map) -> RenderedFigure:
    """One map of classes by groups per stage, as many in a row as fit."""
    classes, groups = ([str(name) for name in run.data[key]] for key in ("classes", "groups"))
    label, head = _LETTER * max(map(len, classes)) + 0.25, 0.7 + 0.06 * max(map(len, groups))
    width = len(groups) * (_CELL if len(groups) <= 10 else _NARROW) + 0.2
    columns = min(len(chart.stages), max(1, int((10.4 - label) / width)))
    rows = math.ceil(len(chart.stages) / columns)
    made = figure(max(columns * width + label, 3.2), rows * (len(classes) * _ROW + head) + 0.4)
    made.suptitle(chart.title, x=0.01, ha="left", fontsize=9.5)
    axes = made.subplots(rows, columns, squeeze=False).ravel()
    for i, (ax, stage, values) in enumerate(zip(axes, chart.stages, chart.values, strict=False)):
        _heat(ax, values, classes if i % columns == 0 else [], groups)
        ax.set_title(stage)
    for ax in axes[len(chart.stages) :]:
        ax.set_axis_off()
    alt = f"{chart.title}, one map of classes by groups each for {', '.join(chart.stages)}."
    return finish(made, chart.name, alt, chart.caption)


def _heat(ax: Axes, values: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Shares float64[R,K], darker the higher; each cell with its value up to ten columns."""
    ax.imshow(np.ma.masked_invalid(values), cmap=_SHADES, vmin=0, vmax=1, aspect="auto")
    ax.set_yticks(range(len(rows)), rows)
    ax.set_xticks(range(len(columns)), columns, rotation=0 if max(map(len, columns)) <= 7 else 40)
    ax.tick_params(axis="x", labeltop=True, labelbottom=False, labelsize=8)
    ax.spines[:].set_visible(False)
    ax.grid(visible=False)
    ax.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(len(values) + 1) - 0.5, minor=True)
    ax.tick_params(which="minor", length=0)
    ax.grid(which="minor", color="white", linewidth=1.5)
    for (row, column), value in np.ndenumerate(values if len(columns) <= 10 else np.empty((0, 0))):
        look = {"color": "white" if value > 0.55 else "#222222", "fontsize": 7.5}
        ax.text(column, row, _short(value), ha="center", va="center", **look)


def _short(value: float) -> str:
    """`.83`, `1` and `0` where they are exact, a dash for NaN."""
    if math.isnan(value):
        return "–"
    return f"{value:.0f}" if value in (0, 1) else f"{value:.2f}".lstrip("0")
