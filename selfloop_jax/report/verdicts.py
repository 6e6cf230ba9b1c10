"""Verdicts as a table and as sentences: nothing beyond what was tested."""

import math
from collections.abc import Sequence

import numpy as np

from selfloop_jax.analysis.verdicts import UNDECIDED, Finding, Summary
from selfloop_jax.measure.sign_test import MOST_NEEDED
from selfloop_jax.report.panels import number_text, title_of
from selfloop_jax.report.tables import Table

MOST_NAMED = 3  # arms of one verdict whose numbers the headlines give; of more, their range


def headlines(found: Sequence[Finding], *, planned: bool = True) -> list[str]:
    """Returns a sentence per question that was planned, or was not: verdicts and numbers."""
    questions: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in found:
        if finding.planned == planned:
            key = (finding.estimand.name, finding.control, finding.metric)
            questions.setdefault(key, []).append(finding)
    return [_headline(rows) for rows in questions.values()]


def _headline(rows: Sequence[Finding]) -> str:
    """One question with the verdicts on all arms."""
    verdicts: dict[str, list[Finding]] = {}
    for one in rows:
        verdicts.setdefault(one.verdict, []).append(one)
    parts = []
    for verdict, arms in verdicts.items():
        missing = needed(*arms)
        verdict = f"{verdict}, {missing}" if missing else verdict
        numbers = [f"{one.arm.name} {_numbers(one)}" for one in arms]
        if len(arms) > MOST_NAMED:
            means = [one.contrast.mean for one in arms]
            names = "; ".join(one.arm.name for one in arms)
            numbers = [f"{names}, contrasts from {min(means):+.3f} to {max(means):+.3f}"]
        parts.append(f"{capital(verdict)}: {'; '.join(numbers)}.")
    estimand = rows[0].estimand
    of_what = f"{title_of(rows[0].metric)}, against {rows[0].control}"
    return f"{capital(estimand.name)} ({estimand.question}), {of_what}. {' '.join(parts)}"


def capital(text: str) -> str:
    """Returns a sentence with a capital at its start."""
    return f"{text[:1].upper()}{text[1:]}"


def _numbers(one: Finding) -> str:
    seeds = f"{one.seeds} seed" if one.seeds == 1 else f"{one.seeds} seeds"
    return f"{_with_interval(one.contrast)}, {seeds}, joint p = {number_text(one.contrast.p)}"


def asked(finding: Finding) -> str:
    """Returns the estimand in words, as a heading."""
    return f"{capital(finding.estimand.name)}: {finding.estimand.question}"


def needed(*found: Finding) -> str:
    """Returns how many seeds undecided findings need; empty where none is undecided."""
    seeds = [one.seeds_needed for one in found if one.verdict == UNDECIDED]
    if not seeds:
        return ""
    ends = []
    for end in dict.fromkeys((min(seeds), max(seeds))):
        ends.append(f"more than {MOST_NEEDED}" if math.isinf(end) else f"{end:.0f}")
    return f"needs about {' to '.join(ends)} seeds".replace("about more", "more")


def sentences(found: Sequence[Finding]) -> list[str]:
    """Returns a sentence per planned finding: what was asked, the verdict, and its reason."""
    lines = []
    for finding in found:
        if finding.planned:
            subject = f"{finding.arm.name}, {title_of(finding.metric)}, against {finding.control}"
            asked = f"{finding.estimand.name}: {finding.estimand.question}"
            lines.append(f"{subject} ({asked}): {finding.verdict}; {finding.reason}")
    return lines


def tables(found: Sequence[Finding]) -> list[tuple[str, Table]]:
    """Returns two tables of a row per finding with their titles; none without a finding."""
    if not found:
        return []
    return [
        ("Verdicts: change of bias, loop against control", _verdicts(found)),
        ("Where the contrasts come from", _contrasts(found)),
    ]


def _verdicts(found: Sequence[Finding]) -> Table:
    rows = []
    for finding in found:
        rows.append(
            (
                *_names(finding),
                finding.estimand.name,
                finding.verdict if finding.planned else f"({finding.verdict})",
                _with_interval(finding.contrast),
                number_text(finding.contrast.p),
                number_text(finding.margin),
                number_text(finding.p_beyond),
                number_text(finding.p_equivalence),
                number_text(finding.smallest_detectable),
                needed(finding).removeprefix("needs ").removesuffix(" seeds") or "–",
            )
        )
    header = (
        *("arm", "metric", "control", "estimand", "verdict", "contrast", "p", "margin"),
        *("p beyond", "p within", "detectable", "seeds needed"),
    )
    asked = {finding.estimand.name: finding.estimand.question for finding in found}
    caption = (
        "Contrast: mean over seeds of the change of the loop from generation 0 to the last, minus "
        "that of the control, oriented so that larger is more biased, with its t interval. "
        f"Estimands: {'; '.join(f'{name}, {question}' for name, question in asked.items())}. "
        "p: sign-flip test, exact where loop and control can be exchanged; signs are flipped by "
        "seed in all planned arms and metrics at once (single-step min-p), so that it holds for "
        "all of them together; p beyond and p within: the same for a contrast larger and smaller "
        "than the margin. In brackets: not planned, a family of tests of its own for each kind of "
        "control. Detectable, roughly: the true contrast that a single test of these seeds finds "
        "with 80 % power. Seeds needed, as roughly: to tell an undecided contrast from the margin "
        "(from 0 without one), were the true contrast the observed one; at least as many as always "
        "suffice for p at its level in a family of this size."
    )
    return Table(header, tuple(rows), caption)


def _contrasts(found: Sequence[Finding]) -> Table:
    rows = []
    for finding in found:
        rows.append(
            (
                *_names(finding),
                " ".join("–" if math.isnan(d) else f"{d:+.3f}" for d in finding.contrasts),
                f"{_mean(finding.loop_changes):+.3f}",
                f"{_mean(finding.control_changes):+.3f}",
                _with_p(finding.first),
                _with_p(finding.later),
                f"{finding.above_null:+.3f}",
                number_text(finding.p_holm),
            )
        )
    header = (
        *("arm", "metric", "control", "contrast of each seed", "change, loop", "change, control"),
        *("first step", "after it", "above the null", "p (Holm)"),
    )
    caption = (
        "First step: the contrast that generation 1 already has, when the pool changes most; after "
        "it: what later generations add, each with its t interval and joint p. Above the null: "
        "the contrast of what the metric has above the median of its null, for a gap between noisy "
        "rates grows as accuracy falls. p (Holm): of the single test, adjusted over the metrics of "
        "the arm."
    )
    return Table(header, tuple(rows), caption)


def _names(finding: Finding) -> tuple[str, str, str]:
    return finding.arm.name, title_of(finding.metric), finding.control


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _with_interval(one: Summary) -> str:
    return with_interval(one.mean, one.low, one.high)


def _with_p(one: Summary) -> str:
    return f"{_with_interval(one)}, p {number_text(one.p)}"


def with_interval(mean: float, low: float, high: float) -> str:
    """Returns a signed number with its interval, where it has one."""
    if math.isnan(mean):
        return number_text(mean)
    return f"{mean:+.3f}" if math.isnan(low) else f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
