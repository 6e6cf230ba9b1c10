"""Loop against control over seeds: the tested contrasts."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from selfloop_jax.analysis.arms import Arm, control_of
from selfloop_jax.analysis.numbers import VERDICT
from selfloop_jax.config import Config, check_choice
from selfloop_jax.measure import sign_test

# The measured biases that a verdict can be about.
BIASES = (
    "equal_opportunity_difference_mean",
    "equal_opportunity_difference_max",
    "equalized_odds_difference",
    "demographic_parity_difference",
    "maximal_disparity",
    "macro_std",
    "aligned_contrast",
    "disparate_impact_ratio_mean",
    "disparate_impact_ratio_min",
    "worst_group_accuracy",
    "worst_subgroup_accuracy",
)


SMALLER_IS_BIASED = ("worst_group_accuracy", "worst_subgroup_accuracy", "disparate_impact")


def check(config: Config) -> None:
    """Raises UsageError where a verdict is to be about a metric that measures no bias."""
    for metric in config.verdict.metrics:
        check_choice("verdict.metrics", metric, BIASES)


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
    told = {
        name.removeprefix(VERDICT): value for name, value in row.items() if name.startswith(VERDICT)
    }
    if not {"control", "metrics", "margin", "alpha"} <= told.keys():
        return None
    return Plan(
        told["control"], tuple(told["metrics"].split()), float(told["margin"]), float(told["alpha"])
    )


def findings(arms: Sequence[Arm]) -> list[Finding]:
    """Every loop that has its planned control, one family of metrics each."""
    found = []
    for arm in arms:
        fixed = plan(arm)
        control = fixed and arm.control == "none" and control_of(arm, arms, fixed.control)
        if control:
            found += contrast_with_control(arm, control, fixed)
    return found


def contrast_with_control(arm: Arm, control: Arm, fixed: Plan) -> list[Finding]:
    """The contrasts of one loop and one control over the seeds of the loop, tested.

    A seed that has no contrast counts as dropped: it may lack it for what the loop did.
    """
    both = {metric: changes(arm, control, f"metrics.{metric}") for metric in fixed.metrics}
    signs = {metric: -1 if metric.startswith(SMALLER_IS_BIASED) else 1 for metric in fixed.metrics}
    contrasts = {m: signs[m] * (loop - other) for m, (loop, other) in both.items()}
    margins = dict.fromkeys(contrasts, fixed.margin) if fixed.margin else None
    results = sign_test.verdicts(contrasts, margins, fixed.alpha)
    return [Finding(arm, m, control.control, both[m], result) for m, result in results.items()]


def changes(arm: Arm, control: Arm, column: str) -> tuple[np.ndarray, np.ndarray]:
    """b(G) - b(0) of each seed of the loop, in the loop and in its control; NaN where a run lacks an end.

    G is the generation in which most of the loop's runs end.
    """
    last = Counter(max(rows) for rows in arm.runs.values())
    reached = max(last, key=lambda g: (last[g], g))
    loop, other = (
        [_change(one, seed, column, reached) for seed in sorted(arm.seeds)]
        for one in (arm, control)
    )
    return np.array(loop), np.array(other)


def _change(arm: Arm, seed: int, column: str, last: int) -> float:
    """The change from generation 0 to `last` in the arm's run of that seed."""
    for own, rows in zip(arm.seeds, arm.runs.values(), strict=True):
        if own == seed:
            ends = [float(rows.get(g, {}).get(column, math.nan)) for g in (0, last)]
            return ends[1] - ends[0]
    return math.nan
