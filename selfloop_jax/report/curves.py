"""Lines: metrics over generations, of one run or of several, and training losses over steps."""

import math
import re
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

from selfloop_jax.report.metrics import PANELS, Metric, Panel, defined, text, values
from selfloop_jax.report.read import Run
from selfloop_jax.report.style import Drawing, figure, finish, generation_axis, line, ramp, spread

_BINS = 120  # points a loss curve has at most
_DOTS = 12  # points that are marked one by one, else one alone would not show
_LINES = 8  # generations whose losses are drawn


def metric_curves(runs: Sequence[Run], labels: Sequence[str]) -> list[Drawing]:
    """One drawing per panel: all its metrics together for one run, a plot per metric for several."""
    made = []
    for panel in PANELS:
        shown = [metric for metric in panel.metrics if any(defined(run, metric) for run in runs)]
        if shown and len(runs) == 1:
            made.append(_one_run(runs[0], panel, shown))
        elif shown:
            made.append(_overlay(runs, labels, panel, shown))
    return made


def _one_run(run: Run, panel: Panel, metrics: Sequence[Metric]) -> Drawing:
    made = figure(5.1, 3.1 + 0.2 * math.ceil(len(metrics) / 2))
    ax = made.subplots()
    for i, metric in enumerate(metrics):
        _curve(ax, run, metric, metric.name, i, 2.4 - 0.2 * i)  # thinner later: equal lines both show
    _dress(ax, panel.title, [run], metrics)
    ax.set_xlabel("generation")
    made.legend(loc="outside lower left", ncols=2)
    courses = [f"{m.name} {text(values(run, m)[0])} to {text(values(run, m)[-1])}" for m in metrics]
    alt = f"Lines over generations: {'; '.join(courses)}."
    return finish(made, f"curves_{panel.name}", alt, _caption([run], panel))


def _overlay(runs: Sequence[Run], labels: Sequence[str], panel: Panel, metrics: Sequence[Metric]) -> Drawing:
    columns = 2 if len(metrics) in (2, 4) else 3
    rows = math.ceil(len(metrics) / columns)
    in_a_row = max(1, int(10 / (0.085 * max(map(len, labels)) + 0.6)))
    made = figure(10.4, 2.6 * rows + 0.22 * math.ceil(len(runs) / in_a_row) + 0.2)
    made.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
    axes = made.subplots(rows, columns, squeeze=False).ravel()
    for ax, metric in zip(axes, metrics, strict=False):
        for i, (run, label) in enumerate(zip(runs, labels, strict=True)):
            _curve(ax, run, metric, label, i, 1.7)
        _dress(ax, metric.name, runs, [metric])
        ax.set_xlabel("generation")
    for ax in axes[len(metrics) :]:
        ax.set_axis_off()
    made.legend(axes[0].lines, labels, loc="outside upper left", ncols=in_a_row)
    plots = ", ".join(metric.name for metric in metrics)
    alt = f"Lines over generations, one per run ({'; '.join(labels)}), one plot each for {plots}."
    return finish(made, f"curves_{panel.name}", alt, f"{panel.title}. {_caption(runs, panel)}")


def _curve(ax: Axes, run: Run, metric: Metric, label: str, i: int, width: float) -> None:
    """One line, broken where the metric is undefined or not measured."""
    numbers = [generation.number for generation in run.generations]
    ax.plot(numbers, values(run, metric), label=label, linewidth=width, **line(i))


def _dress(ax: Axes, title: str, runs: Sequence[Run], metrics: Sequence[Metric]) -> None:
    """Title, generations, and a vertical axis that spans 0.1 at least, from 0 where 0 is the best."""
    found = [v for run in runs for metric in metrics for v in values(run, metric) if not math.isnan(v)]
    low, high = min(found), max(found)
    if all(metric.better == "↓" for metric in metrics):
        low = min(low, 0.0)
    lack = max(0.1 - (high - low), 0.0) / 2
    room = max(high - low, 0.1) * 0.06
    ax.set_ylim(low - room - lack * (low > 0), high + room + lack * (1 + (low <= 0)))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=6))
    generation_axis(ax, [generation.number for run in runs for generation in run.generations])
    ax.set_title(title)


def _caption(runs: Sequence[Run], panel: Panel) -> str:
    """The panel's own words, and which lines are missing or broken."""
    parts = [panel.caption.format(split=runs[0].split)]
    empty = [metric.name for metric in panel.metrics if not any(defined(run, metric) for run in runs)]
    if empty:
        parts.append(f"Undefined or not measured: {', '.join(empty)}.")
    if empty and panel.name == "gaps" and runs[0].nested:
        parts.append("Equalized odds and demographic parity are not defined for nested groups.")
    shown = [values(run, metric) for run in runs for metric in panel.metrics if defined(run, metric)]
    if any(map(math.isnan, (value for found in shown for value in found))):
        parts.append("Where a line is broken, the metric is undefined or not measured.")
    return " ".join(parts)


def loss_curves(run: Run, prefix: str) -> list[Drawing]:
    """One drawing per phase, one line per generation."""
    return [_losses(phase, lines, prefix) for phase, lines in run.losses.items()]


def _losses(phase: str, lines: dict[int, np.ndarray], prefix: str) -> Drawing:
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
    ax.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}") if within_a_decade else NullFormatter())


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
