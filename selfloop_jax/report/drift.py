"""Figure, table and sentences of the coverage against its drift null."""

from collections.abc import Sequence

from selfloop_jax.analysis.drift import COVERAGE, LOOPS, Drift
from selfloop_jax.report.curves import small_multiples
from selfloop_jax.report.panels import number_text, title_of
from selfloop_jax.report.style import RenderedFigure, finish, generation_axis, line, plot_seeds
from selfloop_jax.report.tables import Table

WHERE = {1: "above", 0: "inside", -1: "below"}
MEANING = {
    1: "fewer subgroups are lost than chance alone takes",
    0: "no more and no fewer subgroups are lost than chance alone takes",
    -1: "more subgroups are lost than chance alone takes",
}
WHAT = (
    "Coverage: share of the subgroups with real images that have a generated one. A copy machine "
    "generates the shares of its pool by chance, in the sizes of the run and under its pool rule."
)


def drift_figure(made: Sequence[Drift]) -> RenderedFigure:
    """Returns a plot per loop: the coverage of each seed, their mean, and that of copy machines."""
    fig, axes = small_multiples(len(made), ["observed", "copy machines"])
    for ax, one in zip(axes, made, strict=True):
        x = one.arm.generations
        null, seen = line(1), line(0)
        ax.fill_between(x, one.single.low, one.single.high, color=null["color"], alpha=0.12, lw=0)
        if len(one.observed) > 1:
            ax.fill_between(x, one.mean.low, one.mean.high, color=null["color"], alpha=0.3, lw=0)
            plot_seeds(ax, x, one.observed, seen["color"])
        ax.plot(x, one.mean.mean, linewidth=1.4, **null)
        ax.plot(x, one.observed.mean(axis=0), linewidth=1.8, **seen)
        # Room below the lowest point, and 1 in view.
        ax.set_ylim(min(one.observed.min(), one.single.low.min(), 0.9) - 0.03, 1.02)
        if len(made) > 1:
            ax.set_title(one.arm.name)
        generation_axis(ax, x)
    fig.supylabel(title_of(COVERAGE), size=9)
    caption = [
        f"Observed {title_of(COVERAGE)} and its null, the neutral drift of copy machines. {WHAT}",
        f"Shaded: where 95 % of {LOOPS} simulated runs lie.",
    ]
    if any(len(one.observed) > 1 for one in made):
        caption.append(
            "Darker: the same of the means of as many runs as there are seeds. Thick: mean over "
            "seeds; dots and thin lines: each seed."
        )
    caption.append("Groups are taken as they were read.")
    return finish(fig, "drift", " ".join(sentences(made)), " ".join(caption))


def sentences(made: Sequence[Drift]) -> list[str]:
    """Returns a sentence per loop: where its last coverage lies, and what that says."""
    lines = []
    for one in made:
        place = int(one.places[-1])
        null = one.mean
        band = f"{number_text(null.low[-1])} to {number_text(null.high[-1])}"
        # A single arm needs no name.
        start = f"{one.arm.name}: in" if len(made) > 1 else "In"
        lines.append(
            f"{start} generation {one.arm.generations[-1]} the {title_of(COVERAGE)} is "
            f"{number_text(one.observed[:, -1].mean())}, {WHERE[place]} the 95 % band of copy "
            f"machines, {band} (mean {number_text(null.mean[-1])}): {MEANING[place]}."
        )
    return lines


def drift_table(made: Sequence[Drift]) -> Table:
    """Returns a row per loop: observed and expected coverage, and where the former lies."""
    rows = []
    for one in made:
        seen = one.observed.mean(axis=0)
        null = one.mean
        places = one.places
        rows.append(
            (
                one.arm.name,
                str(len(one.observed)),
                " ".join(f"{value:.3f}" for value in seen),
                " ".join(f"{value:.3f}" for value in null.mean),
                f"[{null.low[-1]:.3f}, {null.high[-1]:.3f}]",
                *(_generations(one, places == place) for place in (1, -1)),
            )
        )
    header = (
        *("loop", "seeds", "observed, by generation", "copy machines", "95 % band, last"),
        *("above in", "below in"),
    )
    caption = (
        f"{WHAT} Means over seeds; the band is that of such a mean. Above and below: the "
        "generations in which the observed mean lies outside of the band of that generation; they "
        "are not independent tests."
    )
    return Table(header, tuple(rows), caption)


def _generations(one: Drift, chosen: Sequence[bool]) -> str:
    numbers = [str(g) for g, is_in in zip(one.arm.generations, chosen, strict=True) if is_in]
    return ", ".join(numbers) or "–"
