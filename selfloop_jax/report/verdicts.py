"""Verdicts as a table and as sentences: nothing beyond what was tested."""

import math
from collections.abc import Sequence

import numpy as np

from selfloop_jax.analysis import verdicts
from selfloop_jax.report.panels import number_text, title_of
from selfloop_jax.report.tables import Table


def sentences(found: Sequence[verdicts.Finding]) -> list[str]:
    """Returns a sentence per finding: its verdict, the reason, and the two changes."""
    lines = []
    for finding in found:
        loop = _mean(finding.loop_changes)
        control = _mean(finding.control_changes)
        subject = f"{finding.arm.name}, {title_of(finding.metric)}, against {finding.control}"
        result = f"{finding.result['verdict']}; {finding.result['reason']}"
        lines.append(f"{subject}: {result} Loop: {loop:+.3f}, control: {control:+.3f}.")
    return lines


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def table(found: Sequence[verdicts.Finding]) -> Table:
    """Returns a row per finding: changes, contrast, p-values, detectable contrast, verdict."""
    rows = []
    for finding in found:
        result = finding.result
        rows.append(
            (
                finding.arm.name,
                title_of(finding.metric),
                result["verdict"],
                finding.control,
                str(result["seeds"]),
                f"{_mean(finding.loop_changes):+.3f}",
                f"{_mean(finding.control_changes):+.3f}",
                with_interval(result["mean"], result["low"], result["high"]),
                number_text(result["p_holm"]),
                number_text(result["p_equivalence_holm"]),
                number_text(result["smallest_detectable"]),
            )
        )
    header = (
        *("arm", "metric", "verdict", "control", "seeds", "change, loop", "change, control"),
        *("contrast", "p", "p of equivalence", "detectable"),
    )
    caption = (
        "Change: mean over seeds from generation 0 to the last. Contrast: change of the loop minus "
        "change of the control, seed by seed, oriented so that larger is more biased, with its "
        "t interval. p: exact sign-flip test, adjusted by Holm over the metrics of an arm. "
        "p of equivalence: the same for a contrast within the margin. Detectable: the true "
        "contrast that this design finds with 80 % power."
    )
    return Table(header, tuple(rows), caption)


def with_interval(mean: float, low: float, high: float) -> str:
    """Returns a signed number with its interval, where it has one."""
    return f"{mean:+.3f}" if math.isnan(low) else f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
