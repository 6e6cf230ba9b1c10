"""Forecasts of the gap from the counts of subgroups: docs/analysis_plan.md, "The forecast".

A learning curve is fitted to classifiers of real images, the side study. What a generated image
counts in real ones is fitted to loops of one half of a study, under rules that keep no real images;
the gaps of the loops of the other half are forecast. Halves differ in the fields of the data.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from selfloop_jax.analysis.arms import Arm
from selfloop_jax.analysis.forecast import GAP, pool_section, real_set
from selfloop_jax.analysis.numbers import FIELD, RECALL, Row, column
from selfloop_jax.data import drift
from selfloop_jax.measure import learning_curve, sign_test
from selfloop_jax.measure.learning_curve import LearningCurve

# The sets of terms that the side study chooses from.
CANDIDATES = (
    ("own",),
    ("own", "class"),
    ("own", "purity"),
    ("own", "shortcut"),
    ("own", "class", "shortcut"),
    ("own", "purity", "shortcut"),
)
DATA = f"{FIELD}data."
LOOPS = 50  # simulated copies of every run
DRIFT, OBSERVED, MIXED = "from drift", "from observed pools", "from drift with mixing"
FORECASTS = (DRIFT, OBSERVED, MIXED)
NO_CHANGE, ALIGNED, MISSING = "no change", "aligned share", "missing subgroups"


@dataclass(frozen=True)
class Law:
    """The learning curve of a side study, and how it was chosen.

    errors: mean absolute errors of left-out gaps and mean recalls, by set of terms; that with the
    least sum is chosen. gaps: of the law and observed, float64[R,2] of R classifiers.
    """

    curve: LearningCurve
    errors: dict[tuple[str, ...], tuple[float, float]]
    gaps: np.ndarray

    @property
    def classifiers(self) -> int:
        """How many."""
        return len(self.gaps)


@dataclass(frozen=True)
class Half:
    """What one half of a study says of generated images.

    name: the fields in which it differs from the other; start, factor: an image of generation g
    counts start * factor^g real ones; mixing: see `drift.CopyLoop`; missing: intercept and slope of
    the gap over the share of subgroups without images.
    """

    name: str
    start: float
    factor: float
    mixing: float
    missing: np.ndarray

    def quality(self, generations: int) -> list[float]:
        """What an image counts in real ones, of each generation."""
        return [self.start * self.factor**g for g in range(generations)]


@dataclass(frozen=True)
class CountsForecast:
    """One loop arm of one half, forecast by the other.

    seeds: of the complete runs, S; gaps: observed, float64[S,G]; predicted: by name of the forecast
    or rival, of that shape, NaN in generation 0, from which the forecasts start.
    """

    arm: Arm
    fitted_on: Half
    seeds: list[int]
    gaps: np.ndarray
    predicted: dict[str, np.ndarray]

    def errors(self, name: str) -> np.ndarray:
        """Mean absolute error of each seed over the generations from 1 on, float64[S]."""
        return np.asarray(np.abs(self.predicted[name] - self.gaps)[:, 1:].mean(axis=1))


@dataclass(frozen=True)
class Comparison:
    """A forecast of a loop against one rival: mean difference of errors, and its joint p."""

    loop: CountsForecast
    forecast: str
    rival: str
    difference: float
    interval: tuple[float, float]
    p: float


def law(side: Sequence[Row]) -> Law | None:
    """Returns the law that a side study gives; None where it has too few classifiers.

    Of the side study's rows those count that trained on real images alone.
    """
    rows = [row for row in side if RECALL in row and row["pool.size"] == row["pool.real"]]
    if not rows:
        return None
    # Runs that branch from one generation 0 repeat its classifier.
    rows = list({row[RECALL].tobytes(): row for row in rows}.values())
    counts = np.stack([table(row, "pool.subgroup_counts") for row in rows])
    recall = np.stack([table(row, RECALL) for row in rows])
    labels = [_composition(row) for row in rows]
    errors: dict[tuple[str, ...], tuple[float, float]] = {}
    for terms in CANDIDATES:
        try:
            errors[terms] = learning_curve.left_out_error(counts, recall, labels, terms)
        except ValueError:  # too few, or too similar
            continue
    if not errors:
        return None
    best = min(errors, key=lambda terms: sum(errors[terms]))
    curve = learning_curve.fit(counts, recall, best)
    seen = [row[column(GAP)] for row in rows]
    expected = [float(curve.gap(n, np.isfinite(r))) for n, r in zip(counts, recall, strict=True)]
    return Law(curve, errors, np.stack([expected, seen], axis=1))


def _composition(row: Row) -> str:
    """The fields of the bias: rows of one composition differ in seed and number of images."""
    fields = {name: value for name, value in row.items() if name.startswith(f"{DATA}bias.")}
    return str(fields)


def table(row: Row, name: str) -> np.ndarray:
    """float64[C,G] of a column by subgroup."""
    values: np.ndarray = row[name]
    return values.reshape(len(row["pool.class_counts"]), -1)


def forecasts(arms: Sequence[Arm], found: Law) -> tuple[list[CountsForecast], list[str]]:
    """Returns the forecasts of all loops that allow one, and for the others the reason why not."""
    reasons = []
    loops = []
    for arm in arms:
        if arm.is_loop:
            reason = _obstacle(arm)
            if reason:
                reasons.append(f"{arm.name}: no forecast from counts: {reason}.")
            else:
                loops.append(arm)
    by_half: dict[tuple[tuple[str, str], ...], list[Arm]] = {}
    for arm in loops:
        by_half.setdefault(_half_of(arm), []).append(arm)
    fitted = {}
    for key, members in by_half.items():
        half = _fit_half(key, members, found)
        if half is not None:
            fitted[key] = half
    made = []
    for key, members in by_half.items():
        others = [half for other, half in fitted.items() if other != key]
        if not others:
            reasons += [
                f"{arm.name}: no forecast from counts: no other half of the study has loops that "
                "keep no real images and a classification accuracy score."
                for arm in members
            ]
            continue
        made += [_forecast(arm, members, others[0], found) for arm in members]
    return made, reasons


def _half_of(arm: Arm) -> tuple[tuple[str, str], ...]:
    """The fields of the data in which loops differ."""
    return tuple((name, value) for name, value in arm.fields.items() if name.startswith(DATA))


def _obstacle(arm: Arm) -> str:
    """The reason why an arm has no forecast; empty where it has one."""
    runs = arm.complete_runs
    if not runs or len(arm.generations) < 2 or arm.generations[0] != 0:
        return "no run of two generations or more is complete"
    if arm.setting("diffusion.condition_on") != "label":
        return "its generators are conditioned on the group, which fixes the composition"
    if arm.rule is None or not arm.rule.weighted or arm.setting("pool.match_group") == "True":
        return "its pool rule does not say how many images it takes of which set"
    needed = (f"{real_set(runs[0][0])}.subgroup_counts", "generated.subgroup_counts", RECALL)
    if any(name not in runs[0][0] for name in needed):
        return "its numbers lack counts and recalls of subgroups, as those of an earlier version do"
    return ""


def _fit_half(key: tuple[tuple[str, str], ...], arms: Sequence[Arm], found: Law) -> Half | None:
    """What the loops that keep no real images say; None where the half has none with a CAS."""
    runs = [run for arm in arms if not arm.keeps_real for run in arm.complete_runs]
    runs = [run for run in runs if column("cas") in run[0]]
    if not runs:
        return None
    curve = found.curve
    starts, slopes, shares, gaps = [], [], [], []
    for run in runs:
        sets = [table(row, "generated.subgroup_counts") for row in run[:-1]]
        start = learning_curve.quality(curve, sets[0], run[0][column("cas")])
        starts.append(np.log(start))
        # The pool of generation g+1 is what generation g made.
        for g, (made, row) in enumerate(zip(sets, run[1:], strict=True)):
            if g:
                q = learning_curve.quality(curve, made, row[column("accuracy")])
                slopes.append((g, np.log(q) - np.log(start)))
        shares += [_missing(row) for row in run]
        gaps += [row[column(GAP)] for row in run]
    ages, falls = np.array(slopes).T if slopes else (np.zeros(1), np.zeros(1))
    # Through the origin: generation 0 has `start`.
    fall = ages @ falls / max(ages @ ages, 1)
    name = ", ".join(f"{field.rsplit('.', 1)[-1]} {value}" for field, value in key) or "all loops"
    return Half(
        name=name,
        start=float(np.exp(np.mean(starts))),
        factor=float(np.exp(fall)),
        mixing=_mixing([row for run in runs for row in run]),
        missing=_line(shares, gaps),
    )


def _mixing(rows: Sequence[Row]) -> float:
    """The mixing of the greatest likelihood: groups of generated images given those of the pool."""
    pools = [table(row, "pool.subgroup_counts") for row in rows]
    made = [table(row, "generated.subgroup_counts") for row in rows]

    def misfit(mixing: float) -> float:
        total = 0.0
        for pool, counts in zip(pools, made, strict=True):
            sizes = pool.sum(axis=1)
            shares = drift.mixed(pool / np.maximum(sizes, 1)[:, None], sizes, mixing)
            # A group that no class has left may still be read from a few images.
            total -= float((counts * np.log(np.maximum(shares, 1e-6))).sum())
        return total

    return float(optimize.minimize_scalar(misfit, bounds=(0, 1), method="bounded").x)


def _missing(row: Row) -> float:
    """The share of the subgroups without an image in the pool."""
    return float((table(row, "pool.subgroup_counts") == 0).mean())


def _line(x: Sequence[float], y: Sequence[float]) -> np.ndarray:
    """Intercept and slope float64[2]; a constant where x does not vary."""
    if np.ptp(x) == 0:
        return np.array([np.mean(y), 0.0])
    slope, intercept = np.polyfit(x, y, 1)
    return np.array([intercept, slope])


def _forecast(arm: Arm, half: Sequence[Arm], fitted_on: Half, found: Law) -> CountsForecast:
    runs = arm.complete_runs
    gaps = np.array([[row[column(GAP)] for row in run] for run in runs])
    predicted = {
        DRIFT: np.array([_from_drift(arm, run, fitted_on, found) for run in runs]),
        OBSERVED: np.array([_from_pools(arm, run, fitted_on, found) for run in runs]),
        MIXED: np.array([_with_mixing(arm, run, fitted_on, found) for run in runs]),
        NO_CHANGE: np.repeat(gaps[:, :1], gaps.shape[1], axis=1),
    }
    if runs[0][0]["pool.aligned_counts"].any():
        # Fitted to the forecast loops themselves, which is an advantage.
        rows = [row for other in half for run in other.complete_runs for row in run]
        intercept, slope = _line(
            [_aligned(row) for row in rows], [row[column(GAP)] for row in rows]
        )
        shares = np.array([[_aligned(row) for row in run] for run in runs])
        predicted[ALIGNED] = intercept + slope * shares
    shares = np.array([[_missing(row) for row in run] for run in runs])
    predicted[MISSING] = fitted_on.missing[0] + fitted_on.missing[1] * shares
    for values in predicted.values():
        values[:, 0] = np.nan
    seeds = [run[0]["seed"] for run in runs]
    return CountsForecast(arm, fitted_on, seeds, gaps, predicted)


def _aligned(row: Row) -> float:
    """The aligned share of the pool."""
    aligned = row["pool.aligned_counts"]
    return float(aligned.sum() / row["pool.class_counts"][aligned > 0].sum())


def _copy_loop(arm: Arm, run: Sequence[Row], mixing: float = 0.0) -> drift.CopyLoop:
    """Copies of a run that know its real images, and how many are requested."""
    first = run[0]
    reserve = "reserve.subgroup_counts"
    return drift.CopyLoop(
        pool=pool_section(arm),
        real=table(first, f"{real_set(first)}.subgroup_counts"),
        generated=np.tile(first["generated.class_counts"], (len(run), 1)),
        reserve=table(first, reserve) if reserve in first else None,
        mixing=mixing,
    )


def _from_drift(
    arm: Arm, run: Sequence[Row], half: Half, found: Law, mixing: float = 0.0
) -> np.ndarray:
    """The gap float64[G] of simulated copies: nothing of the run after its real images is used."""
    loop = _copy_loop(arm, run, mixing)
    key_path = (run[0]["seed"], "counts forecast")
    pools = drift.pool_counts(loop, key_path, LOOPS, half.quality(len(run)))
    return np.asarray(found.curve.gap(pools, _known(run)).mean(axis=1))


def _with_mixing(arm: Arm, run: Sequence[Row], half: Half, found: Law) -> np.ndarray:
    """The same of generators that mix classes, as a change from the run's own first gap."""
    gaps = _from_drift(arm, run, half, found, half.mixing)
    change = gaps - gaps[0] + run[0][column(GAP)]
    return np.clip(change, 0, 1)


def _from_pools(arm: Arm, run: Sequence[Row], half: Half, found: Law) -> np.ndarray:
    """The gap float64[G] of the counts that each generation was really trained on."""
    quality = half.quality(len(run))
    sets = [
        q * table(row, "generated.subgroup_counts") for q, row in zip(quality, run, strict=True)
    ]
    loop = _copy_loop(arm, run)
    pools = np.stack([drift.expected_pool(loop, g, sets[:g]) for g in range(len(run))])
    return found.curve.gap(pools, _known(run))


def _known(run: Sequence[Row]) -> np.ndarray:
    """bool[C,G]: subgroups with a test image."""
    return np.isfinite(table(run[0], RECALL))


def comparisons(made: Sequence[CountsForecast]) -> list[Comparison]:
    """Returns the forecasts from drift against each rival, joint tests over each kind of rule.

    Of each forecast, loops that keep no real images are one family, those that keep them another.
    """
    found = []
    for forecast, keeps in itertools.product((DRIFT, MIXED), (False, True)):
        family = [
            (one, rival)
            for one in made
            if one.arm.keeps_real == keeps
            for rival in (NO_CHANGE, ALIGNED, MISSING)
            if rival in one.predicted
        ]
        if family:
            found += _compared(forecast, family)
    return found


def _compared(forecast: str, family: Sequence[tuple[CountsForecast, str]]) -> list[Comparison]:
    differences = [
        dict(zip(one.seeds, one.errors(forecast) - one.errors(rival), strict=True))
        for one, rival in family
    ]
    seeds = sorted(set().union(*differences))
    by_seed = np.array([[one.get(seed, np.nan) for seed in seeds] for one in differences])
    found = []
    for (one, rival), d, p in zip(family, by_seed, sign_test.joint_sign_flip(by_seed), strict=True):
        known = d[~np.isnan(d)]
        interval = sign_test.interval(known, 0.95)
        found.append(Comparison(one, forecast, rival, float(known.mean()), interval, float(p)))
    return found
