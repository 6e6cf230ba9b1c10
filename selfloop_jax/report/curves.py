"""Lines: metrics over generations, arm by arm with what chance does, and training losses over steps."""

import math
import re
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

from selfloop_jax.analysis.arms import CONTROLS, Arm, control_of
from selfloop_jax.analysis.runs import Run
from selfloop_jax.report.metrics import PANELS, Metric, Panel, text
from selfloop_jax.report.style import (
    RenderedFigure,
    figure,
    finish,
    generation_axis,
    line,
    ramp,
    spread,
)

_BINS = 120  # points a loss curve has at most


_DOTS = 12  # points that are marked one by one, else one alone would not show


_LINES = 8  # generations whose losses are drawn


def metric_curves(arms: Sequence[Arm], run: Run) -> list[RenderedFigure]:
    """One drawing per panel, a plot per metric and in it a line per arm; `run` tells split and groups."""
    made = []
    for panel in PANELS:
        shown = [metric for metric in panel.metrics if any(_defined(arm, metric) for arm in arms)]
        if shown:
            made.append(_panel(arms, panel, shown, run))
    return made


def _defined(arm: Arm, metric: Metric) -> bool:
    return not np.isnan(arm.series(metric.column)).all()


def _panel(
    arms: Sequence[Arm], panel: Panel, metrics: Sequence[Metric], run: Run
) -> RenderedFigure:
    labels = [arm.name for arm in arms]
    made, axes = small_multiples(len(metrics), labels if len(arms) > 1 else [])
    for ax, metric in zip(axes, metrics, strict=True):
        _chance(ax, arms, metric)
        for i, arm in enumerate(arms):
            arm_curve(ax, arm, metric.column, i)
        _floor(ax, arms, metric)
        dress(ax, metric.name, arms, metric)
    plots = "; ".join(f"{metric.name} {_course(arms[0], metric)}" for metric in metrics)
    lines = f"one line per arm ({'; '.join(labels)})" if len(arms) > 1 else "one run or arm"
    alt = f"Lines over generations, {lines}. Of {labels[0]}: {plots}."
    return finish(made, f"curves_{panel.name}", alt, f"{panel.title}. {_caption(arms, panel, run)}")


def _course(arm: Arm, metric: Metric) -> str:
    mean = _mean(arm.series(metric.column))
    return f"{text(mean[0])} to {text(mean[-1])}"


def small_multiples(plots: int, labels: Sequence[str]) -> tuple[Figure, Sequence[Axes]]:
    """A figure of so many plots, with a legend above where there are labels to tell lines apart."""
    columns = 2 if plots in (2, 4) else min(3, plots)
    rows = math.ceil(plots / columns)
    in_a_row = max(1, int(10 / (0.085 * max(map(len, labels), default=0) + 0.6)))
    legend = 0.22 * math.ceil(len(labels) / in_a_row)
    made = figure(10.4 if columns > 1 else 5.1, 2.6 * rows + legend + 0.2)
    made.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
    axes = made.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[plots:]:
        ax.set_axis_off()
    if labels:
        handles = [Line2D([], [], linewidth=1.7, **line(i)) for i in range(len(labels))]
        made.legend(handles, labels, loc="outside upper left", ncols=in_a_row)
    return made, axes[:plots]


def arm_curve(ax: Axes, arm: Arm, column: str, i: int) -> None:
    """The mean over seeds with its interval and every seed's curve; of one seed its own interval.

    A line is broken where the number is undefined or not measured.
    """
    values, x = arm.series(column), arm.generations
    look = line(i)
    low, high = arm.interval(column)
    if len(values) > 1:
        ax.plot(x, values.T, color=look["color"], linewidth=0.6, alpha=0.35)
    ax.fill_between(x, low, high, color=look["color"], alpha=0.14, linewidth=0)
    ax.plot(x, _mean(values), linewidth=1.7, **look)


def _mean(values: np.ndarray) -> np.ndarray:
    """float64[G] over the seeds that have a number."""
    known = ~np.isnan(values)
    return np.divide(
        np.nansum(values, axis=0),
        known.sum(axis=0),
        where=known.any(axis=0),
        out=np.full(values.shape[1], np.nan),
    )


def _chance(ax: Axes, arms: Sequence[Arm], metric: Metric) -> None:
    """A grey band where chance alone puts nine of ten values, over all arms, and its middle."""
    ends = [
        (arm, *(_mean(arm.series(f"{metric.column}.{q}")) for q in ("null05", "null95")))
        for arm in arms
    ]
    for arm, low, high in ends:
        ax.fill_between(
            arm.generations, low, high, color="#777777", alpha=0.2 / len(arms) + 0.05, linewidth=0
        )


def _floor(ax: Axes, arms: Sequence[Arm], metric: Metric) -> None:
    """Dotted: what real images reach against real ones."""
    for i, arm in enumerate(arms):
        found = _mean(arm.series(f"{metric.column}.floor"))
        ax.plot(
            arm.generations, found, color=line(i)["color"], linestyle=(0, (1, 1.5)), linewidth=1.1
        )


def dress(ax: Axes, title: str, arms: Sequence[Arm], metric: Metric) -> None:
    """Title, generations, and a vertical axis that spans 0.1 at least, from 0 where 0 is the best."""
    beside = ("", ".low", ".high", ".null95", ".floor") if len(arms) == 1 else ("", ".null95")
    found = np.concatenate(
        [arm.series(metric.column + end).ravel() for arm in arms for end in beside]
    )
    found = found[np.isfinite(found)]
    low, high = (found.min(), found.max()) if found.size else (0.0, 1.0)
    low = min(low, 0.0) if metric.better == "↓" else low
    lack = max(0.1 - (high - low), 0.0) / 2
    room = max(high - low, 0.1) * 0.06
    ax.set_ylim(low - room - lack * (low > 0), high + room + lack * (1 + (low <= 0)))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=6))
    generation_axis(ax, [g for arm in arms for g in arm.generations])
    ax.set_title(title)
    ax.set_xlabel("generation")


def _caption(arms: Sequence[Arm], panel: Panel, run: Run) -> str:
    """The panel's own words, what the bands are, and which lines are missing or broken."""
    parts = [panel.caption.format(split=run.split)]
    shown = [metric for metric in panel.metrics if any(_defined(arm, metric) for arm in arms)]
    parts += _bands(arms, shown)
    empty = [metric.name for metric in panel.metrics if metric not in shown]
    if empty:
        parts.append(f"Undefined or not measured: {', '.join(empty)}.")
    if empty and panel.name == "gaps" and run.nested:
        parts.append("Equalized odds and demographic parity are not defined for nested groups.")
    if any(np.isnan(arm.series(metric.column)).any() for metric in shown for arm in arms):
        parts.append("Where a line is broken, the metric is undefined or not measured.")
    return " ".join(parts)


def _bands(arms: Sequence[Arm], metrics: Sequence[Metric]) -> Iterator[str]:
    """What the shades around the lines are, where there are any."""

    def any_of(*ends: str) -> bool:
        found = (
            arm.series(f"{metric.column}{end}")
            for arm in arms
            for metric in metrics
            for end in ends
        )
        return any(not np.isnan(values).all() for values in found)

    if any(len(arm.runs) > 1 for arm in arms):
        yield "Thick: mean over seeds, from three on with its 95 % interval; thin: each seed."
    elif any_of(".low"):
        yield "Shaded: 95 % interval for other images of the same kind, not for other seeds."
    if any_of(".null95"):
        yield "Grey: where chance alone puts nine of ten values if groups made no difference."
    if any_of(".floor"):
        yield "Dotted: held-out real images in place of generated ones."


def control_curves(arms: Sequence[Arm], metrics: Sequence[Metric]) -> list[RenderedFigure]:
    """One drawing per metric, a plot per loop and in it the loop and its controls."""
    loops = [arm for arm in arms if arm.control == "none"]
    beside = {
        id(arm): [(c, other) for c in CONTROLS if (other := control_of(arm, arms, c))]
        for arm in loops
    }
    loops = [arm for arm in loops if beside[id(arm)]]
    kinds = [c for c in CONTROLS if any(c == kind for arm in loops for kind, _ in beside[id(arm)])]
    made = []
    for metric in metrics if loops else ():
        fig, axes = small_multiples(len(loops), ["loop", *kinds])
        for ax, arm in zip(axes, loops, strict=True):
            _chance(ax, [arm], metric)
            arm_curve(ax, arm, metric.column, 0)
            for kind, other in beside[id(arm)]:
                arm_curve(ax, other, metric.column, 1 + kinds.index(kind))
            dress(ax, arm.name, [arm, *(other for _, other in beside[id(arm)])], metric)
        told = "; ".join(f"{arm.name} {_course(arm, metric)}" for arm in loops)
        alt = f"{metric.name.capitalize()} over generations, a plot per loop with its controls. Loops: {told}."
        caption = (
            f"{metric.name.capitalize()} of the loops and of their controls: {CONTROLS_CAPTION}"
        )
        made.append(finish(fig, f"controls_{metric.key}", alt, caption))
    return made


CONTROLS_CAPTION = (
    "no_synthetic trains on the real images alone, for as many steps; fresh_real gets held-out real images, "
    "as many as the loop gets generated ones; oracle_resample gets real images with the labels and groups of "
    "those that the loop drew. Thick: mean over seeds, from three on with its 95 % interval; thin: each "
    "seed. Grey: where chance alone puts nine of ten values of the loop if groups made no difference."
)


def loss_curves(run: Run, prefix: str) -> list[RenderedFigure]:
    """One drawing per phase, one line per generation."""
    return [_losses(phase, lines, prefix) for phase, lines in run.losses.items()]


def _losses(phase: str, lines: dict[int, np.ndarray], prefix: str) -> RenderedFigure:
    made, name = figure(5.1, 3.1), phase.replace("_", " ")
    ax = made.subplots()
    shown = spread(list(lines.items()), _LINES)
    for i, (generation, points) in enumerate(shown):
        steps, losses = _binned(points)
        look = {"color": ramp(i, len(shown)), "linestyle": line(i)["linestyle"], "linewidth": 1.3}
        look["marker"] = "o" if len(points) <= _DOTS else ""
        ax.plot(steps, losses, label=str(generation), **look)
    _log_axis(ax, np.concatenate([points[:, 1] for _, points in shown]))
    ax.grid(axis="x", visible=False)
    ax.set_title(f"Training loss, {name}")
    ax.set_xlabel("step")
    made.legend(loc="outside right upper", title="generation", handlelength=2.2)
    ends = ", ".join(f"{text(points[-1, 1])} in generation {g}" for g, points in shown)
    alt = f"Loss of the {name} phase over steps; last logged: {ends}."
    stem = re.sub(r"\W", "_", f"{prefix}loss_{phase}")
    return finish(made, stem, alt, _loss_caption(name, lines, len(shown)))


def _log_axis(ax: Axes, losses: np.ndarray) -> None:
    """Logarithmic and in plain numbers, where all losses are positive."""
    if not (losses > 0).all():
        return
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    within_a_decade = losses.max() < 10 * losses.min()
    ax.yaxis.set_minor_formatter(
        StrMethodFormatter("{x:g}") if within_a_decade else NullFormatter()
    )


def _loss_caption(phase: str, lines: dict[int, np.ndarray], shown: int) -> str:
    parts = [f"Loss of the {phase} phase over its optimizer steps, one line per generation."]
    if any(len(points) > _BINS for points in lines.values()):
        parts.append(f"Neighbouring entries of the log are averaged, to {_BINS} points a line.")
    if shown < len(lines):
        parts.append(f"{shown} of {len(lines)} generations are shown.")
    return " ".join(parts)


def _binned(points: np.ndarray) -> np.ndarray:
    """float64[n,2] -> float64[2,m], steps and losses averaged over neighbours to at most _BINS points."""
    parts = np.array_split(points, min(len(points), _BINS))
    return np.array([part.mean(axis=0) for part in parts]).T
