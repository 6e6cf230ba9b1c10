"""Sentences at the top of the page, generated from the numbers of the runs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from selfloop_jax import __version__
from selfloop_jax.analysis import listed_runs, verdicts
from selfloop_jax.analysis.arms import Arm, without_loop
from selfloop_jax.analysis.runs import Run
from selfloop_jax.analysis.shared_images import shares
from selfloop_jax.analysis.verdicts import Finding
from selfloop_jax.data.controls import CONTROLS
from selfloop_jax.measure.sign_test import least_seeds
from selfloop_jax.report import verdicts as verdict_text
from selfloop_jax.report.panels import number_text, title_of

OPPORTUNITY = "equal_opportunity_difference_mean"
HEADLINE = ("accuracy", "worst_subgroup_accuracy", OPPORTUNITY, "bias_aligned_share")

NAMED = 6  # missing runs that are named

VALIDATION = (
    "The validation split serves tuning and early looks, so numbers measured on it are not final."
)
ONE_SEED = (
    "This is a single run with one seed: its intervals are over images, not over seeds, so a "
    "change may be due to chance as well as to the loop."
)


def title(runs: Sequence[Run]) -> str:
    """Returns the title of the page: data source and pool rule, or the number of runs."""
    source = runs[0].data["source"]
    # One run on stand-in data is enough to mark the page.
    if any(run.data.get("stand_in") for run in runs):
        source = f"STAND-IN for {source}"
    if len(runs) > 1:
        return f"{source}: {len(runs)} runs overlaid"
    rule = runs[0].config.get("pool", {}).get("rule")
    return f"{source}, pool rule {rule}" if rule else source


def subtitle(run: Run) -> str:
    """Returns seed, generations, split and folder of a run, in one line."""
    first = run.generations[0].number
    last = run.last.number
    span = f"generation {last}" if first == last else f"generations {first} to {last}"
    seed = run.last.record.get("seed", "not recorded")
    return f"seed {seed} · {span} · measured on the {run.split} split · folder {run.path.name}"


def summary(runs: Sequence[Run], arms: Sequence[Arm], found: Sequence[Finding]) -> list[str]:
    """Returns the course of one run, or the verdicts of several, or where they end.

    What would have been tested and was not has a sentence of its own.
    """
    if len(runs) == 1:
        sentences = list(_course(runs[0]))
        # The last sentence is on what one run cannot say.
        sentences[-1] += _untested(arms[0])
    else:
        sentences = tested(arms, found)
        if not found:
            sentences += _ends(arms)
    splits = sorted({run.split for run in runs})
    if len(splits) > 1:
        names = ", ".join(splits)
        sentences.append(
            f"The runs are measured on different splits ({names}): do not compare them."
        )
    if "validation" in splits:
        sentences.append(VALIDATION)
    return sentences


def tested(arms: Sequence[Arm], found: Sequence[Finding]) -> list[str]:
    """Returns the planned verdicts, and what of the plan could not be tested."""
    return [
        *verdict_text.headlines(found),
        *_without_control(arms),
        *_without_loop(arms),
        *_plans(arms),
    ]


def _plans(arms: Sequence[Arm]) -> Iterator[str]:
    """A sentence where loops follow different analysis plans, or runs of one loop do."""
    by_plan: dict[str, list[str]] = {}
    for arm in arms:
        if arm.is_loop:
            for fixed in verdicts.plans(arm):
                by_plan.setdefault(str(fixed), []).append(arm.name)
    if len(by_plan) < 2:
        return
    parts = [f"{', '.join(names)}: {fixed}" for fixed, names in by_plan.items()]
    yield (
        f"These runs follow different analysis plans ({'; '.join(parts)}): each loop is judged by "
        "that of its first run, and all of them are still one family of tests."
    )


def shared_images(runs: Sequence[Run]) -> Iterator[str]:
    """How far seeds are replications: by the real images that they have in common."""
    if found := shares(runs):
        train, test = (_percent(*found[name]) for name in ("train", "test"))
        yield (
            f"Any two seeds share {train} of their training images and {test} of their test images "
            "on average; as far as they do, what holds over seeds holds for these images."
        )


def _percent(low: float, high: float) -> str:
    """One percentage, or, where initial biases have others, two."""
    ends = dict.fromkeys(f"{100 * share:.0f}" for share in (low, high))
    return f"{' to '.join(ends)} %{' (by initial bias)' if len(ends) > 1 else ''}"


def _without_control(arms: Sequence[Arm]) -> Iterator[str]:
    """A sentence where loops lack the control that would judge them."""
    lacking: dict[str, list[str]] = {}
    for arm, kind in verdicts.without_control(arms):
        lacking.setdefault(kind, []).append(arm.name)
    for kind, names in lacking.items():
        yield (
            f"Undecided: {', '.join(names)}. No matching control of the kind {kind}, so no change "
            "is tested."
        )


def _without_loop(arms: Sequence[Arm]) -> Iterator[str]:
    """A sentence where controls have no loop to be compared with."""
    names = [f"{arm.name} ({arm.control})" for arm in without_loop(arms)]
    if names:
        yield f"Not compared with anything, for no loop matches: {', '.join(names)}."


def _untested(arm: Arm) -> str:
    """What the plan of a single loop asks, and what an answer needs; empty without a plan."""
    fixed = verdicts.plan(arm)
    if fixed is None or not arm.is_loop:
        return ""
    kind = verdicts.planned_control(arm, fixed)
    if kind not in CONTROLS:
        return ""
    estimand = CONTROLS[kind].estimand(arm.keeps_real)
    least = least_seeds(len(fixed.metrics), fixed.alpha)
    return (
        f" Undecided, needs {least} seeds or more, each with a control {kind}: {estimand.name} "
        f"({estimand.question})."
    )


def left_out(versions: Mapping[Path, str]) -> list[str]:
    """Returns a sentence per workdir of a version that this one cannot read."""
    lines = []
    for workdir, version in versions.items():
        lines.append(
            f"{Path(workdir).name}: left out: written by selfloop_jax {version}, which this "
            f"version ({__version__}) cannot read."
        )
    return lines


def missing(workdirs: Sequence[Path]) -> Iterator[str]:
    """Yields a sentence per sweep that lists runs which are not among the workdirs."""
    for folder, runs in listed_runs.missing(workdirs).items():
        more = len(runs) - NAMED
        named = ", ".join(runs[:NAMED]) + (f" and {more} more" if more > 0 else "")
        yield f"Of the runs that the sweep in {folder.name} lists, this report lacks {named}."


def versions(arms: Sequence[Arm]) -> Iterator[str]:
    """Yields a sentence where the arms were not all made by one version of the program."""
    names: dict[str, list[str]] = {}
    for arm in arms:
        for version in sorted(arm.versions):
            label = arm.name if arm.is_loop else f"{arm.name} ({arm.control})"
            names.setdefault(version or "unknown", []).append(label)
    if len(names) > 1:
        parts = [f"{version}: {', '.join(labels)}" for version, labels in names.items()]
        yield (
            f"Several versions of the program made these runs ({'; '.join(parts)}), so a contrast "
            "between them may be due to the program."
        )


def caveats(run: Run) -> list[str]:
    """Returns sentences on what is missing or weaker than it looks in a run."""
    sentences = list(run.notes)
    stand_in = run.data.get("stand_in")
    if stand_in:
        source = run.data["source"]
        sentences.append(
            f"STAND-IN: these are not the images of {source} ({stand_in}); no number here says "
            "anything about that data set."
        )
    inexact = [str(g.number) for g in run.generations if g.record.get("exact") is False]
    if inexact:
        which = "Generation" if len(inexact) == 1 else "Generations"
        numbers = ", ".join(inexact)
        sentences.append(
            f"{which} {numbers}: marked not exact, computed after the manifest changed."
        )
    undefined = run.last.value("undefined_subgroups")
    if undefined:
        noun = "Groups" if run.nested else "Subgroups"
        sentences.append(
            f"{noun} without {run.split} images: {undefined:.0f}; left out of the metrics."
        )
    return sentences


def _course(run: Run) -> Iterator[str]:
    """From the first generation to the last, with the farthest generation between them."""
    first = run.generations[0].number
    last = run.last.number
    numbers = [generation.number for generation in run.generations]
    ends = []
    # A metric that is undefined at either end has no course.
    for key in HEADLINE:
        values = _values(run, key)
        if math.isfinite(values[0]) and math.isfinite(values[-1]):
            start = number_text(values[0])
            end = number_text(values[-1])
            course = end if first == last else f"{start} to {end}{_detour(numbers, values)}"
            ends.append(f"{title_of(key)} {course}")
    if first == last:
        yield f"In generation {last}: {'; '.join(ends)}."
        yield from _null(run)
        yield "This is one generation of a single run: it shows no trend."
        return
    start = " (trained on real images only)" if first == 0 else ""
    yield f"From generation {first}{start} to generation {last}: {'; '.join(ends)}."
    yield from _null(run)
    yield ONE_SEED


def _values(run: Run, key: str) -> list[float]:
    """A metric over the finished generations; NaN where it is undefined or absent."""
    values = [generation.value(key) for generation in run.generations]
    return [math.nan if value is None else value for value in values]


def _null(run: Run) -> Iterator[str]:
    """The last gap against its null, where that was measured."""
    gap = run.last.metrics.get(OPPORTUNITY)
    if gap is None or gap.null is None or gap.p is None:
        return
    low, _, high = gap.null
    yield (
        f"If groups made no difference, the {title_of(OPPORTUNITY)} of generation "
        f"{run.last.number} would lie between {number_text(low)} and {number_text(high)} with "
        f"probability 0.9; it is {number_text(gap.value)} (p = {number_text(gap.p)})."
    )


def _detour(numbers: Sequence[int], values: Sequence[float]) -> str:
    """The generation farthest outside the two ends: the summary names a non-monotonic course."""
    low, high = sorted((values[0], values[-1]))
    outside = []
    for value in values:
        outside.append(max(low - value, value - high) if math.isfinite(value) else 0.0)
    i = outside.index(max(outside))
    if outside[i] < 5e-4:  # invisible in the three decimals in print
        return ""
    return f" ({number_text(values[i])} in generation {numbers[i]})"


def _ends(arms: Sequence[Arm]) -> Iterator[str]:
    """The range in which the arms end, and over how many seeds."""
    reached = sorted({arm.generations[-1] for arm in arms})
    where = f"generation {reached[0]}" if len(reached) == 1 else "the last generation of each run"
    ranges = [_range(arms, key) for key in HEADLINE]
    if any(ranges):
        yield f"In {where}: {'; '.join(filter(None, ranges))}."
    seeds = {len(arm.runs) for arm in arms}
    if seeds == {1}:
        yield "Every line is a single run: another seed may end elsewhere."
    elif len(arms) == 1:
        yield "The runs differ only in the seed, so the spread of their lines is due to chance."


def _range(arms: Sequence[Arm], key: str) -> str:
    """The lowest and highest value at the end of the arms; empty where one is undefined."""
    ends: list[float] = []
    for arm in arms:
        # A run that ended early is NaN there, and then no range is given.
        ends += arm.series(key)[:, -1].tolist()
    if not all(map(math.isfinite, ends)):
        return ""
    return f"{title_of(key)} between {number_text(min(ends))} and {number_text(max(ends))}"
