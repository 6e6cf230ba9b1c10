"""What a loop's change of bias is made of: a ladder of controls that differ in one thing each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from selfloop_jax.analysis import verdicts
from selfloop_jax.analysis.arms import Arm, control_of
from selfloop_jax.measure import sign_test

# From real images alone to the loop; each step adds what the sentence says.
LADDER = ("no_synthetic", "fresh_real", "neutral_drift", "oracle_resample")
STEPS = (
    "training again on the real images",
    "new real images in their number and place, groups by chance once",
    "chance in the groups adds up over generations",
    "the composition that the generators make beyond chance",
    "the generated images themselves",
)


@dataclass(frozen=True)
class Decomposition:
    """The change of a metric from the first to the last generation, float64[S] by rung.

    rungs: of the controls of LADDER and of the loop, over the seeds that have all of them.
    """

    arm: Arm
    metric: str
    rungs: dict[str, np.ndarray]

    def steps(self) -> list[tuple[str, float, float, tuple[float, float]]]:
        """Returns (rung, mean change, mean of what it adds, its t interval) from rung to rung."""
        found = []
        before = np.zeros(len(next(iter(self.rungs.values()))))
        for name, change in self.rungs.items():
            added = change - before
            interval = sign_test.interval(added, 0.95)
            found.append((name, float(change.mean()), float(added.mean()), interval))
            before = change
        return found


def decompositions(arms: Sequence[Arm], metric: str) -> list[Decomposition]:
    """Returns one for every loop that has all controls of the ladder, over their common seeds."""
    found = []
    for arm in arms:
        controls = [control_of(arm, arms, kind) for kind in LADDER]
        if not arm.is_loop or any(control is None for control in controls):
            continue
        rungs = {}
        for kind, control in zip(LADDER, controls, strict=True):
            assert control is not None
            loop, change = verdicts.changes(arm, control, metric)
            rungs[kind] = change
        rungs["loop"] = loop
        every = np.stack(list(rungs.values()))
        # A seed that lacks a rung has no steps.
        known = ~np.isnan(every).any(axis=0)
        if known.any():
            rows = dict(zip(rungs, every[:, known], strict=True))
            found.append(Decomposition(arm, metric, rows))
    return found
