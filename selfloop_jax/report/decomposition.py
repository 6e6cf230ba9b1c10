"""Table of what a loop's change of bias is made of."""

from collections.abc import Sequence

from selfloop_jax.analysis.decomposition import STEPS, Decomposition
from selfloop_jax.report.panels import title_of
from selfloop_jax.report.tables import Table
from selfloop_jax.report.verdicts import with_interval


def decomposition_table(found: Sequence[Decomposition]) -> Table:
    """Returns a row per rung of each loop's ladder: its change, and what it adds to the last."""
    rows: list[tuple[str, ...]] = []
    for one in found:
        seeds = len(next(iter(one.rungs.values())))
        counted = "1 seed" if seeds == 1 else f"{seeds} seeds"
        rows.append((f"{one.arm.name}, {title_of(one.metric)}, {counted}",))
        for (rung, change, added, interval), meaning in zip(one.steps(), STEPS, strict=True):
            rows.append((rung, f"{change:+.3f}", with_interval(added, *interval), meaning))
    caption = (
        "Mean over seeds of the change from the first to the last generation, and of the "
        "difference from the row above, with its 95 % t interval, which is not adjusted for "
        "multiplicity: a description, no test. All rows have the seeds that have all of them."
    )
    return Table(("run", "change", "adds", "what it adds"), tuple(rows), caption)
