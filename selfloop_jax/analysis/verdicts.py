"""Verdicts: the change of bias in each loop against its control, tested over seeds."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from selfloop_jax.analysis.arms import Arm, control_of
from selfloop_jax.analysis.numbers import VERDICT
from selfloop_jax.config import Config, check_choice
from selfloop_jax.errors import UsageError
from selfloop_jax.measure import sign_test
from selfloop_jax.measure.metrics import METRICS


def check(config: Config) -> None:
    """Raises UsageError where METRICS does not have a planned metric as one of bias."""
    biases = [key for key, metric in METRICS.items() if metric.is_bias]
    for key in config.verdict.metrics:
        check_choice("verdict.metrics", key, biases)


@dataclass(frozen=True)
class Finding:
    """One metric of one loop against one control; `result` as `sign_test.verdicts` returns it."""

    arm: Arm
    metric: str
    control: str
    loop_changes: np.ndarray  # float64[S]
    control_changes: np.ndarray  # float64[S]
    result: dict[str, Any]


@dataclass(frozen=True)
class AnalysisPlan:
    """The section `verdict` of the config, fixed before the runs."""

    control: str
    metrics: tuple[str, ...]
    margin: float
    alpha: float


def plan(arm: Arm) -> AnalysisPlan | None:
    """Returns the analysis plan of an arm; None for runs that have none."""
    fields = {}
    for name, value in arm.first.items():
        if name.startswith(VERDICT):
            fields[name.removeprefix(VERDICT)] = value
    if not {"control", "metrics", "margin", "alpha"} <= fields.keys():
        return None
    metrics = tuple(fields["metrics"].split())
    return AnalysisPlan(fields["control"], metrics, float(fields["margin"]), float(fields["alpha"]))


def findings(arms: Sequence[Arm]) -> list[Finding]:
    """Returns the tested metrics of every loop that has its planned control.

    The metrics of one loop are one family of tests.
    """
    found: list[Finding] = []
    for arm in arms:
        fixed = plan(arm)
        if fixed is None or arm.control != "none":
            continue
        control = control_of(arm, arms, fixed.control)
        if control is not None:
            found += contrast_with_control(arm, control, fixed)
    return found


def contrast_with_control(arm: Arm, control: Arm, fixed: AnalysisPlan) -> list[Finding]:
    """Returns the tested contrasts of one loop with one control over the seeds of the loop.

    A seed without a contrast counts as dropped: the loop may be the reason why it has none.
    """
    changes_of = {metric: changes(arm, control, metric) for metric in fixed.metrics}
    contrasts = {}
    for metric, (loop, other) in changes_of.items():
        contrasts[metric] = _towards_bias(metric) * (loop - other)
    # A margin of 0 means that none was fixed.
    margins = dict.fromkeys(contrasts, fixed.margin) if fixed.margin else None
    results = sign_test.verdicts(contrasts, margins, fixed.alpha)
    return [
        Finding(arm, metric, control.control, *changes_of[metric], result)
        for metric, result in results.items()
    ]


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
    ends = Counter(max(rows) for rows in arm.runs.values())
    # Most runs decide, not the longest: one extended run must not drop all other seeds.
    last = max(ends, key=lambda generation: (ends[generation], generation))
    # The same order of seeds in both, so that differences are paired.
    seeds = sorted(arm.seeds)
    loop = np.array([_change(arm, seed, key, last) for seed in seeds])
    other = np.array([_change(control, seed, key, last) for seed in seeds])
    return loop, other


def _change(arm: Arm, seed: int, key: str, last: int) -> float:
    """The change from generation 0 to `last` in the arm's run of that seed."""
    if seed not in arm.seeds or not {0, last} <= set(arm.generations):
        return math.nan
    values = arm.series(key)[arm.seeds.index(seed)]
    first = values[arm.generations.index(0)]
    return float(values[arm.generations.index(last)] - first)
