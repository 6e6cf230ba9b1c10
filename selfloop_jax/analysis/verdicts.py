"""Verdicts: what each loop did to the bias, by contrast with a control, tested over seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from selfloop_jax.analysis.arms import Arm, control_of
from selfloop_jax.analysis.numbers import VERDICT, Row
from selfloop_jax.config import Config, check_choice
from selfloop_jax.data.controls import BY_RULE, CONTROLS, Estimand, by_default
from selfloop_jax.errors import UsageError
from selfloop_jax.measure import sign_test
from selfloop_jax.measure.metrics import METRICS

UNDECIDED = "undecided"
NO_CHANGE = "no change"


def check(config: Config) -> None:
    """Raises UsageError where METRICS does not have a planned metric as one of bias."""
    biases = [key for key, metric in METRICS.items() if metric.is_bias]
    for key in config.verdict.metrics:
        check_choice("verdict.metrics", key, biases)


@dataclass(frozen=True)
class AnalysisPlan:
    """The section `verdict` of the config, fixed before the runs."""

    control: str
    metrics: tuple[str, ...]
    margin: float
    relative_margin: bool
    alpha: float

    def __str__(self) -> str:
        """The fields in words, as the config has them."""
        metrics = " ".join(self.metrics)
        relative = " of generation 0" if self.relative_margin else ""
        return (
            f"control {self.control}, metrics {metrics}, margin {self.margin:g}{relative}, "
            f"alpha {self.alpha:g}"
        )


def plan(arm: Arm) -> AnalysisPlan | None:
    """Returns the analysis plan of an arm, that of its first run; None for runs without one."""
    return _plan(arm.first)


def plans(arm: Arm) -> list[AnalysisPlan]:
    """Returns the different plans of the runs of an arm, in the order of the runs."""
    found = [_plan(row) for rows in arm.runs.values() for row in rows.values()]
    return list(dict.fromkeys(one for one in found if one is not None))


def _plan(row: Row) -> AnalysisPlan | None:
    fields = {}
    for name, value in row.items():
        if name.startswith(VERDICT):
            fields[name.removeprefix(VERDICT)] = value
    if not {"control", "metrics", "margin", "alpha"} <= fields.keys():
        return None
    return AnalysisPlan(
        control=fields["control"],
        metrics=tuple(fields["metrics"].split()),
        margin=float(fields["margin"]),
        relative_margin=fields.get("relative_margin") == "True",
        alpha=float(fields["alpha"]),
    )


def planned_control(arm: Arm, fixed: AnalysisPlan) -> str:
    """Returns the kind of control that the plan judges a loop by."""
    if fixed.control != BY_RULE:
        return fixed.control
    return by_default(arm.keeps_real)


@dataclass(frozen=True)
class Summary:
    """The mean of a contrast over seeds, its t interval, and a p-value."""

    mean: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Finding:
    """One metric of one loop against one control.

    All contrasts are oriented: larger is more biased. planned: whether the plan judges the loop by
    this control; the verdicts on the others are of secondary interest. seeds, dropped: with the
    contrast and without. contrast: change of the loop since generation 0 minus that of the control;
    its p is adjusted jointly over the family, `p_holm` over the metrics of the arm. first, later:
    the part of the contrast that generation 1 has, and the part that comes after it. above_null:
    the contrast of the gaps' excess over the median of their nulls. rise: the loop's own change.
    margin: mean over seeds; NaN, as p_beyond and p_equivalence, where none was fixed. family: how
    many contrasts are tested together; simultaneous: the interval of the contrast that holds for
    all of them at once (Sidak). seeds_needed: about how many would decide it, were the true
    contrast the observed one; infinite above 100.
    """

    arm: Arm
    metric: str
    control: str
    estimand: Estimand
    planned: bool
    loop_changes: np.ndarray  # float64[S], not oriented
    control_changes: np.ndarray  # float64[S], not oriented
    contrasts: np.ndarray  # float64[S]
    dropped: int
    contrast: Summary
    p_holm: float
    first: Summary
    later: Summary
    above_null: float
    rise: Summary
    margin: float
    p_beyond: float
    p_equivalence: float
    smallest_detectable: float
    family: int
    simultaneous: tuple[float, float]
    seeds_needed: float
    verdict: str = ""
    reason: str = ""

    @property
    def seeds(self) -> int:
        """How many seeds have a contrast."""
        return len(self.contrasts) - self.dropped


@dataclass(frozen=True)
class _Pair:
    """The numbers of one metric, of a loop and a control over the same seeds."""

    arm: Arm
    metric: str
    control: Arm
    fixed: AnalysisPlan
    seeds: tuple[int, ...]
    sign: int
    loop: np.ndarray  # float64[S,3]: generation 0, generation 1, the last
    other: np.ndarray  # float64[S,3]
    loop_null: np.ndarray  # float64[S,3]: medians of the nulls
    other_null: np.ndarray  # float64[S,3]

    @property
    def planned(self) -> bool:
        return self.control.control == planned_control(self.arm, self.fixed)

    @property
    def contrasts(self) -> np.ndarray:
        """float64[S,3], oriented: of each generation, the loop's change minus the control's."""
        change = self.loop - self.loop[:, :1] - (self.other - self.other[:, :1])
        return self.sign * change

    @property
    def rise(self) -> np.ndarray:
        """float64[S], oriented: the loop's own change."""
        return self.sign * (self.loop[:, -1] - self.loop[:, 0])

    @property
    def margins(self) -> np.ndarray:
        """float64[S]."""
        if self.fixed.relative_margin:
            return self.fixed.margin * np.abs(self.loop[:, 0])
        return np.full(len(self.seeds), self.fixed.margin)


def findings(arms: Sequence[Arm]) -> list[Finding]:
    """Returns the tested metrics of every loop against each of its controls.

    The planned contrasts of all loops are one family of tests; those with each other kind of
    control are a family of their own.
    """
    families: dict[str, list[_Pair]] = {}
    for arm in arms:
        fixed = plan(arm)
        if fixed is None or not arm.is_loop:
            continue
        for kind in CONTROLS:
            control = control_of(arm, arms, kind)
            if control is None:
                continue
            for metric in fixed.metrics:
                pair = _pair(arm, control, metric, fixed)
                families.setdefault("planned" if pair.planned else kind, []).append(pair)
    found: list[Finding] = []
    # The planned family first, whatever the order of the arms.
    for name in sorted(families, key=lambda name: name != "planned"):
        found += _tested(families[name])
    return found


def without_control(arms: Sequence[Arm]) -> list[tuple[Arm, str]]:
    """Returns the loops that lack the control that their plan judges them by, with its kind."""
    lacking = []
    for arm in arms:
        fixed = plan(arm)
        if fixed is not None and arm.is_loop:
            kind = planned_control(arm, fixed)
            if control_of(arm, arms, kind) is None:
                lacking.append((arm, kind))
    return lacking


def _pair(arm: Arm, control: Arm, metric: str, fixed: AnalysisPlan) -> _Pair:
    seeds = tuple(sorted(arm.seeds))
    generations = (0, 1, arm.last)
    return _Pair(
        arm,
        metric,
        control,
        fixed,
        seeds,
        _towards_bias(metric),
        loop=_values(arm, metric, seeds, generations),
        other=_values(control, metric, seeds, generations),
        loop_null=_values(arm, metric, seeds, generations, "null50"),
        other_null=_values(control, metric, seeds, generations, "null50"),
    )


def _towards_bias(metric: str) -> int:
    """1 where a larger value of a metric is more bias, -1 where a smaller one is."""
    if metric not in METRICS:
        raise UsageError(
            f"verdict.metrics: {metric!r} is not in METRICS; the direction of its bias is unknown"
        )
    return -1 if METRICS[metric].better == "higher" else 1


def changes(arm: Arm, control: Arm, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns b(G) - b(0) of each seed of the loop, in the loop and in its control.

    G is the generation in which most runs of the loop end. NaN where a run lacks either end.
    """
    seeds = sorted(arm.seeds)
    ends = (0, arm.last)
    loop, other = (_values(one, key, seeds, ends) for one in (arm, control))
    return loop[:, 1] - loop[:, 0], other[:, 1] - other[:, 0]


def _values(
    arm: Arm, key: str, seeds: Sequence[int], generations: Sequence[int], part: str = "value"
) -> np.ndarray:
    """float64[S,len(generations)] of the arm's runs of these seeds; NaN where there is none."""
    series = arm.series(key, part)
    row_of = {seed: i for i, seed in enumerate(arm.seeds)}
    column_of = {generation: j for j, generation in enumerate(arm.generations)}
    values = np.full((len(seeds), len(generations)), np.nan)
    for i, seed in enumerate(seeds):
        for j, generation in enumerate(generations):
            if seed in row_of and generation in column_of:
                values[i, j] = series[row_of[seed], column_of[generation]]
    return values


def _tested(family: Sequence[_Pair]) -> list[Finding]:
    """The findings of one family, in its order."""
    seeds = sorted({seed for pair in family for seed in pair.seeds})

    def table(of_pair: Sequence[np.ndarray]) -> np.ndarray:
        """float64[M,S] of all seeds; NaN where a pair lacks the seed."""
        values = np.full((len(family), len(seeds)), np.nan)
        for row, pair, numbers in zip(values, family, of_pair, strict=True):
            row[[seeds.index(seed) for seed in pair.seeds]] = numbers
        return values

    def joint(of_pair: Sequence[np.ndarray]) -> np.ndarray:
        return sign_test.joint_sign_flip(table(of_pair))

    contrasts = [pair.contrasts for pair in family]
    last = [of_generation[:, 2] for of_generation in contrasts]
    margins = table([pair.margins for pair in family])
    p = {
        "contrast": joint(last),
        "first": joint([of_generation[:, 1] for of_generation in contrasts]),
        "later": joint([of_generation[:, 2] - of_generation[:, 1] for of_generation in contrasts]),
        "rise": joint([pair.rise for pair in family]),
        "beyond": sign_test.beyond(table(last), margins),
        "equivalence": sign_test.equivalent(table(last), margins),
        "holm": _holm(family),
    }
    found = []
    for i, pair in enumerate(family):
        of_pair = {name: float(values[i]) for name, values in p.items()}
        found.append(_finding(pair, of_pair, len(family)))
    return found


def _holm(family: Sequence[_Pair]) -> np.ndarray:
    """p of every pair, adjusted over the metrics of its arm alone (Holm 1979)."""
    raw = np.array([sign_test.sign_flip(_known(pair.contrasts[:, -1])) for pair in family])
    adjusted = np.full(len(family), math.nan)
    for key in {(id(pair.arm), id(pair.control)) for pair in family}:
        places = [i for i, x in enumerate(family) if (id(x.arm), id(x.control)) == key]
        adjusted[places] = sign_test.holm(raw[places])
    return adjusted


def _known(d: np.ndarray) -> np.ndarray:
    return d[~np.isnan(d)]


def _mean(d: np.ndarray) -> float:
    known = _known(d)
    return float(np.mean(known)) if len(known) else math.nan


def _summary(d: np.ndarray, alpha: float, p: float) -> Summary:
    return Summary(_mean(d), *sign_test.interval(_known(d), 1 - alpha), p)


def _finding(pair: _Pair, p: dict[str, float], family: int) -> Finding:
    """The finding of a pair in a family of that size, with its p-values: see `_tested`."""
    alpha = pair.fixed.alpha
    contrasts = pair.contrasts
    known = _known(contrasts[:, 2])
    has_margin = pair.fixed.margin > 0
    null = pair.loop_null - pair.loop_null[:, :1] - (pair.other_null - pair.other_null[:, :1])
    dropped = len(contrasts) - len(known)
    margin = _mean(pair.margins) if has_margin else math.nan
    mean = abs(_mean(known))
    # What is left to show: on which side of the margin, or of 0 without one, the contrast lies.
    distance = abs(mean - margin) if has_margin else mean
    found = Finding(
        arm=pair.arm,
        metric=pair.metric,
        control=pair.control.control,
        # A control without generated images has no rule: the loop's says what the contrast means.
        estimand=CONTROLS[pair.control.control].estimand(pair.arm.keeps_real),
        planned=pair.planned,
        loop_changes=pair.loop[:, 2] - pair.loop[:, 0],
        control_changes=pair.other[:, 2] - pair.other[:, 0],
        contrasts=contrasts[:, 2],
        dropped=dropped,
        contrast=_summary(contrasts[:, 2], alpha, p["contrast"]),
        p_holm=p["holm"],
        first=_summary(contrasts[:, 1], alpha, p["first"]),
        later=_summary(contrasts[:, 2] - contrasts[:, 1], alpha, p["later"]),
        above_null=_mean((contrasts - pair.sign * null)[:, 2]),
        rise=_summary(pair.rise, alpha, p["rise"]),
        margin=margin,
        p_beyond=p["beyond"] if has_margin else math.nan,
        p_equivalence=p["equivalence"] if has_margin else math.nan,
        smallest_detectable=sign_test.smallest_detectable(known, 1, alpha),
        family=family,
        simultaneous=sign_test.interval(known, (1 - alpha) ** (1 / family)),
        seeds_needed=sign_test.seeds_needed(known, distance, family, alpha),
    )
    verdict, reason = _decide(found, alpha)
    return replace(found, verdict=verdict, reason=reason + _other_version(pair) + _dropped(dropped))


def _other_version(pair: _Pair) -> str:
    """A part of a sentence where loop and control are of different versions of the program."""
    loop, control = (", ".join(sorted(arm.versions)) for arm in (pair.arm, pair.control))
    if loop == control:
        return ""
    return f"; but the control is of another version of the program ({control}, not {loop})"


def _decide(found: Finding, alpha: float) -> tuple[str, str]:
    """Verdict and reason, without the full stop. A comparison with NaN is false: no such claim."""
    seeds = found.seeds
    least = sign_test.least_seeds(1, alpha)
    if seeds < least:
        return UNDECIDED, f"{_seeds(seeds)}: at least {least} are needed to reach {alpha:g}"
    contrast, estimand = found.contrast, found.estimand
    reason = f"{contrast.mean:+.3g} over {_seeds(seeds)} (joint p = {contrast.p:.3g})"
    margin = f"the margin of {found.margin:.3g}"
    if found.p_equivalence <= alpha:
        return NO_CHANGE, f"{reason}, within {margin} (joint p = {found.p_equivalence:.3g})"
    if contrast.p > alpha:
        missing = "no margin was fixed"
        if found.margin > 0:
            missing = f"not shown to lie within {margin}"
        return UNDECIDED, f"{reason}; {missing}"
    if found.p_beyond > alpha:
        return UNDECIDED, f"{reason}, not shown to exceed {margin}"
    if found.margin > 0:
        reason += f", beyond {margin} (joint p = {found.p_beyond:.3g})"
    more = contrast.mean > 0
    if not estimand.rises:
        return estimand.more if more else estimand.less, reason
    rise = found.rise
    own = f"since generation 0 the loop changed by {rise.mean:+.3g} (joint p = {rise.p:.3g})"
    if rise.p <= alpha and (rise.mean > 0) == more:
        return estimand.more if more else estimand.less, f"{reason}; {own}"
    return estimand.more_alone if more else estimand.less_alone, f"{reason}, but {own}"


def _dropped(count: int) -> str:
    if not count:
        return "."
    return f"; {_seeds(count)} without a value {'was' if count == 1 else 'were'} left out."


def _seeds(count: int) -> str:
    return f"{count} seed" if count == 1 else f"{count} seeds"
