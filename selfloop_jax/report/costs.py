"""Table of what each arm of a study cost."""

from collections.abc import Sequence

import numpy as np

from selfloop_jax.analysis.arms import Arm
from selfloop_jax.analysis.numbers import Row
from selfloop_jax.report.tables import Table

SECONDS = "seconds."


def cost_table(every: Sequence[Arm]) -> Table | None:
    """Returns minutes of each arm by generation; None where no row has seconds."""
    rows = []
    total = 0.0
    for arm in every:
        first, later = [], []
        for by_generation in arm.runs.values():
            first += [_minutes(row) for g, row in by_generation.items() if not g]
            later.append(sum(_minutes(row) for g, row in by_generation.items() if g))
        if not any(first) and not any(later):
            continue
        total += sum(later)
        cells = [f"{np.mean(part):.1f}" if part else "–" for part in (first, later)]
        rows.append((arm.name, str(len(arm.runs)), *cells, f"{sum(later):.0f}"))
    caption = (
        "Minutes of wall-clock time in the phases of generations, as records have them, without "
        "the start of the program. Arms that branch from one generation 0 repeat its time, which "
        f"was spent once. Generations from 1 on of all arms: {total / 60:.1f} hours."
    )
    header = ("arm", "runs", "generation 0, mean", "later ones, mean", "later ones, sum")
    return Table(header, tuple(rows), caption) if rows else None


def _minutes(row: Row) -> float:
    return float(sum(value for name, value in row.items() if name.startswith(SECONDS))) / 60
