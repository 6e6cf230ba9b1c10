"""Figures and table of forecasts against observations."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from scipy import special

from selfloop_jax.analysis import forecast
from selfloop_jax.analysis.arms import Arm
from selfloop_jax.measure import dynamics
from selfloop_jax.report.metrics import ALIGNED, OPPORTUNITY, Metric, text
from selfloop_jax.report.style import RenderedFigure, figure, finish, generation_axis, line
from selfloop_jax.report.tables import Table


def forecast_table(made: Sequence[forecast.Forecast]) -> Table:
    """Errors of the prediction and of the naive one, per loop."""
    rows = []
    for one in made:
        for name, score in one.scores.items():
            errors = (f"{score[key]:.3f}" for key in ("error", "error_naive"))
            covered = f"{100 * score['coverage']:.0f} %"
            rows.append((one.arm.name, name, *errors, covered, str(score["undefined"])))
    caption = (
        "Mean absolute error over seeds and generations from 1 on. naive: stays as in generation 0. "
        "covered: observations within the 95 % interval of the prediction. not predicted: those whose share "
        "lies outside what the side study measured, left out of both errors."
    )
    header = ("loop", "of", "error", "error of the naive one", "covered", "not predicted")
    return Table(header, tuple(rows), caption)


def response_figure(found: forecast.Curves) -> RenderedFigure:
    """The two curves of the side study with their points."""
    made = figure(10.4, 3.6)
    left, right = made.subplots(1, 2)
    grid = np.linspace(0.02, 0.98, 97)
    left.plot([0, 1], [0, 1], color="#777777", linewidth=0.8, linestyle=(0, (4, 3)))
    for i, (name, label) in enumerate((("scratch", "from scratch"), ("fine_tuned", "fine-tuned"))):
        if getattr(found, name):
            _response_curve(left, getattr(found, name), found.points[name], grid, label, line(i))
    left.set(
        title="Response of the generator", xlabel="aligned share in the pool", ylabel="share drawn"
    )
    left.legend(loc="upper left")
    right.errorbar(
        found.gap.share, found.gap.gap, 1.96 * np.nan_to_num(found.gap.error), **line(0), capsize=3
    )
    right.plot(found.gaps[:, 0], found.gaps[:, 1], ".", color="#777777")
    right.set(
        title="Gap of the classifier", xlabel="aligned share in the pool", ylabel=OPPORTUNITY.name
    )
    return finish(
        made,
        "response",
        f"Two curves with points. {forecast.response_formulas(found)}",
        _response_caption(found),
    )


def _response_curve(
    ax: Axes,
    response: dynamics.Response,
    points: np.ndarray,
    grid: np.ndarray,
    label: str,
    look: dict,
) -> None:
    """The fitted curve with its 95 % band, at previous shares equal to the pool's, and its points."""
    logit = special.logit(response(grid, grid))
    error = 1.96 * _curve_error(response, grid)
    ends = special.expit(logit - error), special.expit(logit + error)
    ax.fill_between(grid, *ends, color=look["color"], alpha=0.14, linewidth=0)
    ax.plot(
        grid, special.expit(logit), color=look["color"], linestyle=look["linestyle"], label=label
    )
    ax.plot(
        points[:, 0], points[:, 1], look["marker"], color=look["color"], markersize=4, alpha=0.8
    )


def _curve_error(response: dynamics.Response, share: np.ndarray) -> np.ndarray:
    """Standard error of the curve's logit at pool shares equal to the previous ones."""
    logit = special.logit(share)
    x = np.stack([np.ones_like(logit)] + [logit] * (len(response.coefficients) - 1), axis=1)
    return np.sqrt(np.einsum("ni,ij,nj->n", x, response.covariance, x))


def _response_caption(found: forecast.Curves) -> str:
    return (
        "Left: share drawn in the group aligned with the class over its share in the pool, one point per "
        f"generator and class; broken: what the pool has. {forecast.response_formulas(found)} Right: gap of classifiers "
        "trained on as many real images."
    )


def forecast_figure(made: Sequence[forecast.Forecast]) -> RenderedFigure:
    """Per loop the shares drawn and the gaps, observed and predicted."""
    fig = figure(10.4, 2.7 * len(made) + 0.4)
    axes = fig.subplots(len(made), 2, squeeze=False)
    for row, one in zip(axes, made, strict=True):
        pairs = ((ALIGNED, one.shares, one.share), (OPPORTUNITY, one.gaps, one.gap))
        for ax, (metric, observed, band) in zip(row, pairs, strict=True):
            _plot(ax, one.arm, metric, observed, band)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper left", ncols=4)
    errors = [
        [text(o.scores["share drawn"][key]) for key in ("error", "error_naive")] for o in made
    ]
    told = (f"{o.arm.name}: error {e}, naive {n}" for o, (e, n) in zip(made, errors, strict=True))
    caption = (
        "Left the share drawn in the aligned group, right the gap. Thin: each seed; thick: their mean; "
        "shaded: the prediction and its 95 % interval for single runs, from the side study and generation 0 "
        "alone; broken: the naive prediction, which stays as it is."
    )
    return finish(fig, "prediction", f"Observed against predicted. {'; '.join(told)}.", caption)


def _plot(ax: Axes, arm: Arm, metric: Metric, observed: np.ndarray, band: dynamics.Band) -> None:
    x = arm.generations
    ax.plot(x, observed.T, color="#0072B2", linewidth=0.6, alpha=0.4)
    ax.fill_between(
        x, band.low.mean(axis=0), band.high.mean(axis=0), color="#D55E00", alpha=0.16, linewidth=0
    )
    ax.plot(x, observed.mean(axis=0), linewidth=1.8, label="observed", **line(0))
    ax.plot(x, band.mean.mean(axis=0), linewidth=1.8, label="predicted", **line(1))
    ax.axhline(
        observed[:, 0].mean(), color="#777777", linestyle=(0, (4, 3)), linewidth=1, label="naive"
    )
    ax.set_title(f"{arm.name}: {metric.name}")
    ax.set_xlabel("generation")
    generation_axis(ax, x)
