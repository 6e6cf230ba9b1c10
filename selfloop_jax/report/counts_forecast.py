"""Figures, tables and sentences of the forecast from counts of subgroups."""

import math
from collections.abc import Sequence

import numpy as np

from selfloop_jax.analysis.counts_forecast import (
    ALIGNED,
    DRIFT,
    FORECASTS,
    MISSING,
    MIXED,
    NO_CHANGE,
    OBSERVED,
    OTHER_CHANGE,
    PLANNED,
    RIVALS,
    Comparison,
    CountsForecast,
    Law,
)
from selfloop_jax.analysis.forecast import GAP
from selfloop_jax.report.curves import small_multiples
from selfloop_jax.report.panels import number_text, title_of
from selfloop_jax.report.style import (
    COLOURS,
    GREY,
    RenderedFigure,
    figure,
    finish,
    generation_axis,
    line,
    plot_seeds,
)
from selfloop_jax.report.tables import Table
from selfloop_jax.report.verdicts import capital, with_interval

ORDER = (*FORECASTS, *RIVALS)
WHAT = {
    DRIFT: "the counts of simulated copy machines that start from the real images",
    OBSERVED: "the counts of the pools that were trained on",
    MIXED: "the same as from drift, of generators that mix the groups of classes, as a change from "
    "the run's own gap in generation 0",
    NO_CHANGE: "the run's own gap in generation 0",
    ALIGNED: "a line in the aligned share of the pool, fitted to the same loops",
    MISSING: "a line in the share of subgroups without an image in the pool, fitted to the other "
    "half",
    OTHER_CHANGE: "the run's own gap in generation 0 plus the mean change of the other half's "
    "loops of generated images alone",
}
LONGEST_NAME = 40  # characters of a composition in a table
MARGIN = 0.01  # what a forecast may lose to no change where the real images are kept
TERMS = {
    "own": "log(1 + n)",
    "class": "log(1 + N)",
    "purity": "log((1 + n) / (C + n[.,g]))",
    "shortcut": "I / (1 + n)",
}


def law_figure(found: Law) -> RenderedFigure:
    """Returns the gaps of the side study, observed over those of the law; and its scatter."""
    fig = figure(10.4, 3.6)
    left, right = fig.subplots(1, 2)
    left.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    left.plot(found.gaps[:, 0], found.gaps[:, 1], "o", color=COLOURS[0], markersize=4, alpha=0.8)
    left.set(title=title_of(GAP), xlabel="of the law", ylabel="observed")
    own = np.arange(61)
    for i, nats in enumerate((0.1, 0.5, 1.0, 1.5)):
        log_variance = (
            found.curve.scatter[0]
            + found.curve.scatter[1] * np.log1p(own)
            + found.curve.scatter[2] * nats
        )
        look = line(i) | {"marker": ""}
        right.plot(own, np.exp(log_variance / 2), label=f"{nats:g} nats", **look)
    right.set(title="Scatter of the logit of a recall", xlabel="images of the subgroup")
    right.set_ylabel("standard deviation")
    right.set_ylim(bottom=0)
    right.legend(title="mutual information", loc="upper right")
    caption = (
        f"Left: {title_of(GAP)} of the {found.classifiers} classifiers of the side study, which "
        "see real images alone. Right: how far classifiers of equal counts differ, by the images "
        f"of a subgroup and by what groups say about classes. {formula(found)}"
    )
    return finish(fig, "learning_curve", formula(found), caption)


def formula(found: Law) -> str:
    """Returns the fitted law in a sentence."""
    curve = found.curve
    pairs = zip(curve.slopes, curve.terms, strict=True)
    mean = " ".join(f"{slope:+.2f} {TERMS[name]}" for slope, name in pairs)
    base, own, nats = curve.scatter
    errors = found.errors[curve.terms]
    return (
        f"Law of the logit of a recall: mean {mean}, plus a constant for each class; log variance "
        f"{base:+.2f} {own:+.2f} log(1 + n) {nats:+.2f} I; n: images of the subgroup, N: of its "
        "class, C: number of classes, I: mutual information of class and group in the pool. "
        f"Mean error of left-out compositions: gap {errors[0]:.3f}, mean recall {errors[1]:.3f}."
    )


def terms_table(found: Law) -> Table:
    """Returns the sets of terms that the side study chose from, with their errors."""
    rows = []
    for terms, (gap, mean) in found.errors.items():
        chosen = "chosen" if terms == found.curve.terms else ""
        names = ", ".join(TERMS[name] for name in terms)
        rows.append((names, f"{gap:.3f}", f"{mean:.3f}", chosen))
    caption = (
        f"Mean absolute errors over {found.classifiers} classifiers of real images, those of one "
        "composition at a time left out of the fit. The set with the least sum is chosen."
    )
    return Table(("terms", "error of the gap", "of the mean recall", ""), tuple(rows), caption)


def composition_table(found: Law) -> Table:
    """Returns how far the law is off for each composition of the side study."""
    rows = []
    for name in dict.fromkeys(found.compositions):
        gaps = found.gaps[[one == name for one in found.compositions]]
        off = gaps[:, 0] - gaps[:, 1]
        cells = (f"{off.mean():+.3f}", f"{off.min():+.3f} to {off.max():+.3f}")
        shown = name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..."
        rows.append((shown, str(len(gaps)), f"{gaps[:, 1].mean():.3f}", *cells))
    caption = (
        "Gap of the law minus the observed one, over classifiers of one composition and several "
        "numbers of images, which the fit has seen: what the law is off by, whatever the forecast."
    )
    header = ("composition", "classifiers", "observed gap, mean", "law minus observed", "range")
    return Table(header, tuple(rows), caption)


def forecast_figure(made: Sequence[CountsForecast]) -> RenderedFigure:
    """Returns a plot per loop: the observed gaps of each seed, the forecasts and their rivals."""
    names = [name for name in ORDER if any(name in one.predicted for one in made)]
    fig, axes = small_multiples(len(made), ["observed", *names])
    for ax, one in zip(axes, made, strict=True):
        x = one.arm.generations
        plot_seeds(ax, x, one.gaps, line(0)["color"])
        ax.plot(x, one.gaps.mean(axis=0), linewidth=1.8, **line(0))
        for i, name in enumerate(names):
            if name in one.predicted:
                # Generation 0 is no forecast.
                course = one.predicted[name][:, 1:].mean(axis=0)
                ax.plot(x[1:], course, linewidth=1.4, **line(i + 1))
        ax.set_ylim(bottom=0)
        ax.set_title(one.arm.name)
        generation_axis(ax, x)
    fig.supylabel(title_of(GAP), size=9)
    caption = (
        f"{capital(title_of(GAP))}. Dots and thin lines: each seed; thick: their mean; other "
        f"lines: means over seeds of what is forecast. {_what(names)} Fitted to the other half of "
        "the study."
    )
    return finish(fig, "forecast_from_counts", " ".join(sentences(made, ())), caption)


def _what(names: Sequence[str]) -> str:
    return " ".join(f"{capital(name)}: {WHAT[name]}." for name in names)


def titled_tables(
    made: Sequence[CountsForecast], compared: Sequence[Comparison], law: Law
) -> list[tuple[str, Table]]:
    """Returns all tables with their headings; those of forecasts where there are any."""
    tables = []
    if made:
        tables.append(("Errors of the forecast from counts", error_table(made)))
    if compared:
        tables.append(("Tests of the forecast", comparison_table(compared)))
    tables.append(("The law: terms that were tried", terms_table(law)))
    tables.append(("The law: how far it is off", composition_table(law)))
    return tables


def error_table(made: Sequence[CountsForecast]) -> Table:
    """Returns the errors of the forecasts and of their rivals, per loop."""
    rows = []
    for one in made:
        cells = [one.arm.name, str(len(one.seeds)), one.fitted_on.name]
        low, high = one.fitted_on.interval
        interval = "" if math.isnan(low) else f" [{low:.2f}, {high:.2f}]"
        cells.append(f"{one.fitted_on.start:.2f}{interval} x {one.fitted_on.factor:.2f}^g")
        cells.append(f"{one.fitted_on.mixing:.2f}")
        for name in ORDER:
            known = name in one.predicted
            cells.append(f"{one.errors(name).mean():.3f}" if known else "–")
        rows.append(tuple(cells))
    caption = (
        f"Mean absolute error of the {title_of(GAP)} over seeds and generations from 1 on. "
        f"{_what(ORDER)} Quality: how many real images one of generation g counts as, with an "
        "interval over seeds, which leaves out how far the law is off, fitted on the loops of the "
        "other half that have generated images alone; so is the mixing: the probability that an "
        "image has the group of an image of any class. Both are the same for all seeds, so that "
        "errors of seeds are not quite independent."
    )
    header = ("loop", "seeds", "fitted on", "quality", "mixing", *ORDER)
    return Table(header, tuple(rows), caption)


def comparison_table(compared: Sequence[Comparison]) -> Table:
    """Returns the tests of the forecast from drift against each rival."""
    rows = []
    for one in compared:
        rows.append(
            (
                one.loop.arm.name,
                one.forecast,
                one.rival,
                with_interval(one.difference, *one.interval),
                f"{one.p:.3f}",
            )
        )
    caption = (
        "Error of the forecast minus that of the rival, mean over seeds with its 95 % t interval; "
        "below 0 the forecast is better. p: sign-flip test, for each forecast joint over all "
        "planned rivals and loops that keep no real images, and over those that keep them; given "
        "the fitted numbers."
    )
    header = ("loop", "forecast", "rival", "difference of errors", "p")
    return Table(header, tuple(rows), caption)


def sentences(
    made: Sequence[CountsForecast], compared: Sequence[Comparison], alpha: float = 0.05
) -> list[str]:
    """Returns a sentence per loop: errors, and which rivals the forecast is shown to beat."""
    lines = []
    for one in made:
        errors = {
            names: ", ".join(
                f"{name} {number_text(one.errors(name).mean())}"
                for name in names
                if name in one.predicted
            )
            for names in (FORECASTS, RIVALS)
        }
        text = (
            f"{one.arm.name}: errors of the {title_of(GAP)} forecast from counts: "
            f"{errors[FORECASTS]}; of rivals: {errors[RIVALS]}."
        )
        for forecast in (DRIFT, MIXED):
            tests = [test for test in compared if test.loop is one and test.forecast == forecast]
            if tests:
                text += f" {capital(forecast)}: {_verdict(one, tests, alpha)}"
        lines.append(text)
    return lines + _planned(made, compared, alpha)


def _verdict(one: CountsForecast, tests: Sequence[Comparison], alpha: float) -> str:
    """What the tests say of one forecast of one loop."""
    if one.arm.keeps_real:
        loss = next(test.difference for test in tests if test.rival == NO_CHANGE)
        word = "is not" if loss > MARGIN else "is"
        return f"the error {word} within {MARGIN:g} of that of no change ({loss:+.3f})."
    better, worse, undecided = _sorted(tests, alpha)
    parts = []
    for names, what in ((better, "smaller than"), (worse, "larger than")):
        if names:
            parts.append(f"the error is {what} that of {_list(names)}")
    if undecided:
        parts.append(f"against {_list(undecided)} it is undecided")
    return f"by a joint test {'; '.join(parts)}."


def _sorted(tests: Sequence[Comparison], alpha: float) -> tuple[list[str], list[str], list[str]]:
    """The rivals that the forecast is better than, worse than, and undecided against."""
    better = [test.rival for test in tests if test.p <= alpha and test.difference < 0]
    worse = [test.rival for test in tests if test.p <= alpha and test.difference > 0]
    return better, worse, [test.rival for test in tests if test.p > alpha]


def _planned(
    made: Sequence[CountsForecast], compared: Sequence[Comparison], alpha: float
) -> list[str]:
    """Numbers 6 and 7 of docs/analysis_plan.md, over both halves."""
    tests = [test for test in compared if test.forecast == DRIFT and test.rival in PLANNED]
    lines = []
    alone = [test for test in tests if not test.loop.arm.keeps_real]
    if alone:
        better, worse, undecided = _sorted(alone, alpha)
        word = "refuted" if worse else "undecided" if undecided else "shown"
        lines.append(
            f"Plan, number 6, that without real images the forecast {DRIFT} beats every rival in "
            f"every half: {word} ({len(better)} of {len(alone)} comparisons shown, {len(worse)} "
            "against it)."
        )
    kept = [
        test.difference for test in tests if test.loop.arm.keeps_real and test.rival == NO_CHANGE
    ]
    if kept:
        word = "refuted" if max(kept) > MARGIN else "holds"
        lines.append(
            f"Plan, number 7, that with real images kept its error is at most {MARGIN:g} above "
            f"that of no change: {word} (from {min(kept):+.3f} to {max(kept):+.3f})."
        )
    return lines


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]
