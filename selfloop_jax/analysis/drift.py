"""The coverage of each loop against its drift null: copy machines of the loop's own sizes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from selfloop_jax.analysis.arms import Arm
from selfloop_jax.analysis.forecast import pool_section, real_set
from selfloop_jax.analysis.numbers import Row
from selfloop_jax.data import drift
from selfloop_jax.measure.dynamics import LEVEL, Band

COVERAGE = "subgroup_coverage"
LOOPS = 400  # simulated copies of every run


@dataclass(frozen=True)
class Drift:
    """The subgroup coverage of one loop arm, float64[S,G], and the null of copy machines.

    single: where one run of a copy machine lies, over the seeds' own sizes; mean: where the mean
    of as many runs lies. Both have float64[G].
    """

    arm: Arm
    observed: np.ndarray
    single: Band
    mean: Band

    @property
    def places(self) -> np.ndarray:
        """int[G]: 1 where the observed mean lies above the band of means, -1 below, else 0."""
        seen = self.observed.mean(axis=0)
        # A tie with an end of the band is inside it.
        above = seen > self.mean.high + 1e-9
        below = seen < self.mean.low - 1e-9
        return above.astype(int) - below.astype(int)


def drifts(arms: Sequence[Arm]) -> tuple[list[Drift], list[str]]:
    """Returns the drift of every loop that allows it, and for the others the reason why not."""
    made = []
    reasons = []
    for arm in arms:
        if not arm.is_loop:
            continue
        reason = _obstacle(arm)
        if reason:
            reasons.append(f"{arm.name}: no drift null: {reason}.")
        else:
            made.append(_drift(arm))
    return made, reasons


def _obstacle(arm: Arm) -> str:
    """The reason why an arm has no drift null; empty where it has one."""
    if not arm.complete_runs or arm.generations != list(range(len(arm.generations))):
        return "no run is complete from generation 0 on"
    if arm.setting("diffusion.condition_on") != "label":
        return "its generators are conditioned on the group, which fixes the composition"
    if arm.rule is None or not arm.rule.predictable:
        return "its pool rule does not say how shares follow"
    first = arm.complete_runs[0][0]
    if f"{real_set(first)}.subgroup_counts" not in first or (
        arm.rule.subsamples_real and "train.subgroup_counts" not in first
    ):
        return "its numbers lack the counts of subgroups, as those of an earlier version do"
    if not first[f"{real_set(first)}.subgroup_counts"].any():
        return "no real image has a known group"
    return ""


def _drift(arm: Arm) -> Drift:
    runs = arm.complete_runs
    observed = np.array([_observed(run) for run in runs])
    # Seeds are simulated apart: each has a real set of its own.
    simulated = np.stack([_simulated(arm, run) for run in runs])
    return Drift(arm, observed, _band(np.concatenate(simulated)), _band(simulated.mean(axis=0)))


def _observed(run: Sequence[Row]) -> np.ndarray:
    """The coverage float64[G] of one run: from the counts that the null starts from as well."""
    present = _table(run[0], real_set(run[0])) > 0
    return np.array([(_table(row, "generated")[present] > 0).mean() for row in run])


def _simulated(arm: Arm, run: Sequence[Row]) -> np.ndarray:
    """Coverage float64[LOOPS,G] of copies of one run."""
    first = run[0]
    loop = drift.CopyLoop(
        pool=pool_section(arm),
        real=_table(first, real_set(first)),
        generated=np.array([row["generated.class_counts"] for row in run]),
        reserve=_table(first, "reserve") if "reserve.subgroup_counts" in first else None,
    )
    return drift.coverage(loop, (first["seed"], "drift"), LOOPS)


def _table(row: Row, place: str) -> np.ndarray:
    """Counts float64[C,G] of a row."""
    return row[f"{place}.subgroup_counts"].reshape(len(row[f"{place}.class_counts"]), -1)


def _band(loops: np.ndarray) -> Band:
    """Mean and quantiles of float64[loops,G]."""
    low, high = np.quantile(loops, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0)
    return Band(loops.mean(axis=0), low, high)
