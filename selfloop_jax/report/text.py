"""Plain sentences made from the numbers of runs, claiming no more than those."""

import math
from collections.abc import Iterator, Sequence

from selfloop_jax.analysis import verdicts
from selfloop_jax.analysis.arms import Arm
from selfloop_jax.analysis.runs import Run
from selfloop_jax.analysis.verdicts import Finding
from selfloop_jax.report import verdicts as verdict_text
from selfloop_jax.report.metrics import (
    ACCURACY,
    ALIGNED,
    OPPORTUNITY,
    WORST_SUBGROUP,
    Metric,
    text,
    values,
)

_MAIN = (
    ("accuracy", ACCURACY),
    ("accuracy in the worst subgroup", WORST_SUBGROUP),
    ("the equal opportunity difference (mean over classes)", OPPORTUNITY),
    ("the share of generated images in the group aligned with their class", ALIGNED),
)


def title(runs: Sequence[Run]) -> str:
    """What was run, in a few words."""
    source = runs[0].data["source"]
    if any(run.data.get("stand_in") for run in runs):
        source = f"STAND-IN for {source}"
    if len(runs) > 1:
        return f"{source}: {len(runs)} runs overlaid"
    rule = runs[0].config.get("pool", {}).get("rule")
    return f"{source}, pool rule {rule}" if rule else source


def subtitle(run: Run) -> str:
    """Seed, generations, split and folder of a run, in one line."""
    first, last = run.generations[0].number, run.last.number
    span = f"generation {last}" if first == last else f"generations {first} to {last}"
    seed = run.last.record.get("seed", "not recorded")
    return f"seed {seed} · {span} · measured on the {run.split} split · folder {run.path.name}"


def summary(runs: Sequence[Run], arms: Sequence[Arm], found: Sequence[Finding]) -> list[str]:
    """Of one run its course, of several what was tested, else where they end, and how far to trust that."""
    if len(runs) == 1:
        sentences = list(_course(runs[0]))
    else:
        sentences = verdict_text.sentences(found) or [_untested(arms), *_ends(arms)]
    splits = sorted({run.split for run in runs})
    if len(splits) > 1:
        sentences.append(
            f"The runs are measured on different splits ({', '.join(splits)}): do not compare them."
        )
    if "validation" in splits:
        sentences.append(
            "The validation split serves tuning and early looks, so its numbers are not final."
        )
    return sentences


def _untested(arms: Sequence[Arm]) -> str:
    """Why nothing was tested."""
    kind = next((fixed.control for arm in arms if (fixed := verdicts.plan(arm))), "fresh_real")
    return f"No loop here has a control of the kind {kind} that matches it, so no change is tested."


def caveats(run: Run) -> list[str]:
    """What is missing or weaker than it looks: unread files, inexact generations, undefined subgroups."""
    sentences = list(run.notes)
    if run.data.get("stand_in"):
        sentences.append(
            f"STAND-IN: these are not the images of {run.data['source']} ({run.data['stand_in']}); "
            "no number here says anything about that data set."
        )
    inexact = [str(g.number) for g in run.generations if g.record.get("exact") is False]
    if inexact:
        which = "Generation" if len(inexact) == 1 else "Generations"
        sentences.append(
            f"{which} {', '.join(inexact)}: marked not exact, computed after the manifest changed."
        )
    undefined = run.last.value("metrics", "undefined_cells")
    if undefined:
        noun = "groups" if run.nested else "subgroups"
        sentences.append(
            f"{noun} without {run.split} images: {undefined:.0f}; left out of the metrics.".capitalize()
        )
    return sentences


def _course(run: Run) -> Iterator[str]:
    """From the first generation to the last, with the detour if there was one."""
    first, last = run.generations[0].number, run.last.number
    main = [(name, values(run, metric)) for name, metric in _MAIN]
    main = [
        (name, found)
        for name, found in main
        if math.isfinite(found[0]) and math.isfinite(found[-1])
    ]
    if first == last:
        yield (
            f"In generation {last}: "
            + "; ".join(f"{name} {text(found[-1])}" for name, found in main)
            + "."
        )
        yield from _chance(run)
        yield "This is one generation of a single run: it shows no trend."
        return
    start = " (trained on real images only)" if first == 0 else ""
    numbers = [generation.number for generation in run.generations]
    changes = [
        f"{name} went from {text(f[0])} to {text(f[-1])}{_detour(numbers, f)}" for name, f in main
    ]
    yield f"From generation {first}{start} to generation {last}: " + "; ".join(changes) + "."
    yield from _chance(run)
    yield "This is a single run with one seed: its intervals are for other images, not for other seeds,"
    yield "so a change may be due to chance as well as to the loop."


def _chance(run: Run) -> Iterator[str]:
    """Whether the last gap is beyond what chance alone gives, where that was measured."""
    beside = run.last.record.get("uncertainty", {}).get("metrics", {}).get(OPPORTUNITY.key, {})
    if beside.get("null") and beside.get("p") is not None:
        low, _, high = beside["null"]
        gap = run.last.value(OPPORTUNITY.section, OPPORTUNITY.key)
        yield (
            f"If groups made no difference, chance alone would put nine of ten mean equal opportunity "
            f"differences of generation {run.last.number} between {text(low)} and {text(high)}; "
            f"it is {text(gap)} (p = {text(beside['p'])})."
        )


def _detour(numbers: Sequence[int], found: Sequence[float]) -> str:
    """The generation farthest outside the two ends, so that a bent curve is not told as a straight one."""
    low, high = sorted((found[0], found[-1]))
    outside = [max(low - value, value - high) if math.isfinite(value) else 0.0 for value in found]
    i = max(range(len(found)), key=outside.__getitem__)
    return f" ({text(found[i])} in generation {numbers[i]})" if outside[i] >= 5e-4 else ""


def _ends(arms: Sequence[Arm]) -> Iterator[str]:
    """Where the arms end, from the lowest to the highest, and over how many seeds."""
    reached = {arm.generations[-1] for arm in arms}
    where = (
        f"In generation {reached.pop()}"
        if len(reached) == 1
        else "In the last generation of each run"
    )
    if ranges := [found for name, metric in _MAIN if (found := _range(arms, name, metric))]:
        yield f"{where}: {'; '.join(ranges)}."
    seeds = sorted({len(arm.runs) for arm in arms})
    if seeds == [1]:
        yield "Every line is a single run: another seed may end elsewhere."
    elif len(arms) == 1:
        yield "The runs differ in the seed alone, so the spread of their lines is what chance does."


def _range(arms: Sequence[Arm], name: str, metric: Metric) -> str:
    ends = [value for arm in arms for value in arm.series(metric.column)[:, -1]]
    if not all(map(math.isfinite, ends)):
        return ""
    return f"{name} lies between {text(min(ends))} and {text(max(ends))}"
