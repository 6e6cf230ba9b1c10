"""Figures and table of forecasts against observations."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from scipy import special

from selfloop_jax.analysis.arms import Arm
from selfloop_jax.analysis.forecast import GAP, SHARE, Curves, Forecast, response_formulas
from selfloop_jax.measure import dynamics
from selfloop_jax.report.panels import number_text, title_of
from selfloop_jax.report.style import (
    COLOURS,
    GREY,
    INK,
    RenderedFigure,
    figure,
    finish,
    generation_axis,
    line,
    plot_seeds,
)
from selfloop_jax.report.tables import Table

BROKEN = (0, (4, 3))
RIVALS = {"real": "real share", "copy": "copy machine", "naive": "generation 0"}
RIVAL_LINES: dict[str, Any] = {
    "real": {"color": INK, "linestyle": BROKEN},
    "copy": {"color": COLOURS[2], "linestyle": (0, (1.2, 1.2))},
    "naive": {"color": COLOURS[3], "linestyle": (0, (6, 1.5, 1.2, 1.5))},
}
RESPONSES = (("scratch", "from scratch"), ("fine_tuned", "fine-tuned"))


def forecast_table(made: Sequence[Forecast]) -> Table:
    """Returns the errors of the forecast and of its simple rivals, per loop."""
    rows = []
    for one in made:
        for quantity, score in one.scores.items():
            cells = [one.arm.name, quantity]
            cells.append(f"{score['error']:.3f}")
            cells += [f"{score[f'error_{name}']:.3f}" for name in RIVALS]
            cells += [f"{100 * score['coverage']:.0f} %", str(score["undefined"])]
            rows.append(tuple(cells))
    caption = (
        "Mean absolute error over seeds and generations from 1 on, of the forecast and of rivals "
        "that need no side study: the share of the real images; what the pool rule gives with a "
        "copy machine, which generates the shares of its pool; what generation 0 was seen to have, "
        "a sample with its noise. Covered: observations within the 95 % interval of the forecast. "
        "Without forecast: observations whose share lies outside the range of the side study; all "
        "errors leave them out."
    )
    rivals = (f"error, {name}" for name in RIVALS.values())
    header = ("loop", "quantity", "error", *rivals, "covered", "without forecast")
    return Table(header, tuple(rows), caption)


def response_figure(found: Curves) -> RenderedFigure:
    """Returns the two fitted curves of the side study with their points."""
    fig = figure(10.4, 3.6)
    left, right = fig.subplots(1, 2)
    # Without 0 and 1, whose logits are infinite.
    grid = np.linspace(0.02, 0.98, 97)
    # On the diagonal a generator has the shares of its pool.
    left.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=BROKEN)
    for i, (name, label) in enumerate(RESPONSES):
        response = found.response(name)
        if response is not None:
            _plot_response(left, response, found.points[name], grid, label, line(i))
    left.set(title="Response of the generator", xlabel="aligned share in the pool")
    left.set_ylabel("aligned share of generated images")
    left.legend(loc="upper left")
    # A level with a single seed has no error and gets no bar.
    error = 1.96 * np.nan_to_num(found.gap.error)
    right.errorbar(found.gap.share, found.gap.gap, error, capsize=3, **line(0))
    right.plot(found.gaps[:, 0], found.gaps[:, 1], ".", color=GREY)
    right.set(title="Gap of the classifier", xlabel="aligned share in the pool")
    right.set_ylabel(title_of(GAP))
    formulas = response_formulas(found)
    caption = (
        "Left: share of the images generated for a class in its aligned group, over that share in "
        f"the pool, one point per generator and class; broken: equal shares. {formulas} Right: "
        f"{title_of(GAP)} of classifiers trained on as many real images."
    )
    return finish(fig, "response", f"Two curves with points. {formulas}", caption)


def _plot_response(
    ax: Axes,
    response: dynamics.Response,
    points: np.ndarray,
    grid: np.ndarray,
    label: str,
    look: dict[str, Any],
) -> None:
    """The fitted curve with its 95 % band, where the previous share equals the pool's; points."""
    # The band is made on the logit, so that it stays between 0 and 1.
    logit = special.logit(response(grid, grid))
    error = 1.96 * _curve_error(response, grid)
    low = special.expit(logit - error)
    high = special.expit(logit + error)
    colour = look["color"]
    ax.fill_between(grid, low, high, color=colour, alpha=0.14, linewidth=0)
    ax.plot(grid, special.expit(logit), color=colour, linestyle=look["linestyle"], label=label)
    # Hundreds of points, one per generator and class: faint and below the curves.
    ax.plot(*points[:, :2].T, look["marker"], color=colour, markersize=3, alpha=0.4, zorder=1)


def _curve_error(response: dynamics.Response, share: np.ndarray) -> np.ndarray:
    """Standard error of the curve's logit where the previous share equals the pool's."""
    logit = special.logit(share)
    slopes = len(response.coefficients) - 1
    # Both slopes multiply the same logit, because both shares are the same here.
    x = np.stack([np.ones_like(logit)] + [logit] * slopes, axis=1)
    return np.sqrt(np.einsum("ni,ij,nj->n", x, response.covariance, x))


def forecast_figure(made: Sequence[Forecast]) -> RenderedFigure:
    """Returns the shares and gaps of each loop, observed and forecast."""
    fig = figure(10.4, 2.7 * len(made) + 0.4)
    axes = fig.subplots(len(made), 2, squeeze=False)
    for row, one in zip(axes, made, strict=True):
        _plot(row[0], one.arm, SHARE, one.shares, one.share, one.share_rivals)
        _plot(row[1], one.arm, GAP, one.gaps, one.gap, one.gap_rivals)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper left", ncols=5)
    errors = []
    for one in made:
        score = one.scores["generated share"]
        rivals = [
            f"{label} {number_text(score[f'error_{name}'])}" for name, label in RIVALS.items()
        ]
        error = number_text(score["error"])
        errors.append(f"{one.arm.name}: error {error}, rivals: {', '.join(rivals)}")
    caption = (
        f"Left: {title_of(SHARE)}; right: {title_of(GAP)}. Dots and thin lines: each seed; thick: "
        "their mean; shaded: the forecast and its 95 % interval for single runs, from the side "
        "study and generation 0 only. Rivals that need no side study: the share of the real "
        "images; a copy machine, which generates the shares of its pool; generation 0 as it was "
        "seen. Right: the gap that each forecast of the share gives."
    )
    return finish(fig, "prediction", f"Observed against forecast. {'; '.join(errors)}.", caption)


def _plot(
    ax: Axes,
    arm: Arm,
    key: str,
    observed: np.ndarray,
    band: dynamics.Band,
    rivals: dict[str, np.ndarray],
) -> None:
    x = arm.generations
    # Each run has a forecast of its own, from its own generation 0; their mean is shown.
    low = band.low.mean(axis=0)
    high = band.high.mean(axis=0)
    plot_seeds(ax, x, observed, COLOURS[0])
    ax.fill_between(x, low, high, color=COLOURS[1], alpha=0.16, linewidth=0)
    ax.plot(x, observed.mean(axis=0), linewidth=1.8, label="observed", **line(0))
    ax.plot(x, band.mean.mean(axis=0), linewidth=1.8, label="forecast", **line(1))
    for name, label in RIVALS.items():
        # Some are one number for all generations.
        course = np.broadcast_to(rivals[name], observed.shape).mean(axis=0)
        ax.plot(x, course, linewidth=1.2, label=label, **RIVAL_LINES[name])
    ax.set_title(f"{arm.name}: {title_of(key)}")
    generation_axis(ax, x)
