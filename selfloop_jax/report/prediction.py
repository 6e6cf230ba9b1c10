"""Prediction against observation: what two curves of a side study and the pool rules say of the loops.

The response of a generator and the gap of a classifier are fitted to runs of the side study, on other seeds
than the loops; docs/dynamics.md has the derivation. A share is that of the images of a class that are in the
group which the bias ties to it, all classes taken together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from scipy import special

from selfloop_jax.measure import dynamics
from selfloop_jax.report.arms import Arm
from selfloop_jax.report.metrics import ALIGNED, OPPORTUNITY, Metric, text
from selfloop_jax.report.rows import FIELD, Row
from selfloop_jax.report.style import Drawing, figure, finish, generation_axis, line
from selfloop_jax.report.tables import Table

RULE = f"{FIELD}pool.rule"


@dataclass(frozen=True)
class Curves:
    """What the side study gave: the response from scratch and fine-tuned, the gap, and the points."""

    scratch: dynamics.Response
    fine_tuned: dynamics.Response
    gap: dynamics.GapCurve
    points: dict[
        str, np.ndarray
    ]  # "scratch", "fine_tuned": float[P,3 or 4] pool, drawn, count[, previous share]
    gaps: np.ndarray  # float[P,2], share and gap of classifiers trained on real images
    spread: float  # standard deviation of the gap from seed to seed


@dataclass(frozen=True)
class Forecast:
    """One loop arm: observed float64[S,G] shares drawn and gaps, and what was predicted of them."""

    arm: Arm
    shares: np.ndarray
    share: dynamics.Band
    gaps: np.ndarray
    gap: dynamics.Band
    share_score: dict[str, float]
    gap_score: dict[str, float]


def curves(side: Sequence[Row]) -> Curves | None:
    """The curves of a side study; None where it has no aligned groups, or too few points for a fit."""
    rows = [row for row in side if "samples.aligned_counts" in row and row["pool.aligned_counts"].any()]
    before = {(row["run"], row["generation"]): row for row in rows}
    first, later = [], []
    for row in rows:
        previous = before.get((row["run"], row["generation"] - 1))
        if not row["generation"]:
            first.append(_shares(row))
        elif previous:
            later.append([*_shares(row), _shares(previous)[1]])
    first, later = _distinct(first), _distinct(later)
    gaps = _distinct([[_shares(r)[0], r[OPPORTUNITY.column]] for r in rows if not r["generation"]])
    try:
        scratch = dynamics.fit_response(*first.T)
        fine_tuned = dynamics.fit_response(*later[:, :3].T, later[:, 3])
        levels = np.round(gaps[:, 0], 2)  # each seed's own share lies within a draw of the nominal one
        gap = dynamics.gap_curve(levels, gaps[:, 1])
    except (ValueError, IndexError):
        return None
    residual = gaps[:, 1] - gap(np.clip(levels, *gap.share[[0, -1]]))[0]
    spread = float(np.sqrt((residual**2).sum() / max(len(levels) - len(gap.share), 1)))
    return Curves(scratch, fine_tuned, gap, {"scratch": first, "fine_tuned": later}, gaps, spread)


def _shares(row: Row) -> list[float]:
    """Aligned share in the pool, aligned share drawn, and images drawn."""
    found = [row[f"{p}.aligned_counts"].sum() / row[f"{p}.class_counts"].sum() for p in ("pool", "samples")]
    return [*found, row["samples.class_counts"].sum()]


def _distinct(points: list[list[float]]) -> np.ndarray:
    """Points as float[P,K] without repetitions: runs that took over a generation 0 share it."""
    return np.unique(np.array(points), axis=0) if points else np.empty((0, 4))


def forecasts(arms: Sequence[Arm], found: Curves) -> list[Forecast]:
    """One forecast per loop whose classes have an aligned group."""
    loops = [arm for arm in arms if arm.control == "none" and RULE in arm.fields]
    made = [_forecast(arm, found) for arm in loops]
    return [one for one in made if one]


def _forecast(arm: Arm, found: Curves) -> Forecast | None:
    runs = [
        [rows[g] for g in arm.generations] for rows in arm.runs.values() if len(rows) == len(arm.generations)
    ]
    if not runs or not runs[0][0]["pool.aligned_counts"].any() or len(arm.generations) < 2:
        return None
    shares = np.array([[_shares(row)[1] for row in run] for run in runs])
    gaps = np.array([[row[OPPORTUNITY.column] for row in run] for run in runs])
    bands = [_predicted(arm, run, share[0], found) for run, share in zip(runs, shares, strict=True)]
    pool, drawn = (
        dynamics.Band(
            *(np.array([getattr(band[i], end) for band in bands]) for end in ("mean", "low", "high"))
        )
        for i in (0, 1)
    )
    gap = _gap_band(pool, found)
    return Forecast(
        arm, shares, drawn, gaps, gap, _score(shares, drawn), _score(gaps, gap, dynamics.naive(gaps))
    )


def _predicted(
    arm: Arm, run: list[Row], first_drawn: float, found: Curves
) -> tuple[dynamics.Band, dynamics.Band]:
    """Shares in the pools and drawn of one run, from its generation 0 on."""
    n_real, count = run[0]["pool.class_counts"].sum(), run[0]["samples.class_counts"].sum()
    return dynamics.predict(
        arm.fields[RULE],
        _shares(run[0])[0],
        dynamics.Sizes(n_real=n_real, count=count),
        found.fine_tuned,
        len(run),
        (run[0]["seed"], "prediction", arm.fields[RULE]),
        first_drawn=first_drawn,
    )


def _gap_band(pool: dynamics.Band, found: Curves) -> dynamics.Band:
    """Gap over the predicted share, with the scatter of single runs; NaN outside the measured shares."""
    mean, error = found.gap(pool.mean)
    low, high = found.gap(pool.low)[0], found.gap(pool.high)[0]
    half = 1.96 * np.hypot(error, found.spread)
    return dynamics.Band(mean, np.minimum(low, high) - half, np.maximum(low, high) + half)


def _score(observed: np.ndarray, band: dynamics.Band, naive: np.ndarray | None = None) -> dict[str, float]:
    """`dynamics.score` of the generations after the one that was given."""
    naive = dynamics.naive(observed) if naive is None else naive
    later = dynamics.Band(band.mean[:, 1:], band.low[:, 1:], band.high[:, 1:])
    return dynamics.score(observed[:, 1:], later, naive[:, 1:])


def table(made: Sequence[Forecast]) -> Table:
    """Errors of the prediction and of the naive one, per loop."""
    rows = []
    for one in made:
        for name, score in (("share drawn", one.share_score), ("gap", one.gap_score)):
            errors = (f"{score[key]:.3f}" for key in ("error", "error_naive"))
            rows.append((one.arm.name, name, *errors, f"{100 * score['coverage']:.0f} %"))
    caption = (
        "Mean absolute error over seeds and generations from 1 on. naive: stays as in generation 0. "
        "covered: observations within the 95 % interval of the prediction."
    )
    return Table(("loop", "of", "error", "error of the naive one", "covered"), tuple(rows), caption)


def response_drawing(found: Curves) -> Drawing:
    """The two curves of the side study with their points."""
    made = figure(10.4, 3.6)
    left, right = made.subplots(1, 2)
    grid = np.linspace(0.02, 0.98, 97)
    left.plot([0, 1], [0, 1], color="#777777", linewidth=0.8, linestyle=(0, (4, 3)))
    previous = {"scratch": None, "fine_tuned": grid}
    for i, (name, label) in enumerate((("scratch", "from scratch"), ("fine_tuned", "fine-tuned"))):
        response, points, look = getattr(found, name), found.points[name], line(i)
        eta = special.logit(response(grid, previous[name]))
        error = _curve_error(response, grid)
        left.fill_between(
            grid,
            special.expit(eta - 1.96 * error),
            special.expit(eta + 1.96 * error),
            color=look["color"],
            alpha=0.14,
            linewidth=0,
        )
        left.plot(grid, special.expit(eta), color=look["color"], linestyle=look["linestyle"], label=label)
        left.plot(points[:, 0], points[:, 1], look["marker"], color=look["color"], markersize=4, alpha=0.8)
    left.set(title="Response of the generator", xlabel="aligned share in the pool", ylabel="share drawn")
    left.legend(loc="upper left")
    right.errorbar(
        found.gap.share, found.gap.gap, 1.96 * np.nan_to_num(found.gap.error), **line(0), capsize=3
    )
    right.plot(found.gaps[:, 0], found.gaps[:, 1], ".", color="#777777")
    right.set(title="Gap of the classifier", xlabel="aligned share in the pool", ylabel=OPPORTUNITY.name)
    a, b = found.scratch.coefficients
    alt = f"Two curves. From scratch: logit of the share drawn = {a:+.2f} {b:+.2f} logit of the pool's."
    return finish(made, "response", alt, _response_caption(found))


def _curve_error(response: dynamics.Response, share: np.ndarray) -> np.ndarray:
    """Standard error of the curve's logit at pool shares equal to the previous ones."""
    logit = special.logit(share)
    x = np.stack([np.ones_like(logit)] + [logit] * (len(response.coefficients) - 1), axis=1)
    return np.sqrt(np.einsum("ni,ij,nj->n", x, response.covariance, x))


def in_words(found: Curves) -> str:
    """The two responses as formulas, with 95 % intervals of their coefficients."""
    scratch = ", ".join(f"{c:+.2f} ± {1.96 * e:.2f}" for c, e in _coefficients(found.scratch))
    tuned = ", ".join(f"{c:+.2f} ± {1.96 * e:.2f}" for c, e in _coefficients(found.fine_tuned))
    return (
        "Response of the generators of the side study: logit(share drawn) = a + b logit(share in the pool), "
        f"fine-tuned + c logit(share drawn before). From scratch a, b = {scratch} "
        f"({len(found.points['scratch'])} generators); fine-tuned a, b, c = {tuned} "
        f"({len(found.points['fine_tuned'])} generators)."
    )


def _response_caption(found: Curves) -> str:
    return (
        "Left: share drawn in the group aligned with the class over its share in the pool, one point per "
        f"generator; broken: what the pool has. {in_words(found)} Right: gap of classifiers trained on as "
        "many real images."
    )


def _coefficients(response: dynamics.Response) -> list[tuple[float, float]]:
    return list(zip(response.coefficients, np.sqrt(np.diag(response.covariance)), strict=True))


def drawing(made: Sequence[Forecast]) -> Drawing:
    """Per loop the shares drawn and the gaps, observed and predicted."""
    fig = figure(10.4, 2.7 * len(made) + 0.4)
    axes = fig.subplots(len(made), 2, squeeze=False)
    for row, one in zip(axes, made, strict=True):
        pairs = ((ALIGNED, one.shares, one.share), (OPPORTUNITY, one.gaps, one.gap))
        for ax, (metric, observed, band) in zip(row, pairs, strict=True):
            _plot(ax, one.arm, metric, observed, band)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper left", ncols=4)
    errors = [[text(o.share_score[key]) for key in ("error", "error_naive")] for o in made]
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
    ax.axhline(observed[:, 0].mean(), color="#777777", linestyle=(0, (4, 3)), linewidth=1, label="naive")
    ax.set_title(f"{arm.name}: {metric.name}")
    ax.set_xlabel("generation")
    generation_axis(ax, x)
