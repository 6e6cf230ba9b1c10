"""Forecasts of loops from a side study, and their errors against what the loops did.

A *share* is that of the images of a class in the group that the bias ties to the class. Two curves
are fitted to a side study, which has other seeds than the loops: the response of a generator (share
in its pool -> share among its images) and the gap of a classifier over the share in its pool. The
pool rules do the rest; docs/dynamics.md has the derivation. Responses are fitted to single classes
and forecast single classes; the figures show all classes together.
"""

import ast
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from selfloop_jax.analysis.arms import Arm
from selfloop_jax.analysis.numbers import FIELD, SETTING, Row, column
from selfloop_jax.config import PoolConfig, typed
from selfloop_jax.data.pool_rules import POOL_RULES
from selfloop_jax.measure import dynamics

SHARE = "bias_aligned_share"
GAP = "equal_opportunity_difference_mean"

LATER_START = f"{SETTING}diffusion.later.start"

# What a forecast has to beat: the share of the real images in every generation; what the pool rule
# gives with a generator that copies its pool; what generation 0 was seen to have.
RIVALS = ("real", "copy", "naive")
Rivals = dict[str, np.ndarray]


@dataclass(frozen=True)
class Curves:
    """The fitted curves of a side study, and the points that they were fitted to."""

    scratch: dynamics.Response | None  # generators trained from scratch
    fine_tuned: dynamics.Response | None  # generators that start from the previous one
    gap: dynamics.GapCurve
    gaps: np.ndarray  # float[P,2], share and gap of classifiers trained on real images
    gap_spread: float  # standard deviation of the gap over seeds
    points: dict[str, np.ndarray]  # by response float[P,3 or 4]: pool, generated, count[, before]
    generators: dict[str, int]  # by response; each gives one point per class

    def response(self, name: str) -> dynamics.Response | None:
        """Returns the response `scratch` or `fine_tuned`."""
        return self.scratch if name == "scratch" else self.fine_tuned


@dataclass(frozen=True)
class Forecast:
    """One loop arm: observed shares and gaps, float64[S,G], and their forecasts.

    share_rivals, gap_rivals: what needs no side study, by RIVALS, float64 that broadcasts against
    [S,G]. scores: `dynamics.score` by quantity, over the generations after the given one.
    """

    arm: Arm
    shares: np.ndarray
    share: dynamics.Band
    share_rivals: Rivals
    gaps: np.ndarray
    gap: dynamics.Band
    gap_rivals: Rivals
    scores: dict[str, dict[str, float]]


def curves(side: Sequence[Row]) -> Curves | None:
    """Returns the curves of a side study.

    None where it has no aligned groups, or fewer than two levels of bias for the gap curve.
    """
    # A control generates nothing, and without aligned groups there is no share.
    rows = [row for row in side if "generated.aligned_counts" in row]
    rows = [row for row in rows if row["pool.aligned_counts"].any()]
    if len({_level(row) for row in rows}) < 2:
        return None
    by_generation = {(row["run"], row["generation"]): row for row in rows}
    scratch_points = []
    tuned = []  # points of generation 1 with the pool shares of generation 0
    for row in rows:
        before = by_generation.get((row["run"], row["generation"] - 1))
        # Every generation 0 starts from scratch; later ones do so unless they are fine-tuned.
        if row["generation"] == 0 or (before and row[LATER_START] != "previous"):
            scratch_points.append(_points(row))
        # Only generation 1: what its previous generator was expected to generate is known.
        elif row["generation"] == 1 and before:
            tuned.append((_points(row), _points(before)[:, 0]))
    # Runs that branch from one generation 0 share it: it counts once.
    distinct = list({points.tobytes(): points for points in scratch_points}.values())
    points = {"scratch": np.concatenate(distinct), "fine_tuned": np.empty((0, 4))}
    generators = {"scratch": len(distinct), "fine_tuned": 0}
    scratch = _response(points["scratch"])
    if scratch is not None and tuned:
        # What the previous generator was expected to generate, not what it did: the latter has
        # the noise of sampling, which would flatten the fit.
        expected = [np.c_[own, scratch(pool)] for own, pool in tuned]
        points["fine_tuned"] = np.concatenate(expected)
        generators["fine_tuned"] = len(tuned)
    fine_tuned = _response(points["fine_tuned"])
    return Curves(scratch, fine_tuned, *_gap_curve(rows), points, generators)


def _gap_curve(side: Sequence[Row]) -> tuple[dynamics.GapCurve, np.ndarray, float]:
    """The gap curve through the classifiers of generation 0, its points, and their spread."""
    levels: dict[tuple[tuple[str, str], ...], set[tuple[float, float]]] = {}
    for row in side:
        if row["generation"] == 0:
            # A set: runs that branch from one generation 0 repeat its point.
            point = (_share(row, "pool"), row[column(GAP)])
            levels.setdefault(_level(row), set()).add(point)
    by_level = [np.array(sorted(level)) for level in levels.values()]
    points = np.concatenate(by_level)
    # One nominal share per level, so that seeds of a level average.
    means = [level[:, 0].mean() for level in by_level]
    nominal = np.repeat(means, [len(level) for level in by_level])
    curve = dynamics.gap_curve(nominal, points[:, 1])
    residual = points[:, 1] - curve(nominal)[0]
    # One mean is estimated per level.
    freedom = max(len(points) - len(by_level), 1)
    return curve, points, float(np.sqrt((residual**2).sum() / freedom))


def _level(row: Row) -> tuple[tuple[str, str], ...]:
    """The data fields of a run: runs of one level of bias differ only in their seed."""
    return tuple((name, value) for name, value in row.items() if name.startswith(f"{FIELD}data."))


def _response(points: np.ndarray) -> dynamics.Response | None:
    try:
        return dynamics.fit_response(*points.T)
    except ValueError:  # too few points, or too similar ones
        return None


def _points(row: Row) -> np.ndarray:
    """float[C,3] of classes with an aligned group: pool share, generated share, images."""
    counts = row["generated.class_counts"]
    # A count of 0 in the pool marks a class without an aligned group.
    kept = (row["pool.aligned_counts"] > 0) & (counts > 0)
    return np.stack([_by_class(row, "pool"), _by_class(row, "generated"), counts], axis=1)[kept]


def _by_class(row: Row, place: str) -> np.ndarray:
    """Aligned share float[C] in the pool or the generated set; NaN for absent classes."""
    counts = row[f"{place}.class_counts"]
    undefined = np.full(len(counts), np.nan)
    return np.divide(row[f"{place}.aligned_counts"], counts, out=undefined, where=counts > 0)


def _share(row: Row, place: str, kept: np.ndarray | None = None) -> float:
    """Aligned share of all `kept` classes together."""
    aligned = row[f"{place}.aligned_counts"]
    counts = row[f"{place}.class_counts"]
    if kept is None:
        kept = np.full(len(counts), True)
    return float(aligned[kept].sum() / counts[kept].sum())


def forecasts(arms: Sequence[Arm], found: Curves) -> tuple[list[Forecast], list[str]]:
    """Returns a forecast per loop that allows one, and for the other loops the reason why not."""
    made = []
    reasons = []
    for arm in arms:
        if not arm.is_loop:
            continue
        reason = _obstacle(arm, found)
        if reason:
            reasons.append(f"{arm.name}: no forecast: {reason}.")
        else:
            made.append(_forecast(arm, found))
    return made, reasons


def _obstacle(arm: Arm, found: Curves) -> str:
    """The reason why a loop has no forecast; empty where it has one."""
    runs = arm.complete_runs
    if not runs or len(arm.generations) < 2:
        return "no run of two generations or more is complete"
    if not runs[0][0]["pool.aligned_counts"].any():
        return "no class has an aligned group"
    if arm.setting("diffusion.condition_on") != "label":
        return "its generators are conditioned on the group, which fixes the composition"
    rule = POOL_RULES.get(arm.setting("pool.rule"))
    if rule is None or not rule.predictable:
        return "its pool rule does not say how shares follow"
    if found.scratch is None or (_fine_tuned(arm) and found.fine_tuned is None):
        return "the side study has too few generators of its kind"
    return ""


def _fine_tuned(arm: Arm) -> bool:
    """Whether the later generators of the arm start from the previous one."""
    return arm.setting("diffusion.later.start") == "previous"


def _forecast(arm: Arm, found: Curves) -> Forecast:
    runs = arm.complete_runs
    responses = _responses(arm, found)
    copying = (dynamics.COPY, dynamics.COPY)
    classes = [run[0]["pool.aligned_counts"] > 0 for run in runs]  # with an aligned group
    pairs = list(zip(runs, classes, strict=True))

    # All classes together, float[S,G], and single classes, float[S*C,G].
    shares = np.array([[_share(row, "generated", kept) for row in run] for run, kept in pairs])
    by_class = np.concatenate([_classes(run, "generated", kept) for run, kept in pairs])
    gaps = np.array([[row[column(GAP)] for row in run] for run in runs])
    pool, share = _predicted(arm, pairs, responses, whole=True)
    _, share_by_class = _predicted(arm, pairs, responses, whole=False)
    copied_pool, copied = _predicted(arm, pairs, copying, whole=True)
    _, copied_by_class = _predicted(arm, pairs, copying, whole=False)
    real = np.array([[_share(run[0], real_set(run[0]), kept)] for run, kept in pairs])
    real_by_class = np.concatenate(
        [_classes(run[:1], real_set(run[0]), kept) for run, kept in pairs]
    )
    gap = _gap_band(pool, found)
    share_rivals = {"real": real, "copy": copied.mean, "naive": shares[:, :1]}
    by_class_rivals = {
        "real": real_by_class,
        "copy": copied_by_class.mean,
        "naive": by_class[:, :1],
    }
    gap_rivals = {
        "real": _nearest_gap(real, found),
        "copy": _nearest_gap(copied_pool.mean, found),
        "naive": gaps[:, :1],
    }
    scores = {
        "generated share": _score(shares, share, share_rivals),
        "generated share, by class": _score(by_class, share_by_class, by_class_rivals),
        "gap": _score(gaps, gap, gap_rivals),
    }
    return Forecast(arm, shares, share, share_rivals, gaps, gap, gap_rivals, scores)


def _classes(run: Sequence[Row], place: str, kept: np.ndarray) -> np.ndarray:
    """Aligned shares float[C,G] of the `kept` classes."""
    return np.array([_by_class(row, place)[kept] for row in run]).T


Responses = tuple[dynamics.Response, dynamics.Response | None]  # from scratch, and later ones


def _responses(arm: Arm, found: Curves) -> Responses:
    """The responses of generation 0 and of later generators, where those differ."""
    assert found.scratch is not None  # `_obstacle` left out arms without it
    return found.scratch, found.fine_tuned if _fine_tuned(arm) else None


def _predicted(
    arm: Arm, pairs: Sequence[tuple[list[Row], np.ndarray]], responses: Responses, *, whole: bool
) -> tuple[dynamics.Band, dynamics.Band]:
    """Forecast shares in the pools and among the generated images, float[S,G] or float[S*C,G]."""
    bands = [_predict(arm, run, kept, responses, whole=whole) for run, kept in pairs]
    pools, generated = zip(*bands, strict=True)
    return _stacked(pools), _stacked(generated)


def _stacked(bands: Sequence[dynamics.Band]) -> dynamics.Band:
    """Bands [G] or [G,C] of several runs as one of [runs,G] or [runs*C,G]."""
    ends = []
    for name in ("mean", "low", "high"):
        ends.append(np.concatenate([np.atleast_2d(getattr(band, name).T) for band in bands]))
    return dynamics.Band(*ends)


def _predict(
    arm: Arm, run: list[Row], kept: np.ndarray, responses: Responses, *, whole: bool
) -> tuple[dynamics.Band, dynamics.Band]:
    """Forecast shares in the pools and among the generated images of one run.

    float[G] of all `kept` classes together where `whole`, else float[G,C].
    """
    first = run[0]
    place = real_set(first)
    n_real = first[f"{place}.class_counts"][kept]
    count = first["generated.class_counts"][kept].sum()
    section = pool_section(arm)
    real = _by_class(first, place)[kept]
    reserve = None
    if "reserve.class_counts" in first:
        # Of a class without images in the reserve nothing new can come.
        reserve = _by_class(first, "reserve")[kept]
        reserve = np.where(np.isnan(reserve), real, reserve)
    loop = dynamics.Loop(
        pool=section,
        real=real,
        sizes=dynamics.expected_sizes(n_real, count),
        response=responses[0],
        later=responses[1],
        reserve=reserve,
    )
    return dynamics.predict(
        loop,
        generations=len(run),
        key_path=(first["seed"], "prediction", section.rule),
        first=_by_class(first, "generated")[kept],
        # Class sizes of the real set weight the classes, as under sample.request = real.
        weights=n_real if whole else None,
    )


def real_set(row: Row) -> str:
    """Returns the place of a row's counts of real images: `train`, or `pool` of generation 0.

    A rule may take a part of the training images in generation 0 already; an earlier version wrote
    only what was in the pool.
    """
    return "train" if "train.class_counts" in row else "pool"


def pool_section(arm: Arm) -> PoolConfig:
    """Returns the section `pool` of an arm's config, with all its fields."""
    values = {}
    for declared in dataclasses.fields(PoolConfig):
        text = arm.setting(f"pool.{declared.name}")
        # A table of an earlier version lacks newer fields, which then have their defaults.
        if text:
            values[declared.name] = text if declared.type is str else ast.literal_eval(text)
    return typed({"pool": values}).pool


def _gap_band(pool: dynamics.Band, found: Curves) -> dynamics.Band:
    """Gap over the forecast share, with the spread of single runs.

    NaN where the share is outside the range of measured shares. An end of its interval that is
    outside is replaced by the nearest measured share.
    """
    mean, error = found.gap(pool.mean)
    # Outside these two shares no gap was measured.
    measured = found.gap.share[[0, -1]]
    one = found.gap(np.clip(pool.low, *measured))[0]
    other = found.gap(np.clip(pool.high, *measured))[0]
    # The curve's own error and the spread of a single run are independent.
    half = 1.96 * np.hypot(np.nan_to_num(error), found.gap_spread)
    return dynamics.Band(mean, np.minimum(one, other) - half, np.maximum(one, other) + half)


def _nearest_gap(share: np.ndarray, found: Curves) -> np.ndarray:
    """The gap over a share, or over the nearest one that was measured."""
    return found.gap(np.clip(share, *found.gap.share[[0, -1]]))[0]


def _score(observed: np.ndarray, band: dynamics.Band, rivals: Rivals) -> dict[str, float]:
    """`dynamics.score` over the generations after the given one, with the rivals' errors."""
    later = dynamics.Band(band.mean[:, 1:], band.low[:, 1:], band.high[:, 1:])
    whole = {name: np.broadcast_to(values, observed.shape) for name, values in rivals.items()}
    return dynamics.score(
        observed[:, 1:], later, {name: values[:, 1:] for name, values in whole.items()}
    )


RESPONSE = (
    "Response of the generators of the side study: logit(generated share) = a + b logit(pool share)"
    ", for fine-tuned ones + c logit(expected share of the previous generator)."
)


def response_formulas(found: Curves) -> str:
    """Returns the responses as formulas, with 95 % intervals of their coefficients."""
    parts = [RESPONSE]
    for name, label in (("scratch", "From scratch a, b"), ("fine_tuned", "Fine-tuned a, b, c")):
        response = found.response(name)
        if response is None:
            continue
        errors = 1.96 * np.sqrt(np.diag(response.covariance))
        pairs = zip(response.coefficients, errors, strict=True)
        values = ", ".join(f"{value:+.2f} ± {error:.2f}" for value, error in pairs)
        generators = found.generators[name]
        points = len(found.points[name])
        parts.append(f"{label} = {values} ({generators} generators, {points} classes).")
    return " ".join(parts)
