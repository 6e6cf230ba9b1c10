"""Did the loop change the bias? The tested answers, and the sentences that claim no more than they do."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from selfloop_jax.measure import verdict
from selfloop_jax.report.arms import Arm, control_of
from selfloop_jax.report.metrics import PANELS, text
from selfloop_jax.report.rows import VERDICT
from selfloop_jax.report.tables import Table

_NAMES = {metric.key: metric.name for panel in PANELS for metric in panel.metrics}
SMALLER_IS_BIASED = ("worst_group_accuracy", "worst_subgroup_accuracy", "disparate_impact")


@dataclass(frozen=True)
class Finding:
    """One metric of one loop held against one control; `result` as `measure.verdict.verdicts` gives it."""

    arm: Arm
    metric: str
    control: str
    changes: tuple[np.ndarray, np.ndarray]  # float64[S] each, of the loop and of its control
    result: dict


@dataclass(frozen=True)
class Plan:
    """What the config fixed beforehand."""

    control: str
    metrics: tuple[str, ...]
    margin: float
    alpha: float


def plan(arm: Arm) -> Plan | None:
    """What was fixed for an arm; None in runs that say nothing of it."""
    row = next(iter(next(iter(arm.runs.values())).values()))
    told = {name.removeprefix(VERDICT): value for name, value in row.items() if name.startswith(VERDICT)}
    if not {"control", "metrics", "margin", "alpha"} <= told.keys():
        return None
    return Plan(told["control"], tuple(told["metrics"].split()), float(told["margin"]), float(told["alpha"]))


def findings(arms: Sequence[Arm]) -> list[Finding]:
    """Every loop that has its planned control, one family of metrics each."""
    found = []
    for arm in arms:
        fixed = plan(arm)
        control = fixed and arm.control == "none" and control_of(arm, arms, fixed.control)
        if control:
            found += held_against(arm, control, fixed)
    return found


def held_against(arm: Arm, control: Arm, fixed: Plan) -> list[Finding]:
    """The contrasts of one loop and one control over the seeds of the loop, tested.

    A seed that has no contrast counts as dropped: it may lack it for what the loop did.
    """
    both = {metric: changes(arm, control, f"metrics.{metric}") for metric in fixed.metrics}
    signs = {metric: -1 if metric.startswith(SMALLER_IS_BIASED) else 1 for metric in fixed.metrics}
    contrasts = {m: signs[m] * (loop - other) for m, (loop, other) in both.items()}
    margins = dict.fromkeys(contrasts, fixed.margin) if fixed.margin else None
    results = verdict.verdicts(contrasts, margins, fixed.alpha)
    return [Finding(arm, m, control.control, both[m], result) for m, result in results.items()]


def changes(arm: Arm, control: Arm, column: str) -> tuple[np.ndarray, np.ndarray]:
    """b(G) - b(0) of each seed of the loop, in the loop and in its control; NaN where a run lacks an end.

    G is the generation in which most of the loop's runs end.
    """
    last = Counter(max(rows) for rows in arm.runs.values())
    reached = max(last, key=lambda g: (last[g], g))
    loop, other = (
        [_change(one, seed, column, reached) for seed in sorted(arm.seeds)] for one in (arm, control)
    )
    return np.array(loop), np.array(other)


def _change(arm: Arm, seed: int, column: str, last: int) -> float:
    """The change from generation 0 to `last` in the arm's run of that seed."""
    for own, rows in zip(arm.seeds, arm.runs.values(), strict=True):
        if own == seed:
            ends = [float(rows.get(g, {}).get(column, math.nan)) for g in (0, last)]
            return ends[1] - ends[0]
    return math.nan


def metric_name(metric: str) -> str:
    """A metric as people read it."""
    return _NAMES.get(metric, metric.replace("_", " "))


def in_a_sentence(metric: str) -> str:
    """`equal_opportunity_difference_mean` is the mean equal opportunity difference."""
    words = metric.split("_")
    which = [words.pop()] if words[-1] in ("mean", "max", "min") else []
    return " ".join([*which, *words])


def sentences(found: Sequence[Finding]) -> list[str]:
    """What the test says of each finding, in its own words, and what loop and control did by themselves."""
    told = []
    for finding in found:
        loop, control = map(_mean, finding.changes)
        result = f"{finding.result['verdict']}; {finding.result['reason']}"
        told.append(f"{_subject(finding)}: {result} Loop: {loop:+.3f}, control: {control:+.3f}.")
    return told


def _subject(finding: Finding) -> str:
    return f"{finding.arm.name}, {in_a_sentence(finding.metric)}, against {finding.control}"


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def table(found: Sequence[Finding]) -> Table:
    """One row per finding: changes, contrast, p-values, power, verdict."""
    rows = []
    for finding in found:
        result, (loop, other) = finding.result, map(_mean, finding.changes)
        rows.append(
            (
                finding.arm.name,
                metric_name(finding.metric),
                result["verdict"],
                finding.control,
                str(result["seeds"]),
                f"{loop:+.3f}",
                f"{other:+.3f}",
                with_interval(result["mean"], result["low"], result["high"]),
                text(result["p_holm"]),
                text(result["p_equivalence_holm"]),
                text(result["smallest_detectable"]),
            )
        )
    header = ("arm", "metric", "verdict", "control", "seeds", "loop", "control's", "contrast")
    caption = (
        "loop, control's: mean change from generation 0 to the last. contrast: their difference seed by "
        "seed, larger is more biased, with its t interval. p: exact sign-flip test, adjusted by Holm over "
        "the metrics of an arm; p of equivalence likewise, for a contrast within the margin. 80 %: the true "
        "contrast that this design finds with 80 % power."
    )
    return Table((*header, "p", "p of equivalence", "80 %"), tuple(rows), caption)


def with_interval(mean: float, low: float, high: float) -> str:
    """A signed number with its interval, where it has one."""
    return f"{mean:+.3f}" if math.isnan(low) else f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
