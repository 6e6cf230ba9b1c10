"""Verdicts as a table and as sentences that claim no more than they do."""

import math
from collections.abc import Sequence

import numpy as np

from selfloop_jax.analysis import verdicts
from selfloop_jax.report.metrics import PANELS, text
from selfloop_jax.report.tables import Table


def sentences(found: Sequence[verdicts.Finding]) -> list[str]:
    """What the test says of each finding, in its own words, and what loop and control did by themselves."""
    told = []
    for finding in found:
        loop, control = map(_mean, finding.changes)
        result = f"{finding.result['verdict']}; {finding.result['reason']}"
        told.append(f"{_subject(finding)}: {result} Loop: {loop:+.3f}, control: {control:+.3f}.")
    return told


def _subject(finding: verdicts.Finding) -> str:
    return f"{finding.arm.name}, {spelled_out(finding.metric)}, against {finding.control}"


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def table(found: Sequence[verdicts.Finding]) -> Table:
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


def metric_name(metric: str) -> str:
    """A metric as people read it."""
    return _NAMES.get(metric, metric.replace("_", " "))


def spelled_out(metric: str) -> str:
    """`equal_opportunity_difference_mean` is the mean equal opportunity difference."""
    words = metric.split("_")
    which = [words.pop()] if words[-1] in ("mean", "max", "min") else []
    return " ".join([*which, *words])


_NAMES = {metric.key: metric.name for panel in PANELS for metric in panel.metrics}
