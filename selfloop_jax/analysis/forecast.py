"""Prediction against observation: what two curves of a side study and the pool rules say of the loops.

The response of a generator and the gap of a classifier are fitted to runs of the side study, on
other seeds than the loops; docs/dynamics.md has the derivation. A share is that of the images of a
class that are in the group which the bias ties to it. Responses are fitted to single classes and
predict single classes; shown are all classes taken together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from selfloop_jax.analysis.arms import Arm
from selfloop_jax.analysis.numbers import FACT, FIELD, Row
from selfloop_jax.config import PoolConfig
from selfloop_jax.measure import dynamics
from selfloop_jax.report.metrics import OPPORTUNITY


@dataclass(frozen=True)
class Curves:
    """What the side study gave: the responses it had points for, the gap, and the points."""

    scratch: dynamics.Response | None
    fine_tuned: dynamics.Response | None
    gap: dynamics.GapCurve
    gaps: np.ndarray  # float[P,2], share and gap of classifiers trained on real images
    spread: float  # standard deviation of the gap from seed to seed
    points: dict[
        str, np.ndarray
    ]  # by response float[P,3 or 4]: pool, drawn, count[, expected before]
    generators: dict[str, int]  # by response; each gives a point per class


@dataclass(frozen=True)
class Forecast:
    """One loop arm: observed float64[S,G] shares drawn and gaps, and what was predicted of them.

    scores: by what was predicted, `dynamics.score` of the generations after the one that was given.
    """

    arm: Arm
    shares: np.ndarray
    share: dynamics.Band
    gaps: np.ndarray
    gap: dynamics.Band
    scores: dict[str, dict[str, float]]


def curves(side: Sequence[Row]) -> Curves | None:
    """The curves of a side study; None where it has no aligned groups, or too few points for a gap curve."""
    side = [
        row for row in side if "samples.aligned_counts" in row and row["pool.aligned_counts"].any()
    ]
    if len({_level(row) for row in side}) < 2:
        return None
    before = {(row["run"], row["generation"]): row for row in side}
    first, later = [], []  # rows, and later ones with the row before
    for row in side:
        previous = before.get((row["run"], row["generation"] - 1))
        if not row["generation"] or (
            previous and row[f"{FACT}diffusion.later.start"] != "previous"
        ):
            first.append(_points(row))
        elif row["generation"] == 1 and previous:
            later.append((_points(row), _points(previous)[:, 0]))
    first = list(
        {one.tobytes(): one for one in first}.values()
    )  # runs that took over a generation 0 share it
    points = {"scratch": np.concatenate(first)}
    scratch = _response(points["scratch"])
    tuned = [np.c_[one, scratch(pool)] for one, pool in later] if scratch else []
    points["fine_tuned"] = np.concatenate([np.empty((0, 4)), *tuned])
    generators = {"scratch": len(first), "fine_tuned": len(tuned)}
    return Curves(scratch, _response(points["fine_tuned"]), *_gaps(side), points, generators)


def _gaps(side: Sequence[Row]) -> tuple[dynamics.GapCurve, np.ndarray, float]:
    """The gap curve through the classifiers of generation 0, its points, and the scatter around it."""
    levels: dict[tuple, set[tuple[float, float]]] = {}
    for row in side:
        if not row["generation"]:
            levels.setdefault(_level(row), set()).add(
                (_share(row, "pool"), row[OPPORTUNITY.column])
            )
    at = [np.array(sorted(level)) for level in levels.values()]
    found = np.concatenate(at)
    curve = dynamics.gap_curve(
        np.repeat([x[:, 0].mean() for x in at], [len(x) for x in at]), found[:, 1]
    )
    residual = found[:, 1] - curve(np.repeat([x[:, 0].mean() for x in at], [len(x) for x in at]))[0]
    return curve, found, float(np.sqrt((residual**2).sum() / max(len(found) - len(at), 1)))


def _level(row: Row) -> tuple[tuple[str, str], ...]:
    """What the real images of a run were made with: runs of one level differ in their seed alone."""
    return tuple((name, value) for name, value in row.items() if name.startswith(f"{FIELD}data."))


def _response(points: np.ndarray) -> dynamics.Response | None:
    try:
        return dynamics.fit_response(*points.T)
    except ValueError:  # too few points, or too much alike
        return None


def _points(row: Row) -> np.ndarray:
    """float[C,3] of the classes with an aligned group: its share in the pool, share drawn, images drawn."""
    kept = (row["pool.aligned_counts"] > 0) & (row["samples.class_counts"] > 0)
    return np.stack(
        [_by_class(row, "pool"), _by_class(row, "samples"), row["samples.class_counts"]], axis=1
    )[kept]


def _by_class(row: Row, place: str) -> np.ndarray:
    """Aligned share float[C] in the pool or among the samples; NaN where a class is absent."""
    counts = row[f"{place}.class_counts"]
    return np.divide(
        row[f"{place}.aligned_counts"], counts, out=np.full(len(counts), np.nan), where=counts > 0
    )


def _share(row: Row, place: str, kept: Any = slice(None)) -> float:
    """Aligned share of all `kept` classes together."""
    return float(
        row[f"{place}.aligned_counts"][kept].sum() / row[f"{place}.class_counts"][kept].sum()
    )


def forecasts(arms: Sequence[Arm], found: Curves) -> tuple[list[Forecast], list[str]]:
    """One forecast per loop that can be predicted, and of the others why they cannot."""
    made, reasons = [], []
    for arm in arms:
        if arm.control != "none":
            continue
        reason = _unpredictable(arm, found)
        if reason:
            reasons.append(f"{arm.name}: not predicted: {reason}.")
        else:
            made.append(_forecast(arm, found))
    return made, reasons


def _unpredictable(arm: Arm, found: Curves) -> str:
    """Why a loop cannot be predicted; empty where it can."""
    if not _complete_runs(arm) or len(arm.generations) < 2:
        return "no run of two generations or more is complete"
    if not _complete_runs(arm)[0][0]["pool.aligned_counts"].any():
        return "no class has an aligned group"
    if arm.fact("diffusion.condition_on") != "label":
        return "its generators are told the group, so that composition is imposed"
    if not found.scratch or (_fine_tuned(arm) and not found.fine_tuned):
        return "the side study has too few generators of its kind"
    return ""


def _fine_tuned(arm: Arm) -> bool:
    """Whether the arm's later generators start from the previous one."""
    return arm.fact("diffusion.later.start") == "previous"


def _complete_runs(arm: Arm) -> list[list[Row]]:
    """The runs of an arm that have all its generations."""
    return [
        [rows[g] for g in arm.generations]
        for rows in arm.runs.values()
        if len(rows) == len(arm.generations)
    ]


def _forecast(arm: Arm, found: Curves) -> Forecast:
    runs = _complete_runs(arm)
    kept = [run[0]["pool.aligned_counts"] > 0 for run in runs]  # classes with an aligned group
    shares = np.array(
        [[_share(row, "samples", k) for row in run] for run, k in zip(runs, kept, strict=True)]
    )
    gaps = np.array([[row[OPPORTUNITY.column] for row in run] for run in runs])
    pool, drawn = (
        _stacked(bands)
        for bands in zip(
            *(_predicted(arm, *one, found, whole=True) for one in zip(runs, kept, strict=True)),
            strict=True,
        )
    )
    gap = _gap_band(pool, found)
    by_class = _by_class_score(arm, runs, kept, found)
    scores = {
        "share drawn": _score(shares, drawn),
        "share drawn, by class": by_class,
        "gap": _score(gaps, gap),
    }
    return Forecast(arm, shares, drawn, gaps, gap, scores)


def _by_class_score(
    arm: Arm, runs: list[list[Row]], kept: list[np.ndarray], found: Curves
) -> dict[str, float]:
    """`dynamics.score` of single classes; [G,C] of every run one below the other."""
    bands = [_predicted(arm, *one, found, whole=False)[1] for one in zip(runs, kept, strict=True)]
    observed = [
        np.array([_by_class(row, "samples")[k] for row in run]).T
        for run, k in zip(runs, kept, strict=True)
    ]
    return _score(np.concatenate(observed), _stacked(bands))


def _stacked(bands: Sequence[dynamics.Band]) -> dynamics.Band:
    """Bands [G] or [G,C] of runs as one of [runs,G] or [runs*C,G]."""
    return dynamics.Band(
        *(
            np.concatenate([np.atleast_2d(getattr(b, end).T) for b in bands])
            for end in ("mean", "low", "high")
        )
    )


def _predicted(
    arm: Arm, run: list[Row], kept: np.ndarray, found: Curves, *, whole: bool
) -> tuple[dynamics.Band, dynamics.Band]:
    """Shares in the pools and drawn of one run: float[G] of all `kept` classes together, or float[G,C]."""
    n_real, count = run[0]["pool.class_counts"][kept], run[0]["samples.class_counts"][kept].sum()
    section = PoolConfig(
        budget=int(float(arm.fact("pool.budget"))),
        alpha=float(arm.fact("pool.alpha")),
        match_group=arm.fact("pool.match_group") in ("True", "true"),
        n_real=int(float(arm.fact("pool.n_real"))),
        n_generated=int(float(arm.fact("pool.n_generated"))),
    )
    return dynamics.predict(
        arm.fact("pool.rule"),
        _by_class(run[0], "pool")[kept],
        dynamics.expected_sizes(section, n_real, count),
        found.scratch,
        len(run),
        (run[0]["seed"], "prediction", arm.fact("pool.rule")),
        later=found.fine_tuned if _fine_tuned(arm) else None,
        first_drawn=_by_class(run[0], "samples")[kept],
        weights=n_real if whole else None,
        condition_on=arm.fact("diffusion.condition_on"),
    )


def _gap_band(pool: dynamics.Band, found: Curves) -> dynamics.Band:
    """Gap over the predicted share, with the scatter of single runs; NaN outside the measured shares.

    An end of the share that lies outside is taken as the last one measured.
    """
    mean, error = found.gap(pool.mean)
    ends = [found.gap(np.clip(end, *found.gap.share[[0, -1]]))[0] for end in (pool.low, pool.high)]
    half = 1.96 * np.hypot(np.nan_to_num(error), found.spread)
    return dynamics.Band(mean, np.minimum(*ends) - half, np.maximum(*ends) + half)


def _score(observed: np.ndarray, band: dynamics.Band) -> dict[str, float]:
    """`dynamics.score` of the generations after the one that was given."""
    later = dynamics.Band(band.mean[:, 1:], band.low[:, 1:], band.high[:, 1:])
    return dynamics.score(observed[:, 1:], later, dynamics.naive(observed)[:, 1:])


def response_formulas(found: Curves) -> str:
    """The responses as formulas, with 95 % intervals of their coefficients."""
    told = "logit(share drawn) = a + b logit(share in the pool), fine-tuned + c logit(share expected before)"
    parts = [f"Response of the generators of the side study: {told}."]
    for name, label in (("scratch", "From scratch a, b"), ("fine_tuned", "Fine-tuned a, b, c")):
        response, points = getattr(found, name), found.points[name]
        if response:
            errors = 1.96 * np.sqrt(np.diag(response.covariance))
            pairs = zip(response.coefficients, errors, strict=True)
            values = ", ".join(f"{c:+.2f} ± {e:.2f}" for c, e in pairs)
            parts.append(
                f"{label} = {values} ({found.generators[name]} generators, {len(points)} classes)."
            )
    return " ".join(parts)
