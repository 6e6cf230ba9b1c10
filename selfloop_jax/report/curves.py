"""Line plots: metrics over generations with interval and null, and training losses."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

from selfloop_jax.analysis.arms import Arm, control_of
from selfloop_jax.analysis.runs import Run
from selfloop_jax.data.controls import CONTROLS
from selfloop_jax.measure.metrics import METRICS
from selfloop_jax.report.panels import (
    NULLS,
    Panel,
    features_of,
    number_text,
    panels,
    title_of,
)
from selfloop_jax.report.style import (
    GREY,
    RenderedFigure,
    figure,
    finish,
    generation_axis,
    line,
    plot_seeds,
    ramp,
    spread,
)

BINS = 120  # points of a loss curve, at most
DOTS = 12  # up to so many points are marked: a single one would not show otherwise
LINES = 8  # generations in a loss plot, at most

SEEDS = (
    "Thick: mean over seeds, with its 95 % interval from three seeds on; dots and thin lines: each "
    "seed."
)
ONE_RUN = "Shaded: {level} interval over images, not over seeds."
BASELINE = "Dotted: baseline, held-out real images in place of generated ones."
BROKEN = "Lines are interrupted where the metric is undefined or not measured."
NOT_NESTED = "Equalized odds and demographic parity are not defined for nested groups."


# What a reader in a hurry wants to see, as far as it is measured.
IN_SHORT = Panel(
    "headline",
    "In short",
    "Accuracy, and the gap between groups, of each generation's classifier on the {split} images "
    "(0 is parity); and of the generated images the share of the bias-aligned group, or of the "
    "real subgroups that occur.",
    ("accuracy", "equal_opportunity_difference_mean", "bias_aligned_share", "subgroup_coverage"),
)


def headline(arms: Sequence[Arm], run: Run) -> RenderedFigure | None:
    """Returns the first three metrics of IN_SHORT that are measured; None without any.

    `run` provides what it does in `metric_curves`.
    """
    shown = [key for key in IN_SHORT.keys if _is_measured(arms, key)][:3]
    return _panel(arms, replace(IN_SHORT, keys=tuple(shown)), shown, run) if shown else None


def metric_curves(arms: Sequence[Arm], run: Run) -> list[RenderedFigure]:
    """Returns one figure per panel: a plot per metric, with a line per arm.

    `run` provides the split, the level of intervals and whether groups are nested.
    """
    rendered = []
    for panel in panels(_keys(arms)):
        # A metric that is undefined in every arm has no plot.
        shown = [key for key in panel.keys if _is_measured(arms, key)]
        if shown:
            rendered.append(_panel(arms, panel, shown, run))
    return rendered


def _keys(arms: Sequence[Arm]) -> list[str]:
    """Keys of all metrics of the arms."""
    # A dict keeps the order of the records.
    names: dict[str, None] = {}
    for arm in arms:
        for rows in arm.runs.values():
            for row in rows.values():
                names |= dict.fromkeys(name for name in row if name.startswith("metrics."))
    keys = [name.removeprefix("metrics.") for name in names]
    return [key for key in keys if "." not in key]  # with a dot it is a part of a number


def _is_measured(arms: Sequence[Arm], key: str, *parts: str) -> bool:
    """Whether any arm has a number of that metric, or one of its parts."""
    for arm in arms:
        for part in parts or ("value",):
            if not np.isnan(arm.series(key, part)).all():
                return True
    return False


def _panel(arms: Sequence[Arm], panel: Panel, keys: Sequence[str], run: Run) -> RenderedFigure:
    labels = [arm.name for arm in arms]
    features = features_of(arms)
    # A single arm needs no legend.
    fig, axes = small_multiples(len(keys), labels if len(arms) > 1 else [])
    for ax, key in zip(axes, keys, strict=True):
        _shade_null(ax, arms, key)  # first, so that it is below the lines
        for i, arm in enumerate(arms):
            plot_arm(ax, arm, key, i)
        _plot_baseline(ax, arms, key)
        label_axes(ax, title_of(key, features), arms, key)
    plots = "; ".join(f"{title_of(key, features)} {_ends(arms[0], key)}" for key in keys)
    lines = f"one line per arm ({'; '.join(labels)})" if len(arms) > 1 else "one run or arm"
    alt = f"Lines over generations, {lines}. Of {labels[0]}: {plots}."
    caption = f"{panel.title}. {_caption(arms, panel, keys, run)}"
    return finish(fig, f"curves_{panel.name}", alt, caption)


def _ends(arm: Arm, key: str) -> str:
    mean = arm.mean(key)
    return f"{number_text(mean[0])} to {number_text(mean[-1])}"


def small_multiples(plots: int, labels: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """Returns a figure with that many plots, and a legend above them where there are labels."""
    # Two or four plots fill two columns; in three they would leave a gap.
    columns = 2 if plots in (2, 4) else min(3, plots)
    rows = math.ceil(plots / columns)
    longest = max(map(len, labels), default=0)
    per_row = max(1, int(10 / (0.085 * longest + 0.6)))  # inches: a letter, a line sample
    legend = 0.22 * math.ceil(len(labels) / per_row)
    fig = figure(10.4 if columns > 1 else 5.1, 2.6 * rows + legend + 0.2)
    # The default padding lets the titles of a row touch the axis labels above.
    engine = fig.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(w_pad=0.12, h_pad=0.08)
    axes = list(fig.subplots(rows, columns, squeeze=False).ravel())
    for ax in axes[plots:]:
        ax.set_axis_off()
    if labels:
        # Samples of their own: an arm may be undefined in every plot.
        handles = [Line2D([], [], linewidth=1.7, **line(i)) for i in range(len(labels))]
        fig.legend(handles, labels, loc="outside upper left", ncols=per_row)
    return fig, axes[:plots]


def plot_arm(ax: Axes, arm: Arm, key: str, i: int) -> None:
    """Plots the mean over seeds with its interval and each seed; of one seed its own interval.

    A line is interrupted where the number is undefined or not measured.
    """
    values = arm.series(key)
    look = line(i)
    low, high = arm.interval(key)
    if len(values) > 1:
        plot_seeds(ax, arm.generations, values, look["color"])
    ax.fill_between(arm.generations, low, high, color=look["color"], alpha=0.14, linewidth=0)
    ax.plot(arm.generations, arm.mean(key), linewidth=1.7, **look)


def _shade_null(ax: Axes, arms: Sequence[Arm], key: str) -> None:
    """A grey band from the 5 to the 95 % quantile of the null of each arm, mean over seeds."""
    opacity = 0.2 / len(arms) + 0.05  # overlapping bands add up
    for arm in arms:
        low = arm.mean(key, "null05")
        high = arm.mean(key, "null95")
        ax.fill_between(arm.generations, low, high, color=GREY, alpha=opacity, linewidth=0)


def _plot_baseline(ax: Axes, arms: Sequence[Arm], key: str) -> None:
    """Dotted: the metric of real images against real ones."""
    for i, arm in enumerate(arms):
        look = {"color": line(i)["color"], "linestyle": (0, (1, 1.5)), "linewidth": 1.1}
        ax.plot(arm.generations, arm.mean(key, "baseline"), **look)


def label_axes(ax: Axes, title: str, arms: Sequence[Arm], key: str) -> None:
    """Sets title and axes; the vertical one spans 0.1 at least, and shows 0 where 0 is best."""
    # Zoomed into a tiny range, noise would look like a trend: hence the span of 0.1.
    # Intervals of several arms would hide their lines, so only that of a single arm counts.
    parts = ["value", "null05", "null95"]
    if len(arms) == 1:
        parts += ["low", "high", "baseline"]
    values = np.concatenate([_all_parts(arm, key, parts) for arm in arms])
    values = values[np.isfinite(values)]
    low, high = (values.min(), values.max()) if values.size else (0.0, 1.0)
    # Where lower is better 0 is parity, which must be in view.
    if key in METRICS and METRICS[key].better == "lower":
        low = min(low, 0.0)
    margin = max(high - low, 0.1) * 0.06
    lack = max(0.1 - (high - low), 0.0) / 2
    # What the span lacks is added on both sides, or above only where the axis begins at 0.
    bottom = low - lack if low > 0 else low
    top = high + lack if low > 0 else high + 2 * lack
    ax.set_ylim(bottom - margin, top + margin)
    ax.yaxis.set_major_locator(MaxNLocator(nbins=6))
    numbers: list[int] = []
    for arm in arms:
        numbers += arm.generations
    generation_axis(ax, numbers)
    ax.set_title(title)


def _all_parts(arm: Arm, key: str, parts: Sequence[str]) -> np.ndarray:
    return np.concatenate([arm.series(key, part).ravel() for part in parts])


def _caption(arms: Sequence[Arm], panel: Panel, keys: Sequence[str], run: Run) -> str:
    """The panel's caption, what its bands are, and which lines are missing or interrupted."""
    features = features_of(arms)
    caption = panel.caption.format(split=run.split, features=features)
    parts = [caption, *_bands(arms, keys, run)]
    missing = [title_of(key, features) for key in panel.keys if key not in keys]
    if missing:
        parts.append(f"Undefined or not measured: {'; '.join(missing)}.")
    if missing and panel.name == "gaps" and run.nested:
        parts.append(NOT_NESTED)
    if any(_has_gaps(arms, key) for key in keys):
        parts.append(BROKEN)
    return " ".join(parts)


def _has_gaps(arms: Sequence[Arm], key: str) -> bool:
    return any(np.isnan(arm.series(key)).any() for arm in arms)


def _bands(arms: Sequence[Arm], keys: Sequence[str], run: Run) -> Iterator[str]:
    """Sentences on the shades and lines that the plots of these metrics have."""
    if any(len(arm.runs) > 1 for arm in arms):
        yield SEEDS
    elif any(_is_measured(arms, key, "low") for key in keys):
        yield ONE_RUN.format(level=run.level)
    with_null = [key for key in keys if _is_measured(arms, key, "null95")]
    # Each section once, in the order of the plots.
    for section in dict.fromkeys(METRICS[key].section for key in with_null if key in METRICS):
        yield f"Grey: 5 to 95 % quantiles of the null ({NULLS.get(section, 'see numbers.csv')})."
    if any(_is_measured(arms, key, "baseline") for key in keys):
        yield BASELINE


def control_curves(arms: Sequence[Arm], keys: Sequence[str], run: Run) -> list[RenderedFigure]:
    """Returns one figure per metric: a plot per loop, with the loop and its controls.

    `run` provides the level of intervals.
    """
    loops = []
    for arm in arms:
        if arm.is_loop:
            controls = _controls_of(arm, arms)
            if controls:
                loops.append((arm, controls))
    return [_control_figure(loops, key, run) for key in keys if loops]


def _controls_of(arm: Arm, arms: Sequence[Arm]) -> dict[str, Arm]:
    """The controls of a loop, by kind."""
    found = {kind: control_of(arm, arms, kind) for kind in CONTROLS}
    return {kind: control for kind, control in found.items() if control is not None}


def _control_figure(
    loops: Sequence[tuple[Arm, dict[str, Arm]]], key: str, run: Run
) -> RenderedFigure:
    present: set[str] = set()
    for _, controls in loops:
        present.update(controls)
    kinds = [kind for kind in CONTROLS if kind in present]
    fig, axes = small_multiples(len(loops), ["loop", *kinds])
    for ax, (arm, controls) in zip(axes, loops, strict=True):
        # The null of the loop alone: those of its controls would cover it.
        _shade_null(ax, [arm], key)
        plot_arm(ax, arm, key, 0)
        for kind, control in controls.items():
            plot_arm(ax, control, key, 1 + kinds.index(kind))  # one colour per kind in all plots
        label_axes(ax, arm.name, [arm, *controls.values()], key)
    arms = [arm for arm, _ in loops]
    title = title_of(key)
    ends = "; ".join(f"{arm.name} {_ends(arm, key)}" for arm in arms)
    alt = f"{title} over generations, a plot per loop with its controls. Loops: {ends}."
    caption = [f"{title[:1].upper()}{title[1:]} of each loop and its controls."]
    caption += [f"{kind} {CONTROLS[kind].caption}." for kind in kinds]
    one_run = ONE_RUN.format(level=run.level)
    caption.append(SEEDS if any(len(arm.runs) > 1 for arm in arms) else one_run)
    if _is_measured(arms, key, "null95"):
        caption.append("Grey: 5 to 95 % quantiles of the null of the loop.")
    return finish(fig, f"controls_{key}", alt, " ".join(caption))


def loss_curves(run: Run, prefix: str) -> list[RenderedFigure]:
    """Returns one figure per phase, with a line per generation."""
    return [_losses(phase, lines, prefix) for phase, lines in run.losses.items()]


def _losses(phase: str, lines: dict[int, np.ndarray], prefix: str) -> RenderedFigure:
    fig = figure(5.1, 3.1)
    ax = fig.subplots()
    name = phase.replace("_", " ")
    shown = spread(list(lines.items()), LINES)
    for i, (generation, points) in enumerate(shown):
        # All steps of a long phase would hide its course in noise.
        steps, losses = _binned(points)
        look: dict[str, Any] = {"color": ramp(i, len(shown)), "linestyle": line(i)["linestyle"]}
        marker = "o" if len(points) <= DOTS else ""
        ax.plot(steps, losses, label=str(generation), linewidth=1.3, marker=marker, **look)
    _scale_losses(ax, np.concatenate([points[:, 1] for _, points in shown]))
    ax.grid(axis="x", visible=False)
    ax.set_title(f"Training loss, {name}")
    ax.set_xlabel("step")
    fig.legend(loc="outside right upper", title="generation", handlelength=2.2)
    ends = ", ".join(f"{number_text(points[-1, 1])} in generation {g}" for g, points in shown)
    alt = f"Loss of the {name} phase over steps; last logged: {ends}."
    # The stem names a file, and a study may call its phases as it likes.
    stem = re.sub(r"\W", "_", f"{prefix}loss_{phase}")
    return finish(fig, stem, alt, _loss_caption(name, lines, len(shown)))


def _scale_losses(ax: Axes, losses: np.ndarray) -> None:
    """A logarithmic axis in plain numbers, where all losses are positive."""
    if not (losses > 0).all():
        return
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    # Within one decade there may be no major tick at all.
    within_a_decade = losses.max() < 10 * losses.min()
    minor = StrMethodFormatter("{x:g}") if within_a_decade else NullFormatter()
    ax.yaxis.set_minor_formatter(minor)


def _loss_caption(phase: str, lines: dict[int, np.ndarray], shown: int) -> str:
    parts = [f"Loss of the {phase} phase over its optimizer steps, one line per generation."]
    if any(len(points) > BINS for points in lines.values()):
        parts.append(f"Neighbouring entries of the log are averaged, to {BINS} points per line.")
    if shown < len(lines):
        parts.append(f"{shown} of {len(lines)} generations are shown.")
    return " ".join(parts)


def _binned(points: np.ndarray) -> np.ndarray:
    """float64[n,2] -> float64[2,m]: steps and losses, averaged over neighbours to BINS points."""
    parts = np.array_split(points, min(len(points), BINS))
    return np.array([part.mean(axis=0) for part in parts]).T
