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
from selfloop_jax.data import controls, drift, pool_rules
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
DRIFT, OBSERVED = "from drift", "from observed pools"
MIXED = "from drift with mixing (exploratory)"
FORECASTS = (DRIFT, OBSERVED, MIXED)
NO_CHANGE, ALIGNED, MISSING = "no change", "aligned share", "missing subgroups"
OTHER_CHANGE = "change of the other half (not planned)"
PLANNED = (NO_CHANGE, ALIGNED, MISSING)
RIVALS = (*PLANNED, OTHER_CHANGE)


@dataclass(frozen=True)
class Law:
    """The learning curve of a side study, and how it was chosen.

    errors: mean absolute errors of left-out gaps and mean recalls, by set of terms; that with the
    least sum is chosen. gaps: of the law and observed, float64[R,2] of R classifiers;
    compositions: of each; fewest: images of the smallest pool.
    """

    curve: LearningCurve
    errors: dict[tuple[str, ...], tuple[float, float]]
    gaps: np.ndarray
    compositions: tuple[str, ...]
    fewest: float

    @property
    def classifiers(self) -> int:
        """How many."""
        return len(self.gaps)


@dataclass(frozen=True)
class Half:
    """What one half of a study says of generated images.

    name: the fields in which it differs from the other; start, factor: an image of generation g
    counts start * factor^g real ones, under every rule; interval: of start, over seeds; mixing: see
    `drift.CopyLoop`; missing: intercept and slope of the gap over the share of subgroups without
    images; changes: mean change of the gap by generation.
    """

    name: str
    start: float
    interval: tuple[float, float]
    factor: float
    mixing: float
    missing: np.ndarray
    changes: np.ndarray

    def quality(self, generations: int) -> list[float]:
        """What an image counts in real ones, of each generation."""
        return [self.start * self.factor**g for g in range(generations)]


@dataclass(frozen=True)
class CountsForecast:
    """One loop arm of one half, forecast by the other.

    seeds: of the complete runs, S; gaps: observed, float64[S,G]; predicted: by name of the forecast
    or rival, of that shape, NaN in generation 0, from which the forecasts start; fewest: real
    images that the smallest pool counts as.
    """

    arm: Arm
    fitted_on: Half
    seeds: list[int]
    gaps: np.ndarray
    predicted: dict[str, np.ndarray]
    fewest: float

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
    # Runs that branch from one generation 0 repeat its classifier.
    rows = list({row[RECALL].tobytes(): row for row in rows}.values())
    # Tables of several shapes are of several data sets, which no one law holds for.
    if len({table(row, RECALL).shape for row in rows}) != 1:
        return None
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
    seen = [learning_curve.observed_gap(one) for one in recall]
    expected = [float(curve.gap(n, np.isfinite(r))) for n, r in zip(counts, recall, strict=True)]
    gaps = np.stack([expected, seen], axis=1)
    return Law(curve, errors, gaps, tuple(labels), float(counts.sum(axis=(1, 2)).min()))


def _composition(row: Row) -> str:
    """The fields of the bias: rows of one composition differ in seed and number of images."""
    prefix = f"{DATA}bias."
    fields = {
        name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)
    }
    kind = fields.pop("kind", "")
    # A kind that has a field of its own name reads no other.
    words = [f"{name} {value}" for name, value in fields.items() if kind in (name, "")]
    return ", ".join(words) or kind or "one composition"


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
                continue
            loops.append(arm)
            lost = len(arm.runs) - len(_runs(arm))
            if lost:
                reasons.append(f"{arm.name}: {lost} incomplete runs are not in the forecast.")
    by_half: dict[tuple[tuple[str, str], ...], list[Arm]] = {}
    for arm in loops:
        by_half.setdefault(_half_of(arm), []).append(arm)
    fitted = {key: _fit_half(key, members, found) for key, members in by_half.items()}
    made = []
    for key, members in by_half.items():
        others = [half for other, half in fitted.items() if other != key and half is not None]
        if len(others) == 1:
            made += [_forecast(arm, members, others[0], found) for arm in members]
            continue
        why = "no other half" if not others else "more than one other part"
        reasons += [
            f"{arm.name}: no forecast from counts: {why} of the study has loops of generated "
            "images alone and a classification accuracy score within reach of the law."
            for arm in members
        ]
    reasons += [line for one in made if (line := _extrapolated(one, found))]
    return made, reasons


def _extrapolated(one: CountsForecast, found: Law) -> str:
    """A sentence where the law is used below the smallest pool that it was fitted to."""
    if one.fewest > found.fewest - 1:
        return ""
    return (
        f"{one.arm.name}: the smallest pool counts as {one.fewest:.0f} real images, that of the "
        f"side study has {found.fewest:.0f}: there the law is extrapolated."
    )


def _half_of(arm: Arm) -> tuple[tuple[str, str], ...]:
    """The fields of the data in which loops differ."""
    return tuple((name, value) for name, value in arm.fields.items() if name.startswith(DATA))


def _obstacle(arm: Arm) -> str:
    """The reason why an arm has no forecast; empty where it has one."""
    if arm.last < 1:
        return "no run has two generations"
    if arm.setting("diffusion.condition_on") != "label":
        return "its generators are conditioned on the group, which fixes the composition"
    if arm.rule is None or not arm.rule.weighted or arm.setting("pool.match_group") == "True":
        return "its pool rule does not say how many images it takes of which set"
    if not _runs(arm):
        return "no run has counts and recalls of subgroups in all generations"
    return ""


def _runs(arm: Arm) -> list[list[Row]]:
    """The runs that have all that a forecast needs, up to the generation in which most end."""
    found = []
    for rows in arm.runs.values():
        run = [rows[g] for g in range(arm.last + 1) if g in rows]
        if len(run) == arm.last + 1 and all(map(_usable, run)):
            found.append(run)
    return found


def _usable(row: Row) -> bool:
    needed = (RECALL, "pool.subgroup_counts", "generated.subgroup_counts", column(GAP))
    return all(name in row for name in needed) and bool(np.isfinite(row[column(GAP)]))


def _fit_half(key: tuple[tuple[str, str], ...], arms: Sequence[Arm], found: Law) -> Half | None:
    """What the loops of generated images alone say; None where the half has none with a CAS."""
    runs = [run for arm in arms if _generated_alone(arm) for run in _runs(arm)]
    starts, slopes, shares, gaps = [], [], [], []
    for run in runs:
        known = _known(run)
        sets = [table(row, "generated.subgroup_counts") for row in run[:-1]]
        cas = run[0].get(column("cas"), np.nan)
        start = np.log(learning_curve.quality(found.curve, sets[0], cas, known))
        if not np.isfinite(start):
            continue
        starts.append(start)
        # The pool of generation g+1 is what generation g made.
        for g, (made, row) in enumerate(zip(sets, run[1:], strict=True)):
            q = learning_curve.quality(found.curve, made, row[column("accuracy")], known)
            if g and np.isfinite(q):
                slopes.append((g, np.log(q) - start))
        shares += [_missing(row) for row in run]
        gaps.append([row[column(GAP)] for row in run])
    if not starts:
        return None
    ages, falls = np.array(slopes).T if slopes else (np.zeros(1), np.zeros(1))
    # Through the origin: generation 0 has `start`.
    fall = ages @ falls / max(ages @ ages, 1)
    low, high = sign_test.interval(np.array(starts), 0.95)
    courses = np.array([gap[: min(map(len, gaps))] for gap in gaps])
    return Half(
        name=", ".join(f"{field.rsplit('.', 1)[-1]} {value}" for field, value in key)
        or "all loops",
        start=float(np.exp(np.mean(starts))),
        interval=(float(np.exp(low)), float(np.exp(high))),
        factor=float(np.exp(fall)),
        mixing=_mixing([row for run in runs for row in run]),
        missing=_line(shares, np.concatenate(gaps)),
        changes=(courses - courses[:, :1]).mean(axis=0),
    )


def _generated_alone(arm: Arm) -> bool:
    """Whether the pools of its later generations are the latest generated set and nothing else."""
    assert arm.rule is not None  # `_obstacle` left out arms without it
    sizes = pool_rules.Sizes(real=1.0, generated=1.0)
    *earlier, latest = arm.rule.weights(pool_section(arm), 2, sizes)
    return not any(earlier) and latest == 1


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


def _line(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> np.ndarray:
    """Intercept and slope float64[2]; a constant where x does not vary."""
    if np.ptp(x) == 0:
        return np.array([np.mean(y), 0.0])
    slope, intercept = np.polyfit(x, y, 1)
    return np.array([intercept, slope])


def _forecast(arm: Arm, half: Sequence[Arm], fitted_on: Half, found: Law) -> CountsForecast:
    runs = _runs(arm)
    gaps = np.array([[row[column(GAP)] for row in run] for run in runs])
    predicted = {
        DRIFT: np.array([_from_drift(arm, run, fitted_on, found) for run in runs]),
        OBSERVED: np.array([_from_pools(arm, run, fitted_on, found) for run in runs]),
        MIXED: np.array([_with_mixing(arm, run, fitted_on, found) for run in runs]),
        NO_CHANGE: np.repeat(gaps[:, :1], gaps.shape[1], axis=1),
    }
    aligned = runs[0][0]["pool.aligned_counts"] > 0
    if aligned.any():
        # Fitted to the forecast loops themselves, which is an advantage.
        shares = np.array([[_aligned(row, aligned) for row in run] for run in runs])
        intercept, slope = _line(shares.ravel(), gaps.ravel())
        predicted[ALIGNED] = intercept + slope * shares
    shares = np.array([[_missing(row) for row in run] for run in runs])
    predicted[MISSING] = fitted_on.missing[0] + fitted_on.missing[1] * shares
    if _generated_alone(arm) and len(fitted_on.changes) >= gaps.shape[1]:
        predicted[OTHER_CHANGE] = gaps[:, :1] + fitted_on.changes[None, : gaps.shape[1]]
    for values in predicted.values():
        values[:, 0] = np.nan
    fewest = min(float(pool.sum()) for run in runs for pool in _pools(arm, run, fitted_on))
    seeds = [run[0]["seed"] for run in runs]
    return CountsForecast(arm, fitted_on, seeds, gaps, predicted, fewest)


def _aligned(row: Row, classes: np.ndarray) -> float:
    """The aligned share of the pool, over the classes bool[C] that have an aligned group."""
    return float(row["pool.aligned_counts"].sum() / row["pool.class_counts"][classes].sum())


def _copy_loop(arm: Arm, run: Sequence[Row], mixing: float = 0.0) -> drift.CopyLoop:
    """Copies of a run that know its real images, and how many are requested."""
    first = run[0]
    real = table(first, f"{real_set(first)}.subgroup_counts")
    count = int(first["generated.class_counts"].sum())
    reserve = "reserve.subgroup_counts"
    return drift.CopyLoop(
        pool=pool_section(arm),
        real=real,
        generated=np.tile(controls.requested(real, count), (len(run), 1)),
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
    return found.curve.gap(_pools(arm, run, half), _known(run))


def _pools(arm: Arm, run: Sequence[Row], half: Half) -> np.ndarray:
    """What the pools of a run count as in real images, float64[G,C,G]."""
    quality = half.quality(len(run))
    sets = [
        q * table(row, "generated.subgroup_counts") for q, row in zip(quality, run, strict=True)
    ]
    loop = _copy_loop(arm, run)
    return np.stack([drift.expected_pool(loop, g, sets[:g]) for g in range(len(run))])


def _known(run: Sequence[Row]) -> np.ndarray:
    """bool[C,G]: subgroups with a test image."""
    return np.isfinite(table(run[0], RECALL))


def comparisons(made: Sequence[CountsForecast]) -> list[Comparison]:
    """Returns the forecasts from drift against each rival, with joint tests.

    Of each forecast, the planned rivals on loops that keep no real images are one family, on loops
    that keep them another; rivals that were not planned are families of their own.
    """
    found = []
    unplanned = tuple(name for name in RIVALS if name not in PLANNED)
    for forecast, rivals, keeps in itertools.product(
        (DRIFT, MIXED), (PLANNED, unplanned), (False, True)
    ):
        family = [
            (one, rival)
            for one in made
            if one.arm.keeps_real == keeps
            for rival in rivals
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
