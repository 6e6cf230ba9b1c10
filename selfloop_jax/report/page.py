"""The page: figures, tables and sentences of runs as one HTML file, with PNGs and a CSV."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from selfloop_jax.analysis import (
    arms,
    config_diff,
    counts_forecast,
    decomposition,
    drift,
    forecast,
    verdicts,
)
from selfloop_jax.analysis.arms import Arm
from selfloop_jax.analysis.numbers import Row, as_csv, rows, run_names
from selfloop_jax.analysis.runs import Run, read_runs, unreadable_versions
from selfloop_jax.analysis.verdicts import Finding
from selfloop_jax.errors import UsageError
from selfloop_jax.report import (
    bars,
    costs,
    curves,
    forest,
    heatmaps,
    neighbours,
    sample_grid,
    strip,
    tables,
    text,
)
from selfloop_jax.report import counts_forecast as counts_figures
from selfloop_jax.report import decomposition as decomposition_text
from selfloop_jax.report import drift as drift_figures
from selfloop_jax.report import forecast as forecast_figures
from selfloop_jax.report import foreground as foreground_figures
from selfloop_jax.report import verdicts as verdict_text
from selfloop_jax.report.style import RenderedFigure, figure_style
from selfloop_jax.report.tables import Table
from selfloop_jax.runtime import store

# Shown against controls where the verdict names no metric.
CONTROLLED = ("accuracy", forecast.GAP)
NO_CURVES = (
    "No forecast: the side study needs generators at two initial biases with aligned groups, or "
    "classifiers of real images of many sizes and compositions."
)


@dataclass(frozen=True)
class FirstScreen:
    """What a reader in a hurry sees: images, tested sentences, one figure."""

    strip: RenderedFigure | None
    sentences: list[str]
    figure: RenderedFigure | None

    @property
    def figures(self) -> list[RenderedFigure]:
        """Both figures, as far as there are any."""
        return [one for one in (self.strip, self.figure) if one]


@dataclass(frozen=True)
class Forecasts:
    """What the page shows of forecasts: of shares, and of counts."""

    sentences: list[str]
    figures: list[RenderedFigure]
    tables: list[tuple[str, Table]]
    without: list[str]


@dataclass(frozen=True)
class Overview:
    """What the page shows of all arms together.

    reasons: sentences of the verdicts; forest: the contrasts that were not planned, too.
    """

    reasons: list[str]
    forest: RenderedFigure | None
    verdicts: list[tuple[str, Table]]
    decomposition: Table | None
    controls: list[RenderedFigure]
    forecasts: Forecasts
    drift: RenderedFigure | None
    drift_table: Table | None
    drift_sentences: list[str]
    curves: list[RenderedFigure]
    costs: Table | None

    @property
    def figures(self) -> list[RenderedFigure]:
        """All figures, in the order of the page."""
        single = [one for one in (self.forest, self.drift) if one]
        return [*single, *self.controls, *self.forecasts.figures, *self.curves]


@dataclass(frozen=True)
class Part:
    """What the page shows of one run."""

    folder: Path
    label: str
    subtitle: str
    caveats: list[str]
    images: list[RenderedFigure]
    maps: list[RenderedFigure]
    training: list[RenderedFigure]
    metrics: Table
    fidelity: Table | None
    seconds: Table
    versions: Table | None
    digests: Table
    config: str

    @property
    def figures(self) -> list[RenderedFigure]:
        """All figures, in the order of the page."""
        return [*self.images, *self.maps, *self.training]


def write(workdirs: Sequence[Path], out: Path | None = None, side: Sequence[Path] = ()) -> Path:
    """Writes the report of one run, or of several overlaid, and returns the path of its page.

    The page is `WORKDIR/report.html`, or `FIRST/overlay.html` for several, unless `out` names
    another. Its figures as PNG files and all numbers as a CSV are in the folder of the same stem.
    Runs that differ only in their seed are one arm. `side` are the runs of a side study, from
    which the loops are forecast. Of several runs, those of another version of the program that
    this one cannot read are left out, and the page says so. Raises UsageError for a mistake in the
    arguments and RunError for a damaged run; nothing is written then.
    """
    left_out = unreadable_versions([*workdirs, *side])
    read = [workdir for workdir in workdirs if workdir not in left_out]
    if not read:  # nothing would be left: `read_runs` says why
        read, left_out = list(workdirs), {}
    # Together, so that the side study is checked against the runs: one data source, no run twice.
    every = read_runs([*read, *(workdir for workdir in side if workdir not in left_out)])
    runs = every[: len(read)]
    side_runs = every[len(read) :]
    page = _destination(workdirs, out)
    numbers = rows(runs, side_runs)
    main_arms = arms.arms([row for row in numbers if row["set"] == "main"])
    found = verdicts.findings(main_arms)
    side_rows = [row for row in numbers if row["set"] == "side"]
    # Figures are rendered inside: the style holds nowhere else.
    with figure_style():
        first = _first_screen(runs, main_arms, found, run_names(every))
        overview = _overview(main_arms, runs[0], found, side_rows)
        parts = _parts(runs, main_arms, run_names(every))
    differences = None
    if len(runs) > 1:
        differences = tables.config_differences(runs, config_diff.labels(runs))
    html = _render(
        title=text.title(runs),
        first=first,
        differences=differences,
        many=len(runs) > 1,
        parts=parts,
        notes=[
            *text.left_out(left_out),
            # The page of one run claims nothing of a study.
            *(text.missing([*workdirs, *side]) if len(runs) > 1 else ()),
            *text.versions(main_arms),
            *_notes(runs, parts, side_runs),
        ],
        overview=overview,
    )
    figures = [*first.figures, *overview.figures]
    for part in parts:
        figures += part.figures
    try:
        _save(page, html, figures, as_csv(numbers))
    except OSError as error:
        raise UsageError(
            f"--out: {page} cannot be written ({error.strerror}); name another file"
        ) from error
    return page


def _first_screen(
    runs: Sequence[Run], every: Sequence[Arm], found: Sequence[Finding], names: Sequence[str]
) -> FirstScreen:
    """names: those of `runs`, and behind them those of the side study."""
    loops = [arm for arm in every if arm.is_loop] or list(every)
    planned = [finding for finding in found if finding.planned]
    # Images of the first seed of each loop.
    images = {}
    for arm in loops:
        images[arm.name] = runs[names.index(next(iter(arm.runs)))]
    return FirstScreen(
        strip=strip.strip(images),
        sentences=text.summary(runs, every, found),
        figure=forest.forest(planned, "forest") if planned else curves.headline(loops, runs[0]),
    )


def _overview(
    every: Sequence[Arm], run: Run, found: Sequence[Finding], side: Sequence[Row]
) -> Overview:
    # Without a loop the controls themselves are shown.
    loops = [arm for arm in every if arm.is_loop] or list(every)
    tested = list(dict.fromkeys(finding.metric for finding in found))  # in the planned order
    drifted, without_drift = drift.drifts(every)
    made_of = decomposition.decompositions(every, tested[0] if tested else forecast.GAP)
    return Overview(
        reasons=verdict_text.sentences(found),
        # The planned ones are on the first screen.
        forest=None if all(one.planned for one in found) else forest.forest(found, "forest_all"),
        verdicts=verdict_text.tables(found),
        decomposition=decomposition_text.decomposition_table(made_of) if made_of else None,
        controls=curves.control_curves(every, tested or CONTROLLED, run),
        forecasts=_forecasts(every, side),
        drift=drift_figures.drift_figure(drifted) if drifted else None,
        drift_table=drift_figures.drift_table(drifted) if drifted else None,
        drift_sentences=[*drift_figures.sentences(drifted), *without_drift],
        curves=curves.metric_curves(loops, run),
        costs=costs.cost_table(every) if len(every) > 1 else None,
    )


def _forecasts(every: Sequence[Arm], side: Sequence[Row]) -> Forecasts:
    found = Forecasts([], [], [], [])
    # Without a side study nobody expects a forecast, so no reason is given.
    if not side:
        return found
    fitted = forecast.curves(side)
    law = counts_forecast.law(side)
    if fitted is None and law is None:
        found.without.append(NO_CURVES)
    if fitted is not None:
        made, reasons = forecast.forecasts(every, fitted)
        found.without.extend(reasons)
        if made:
            found.figures.append(forecast_figures.response_figure(fitted))
            found.figures.append(forecast_figures.forecast_figure(made))
            found.tables.append(("Forecasts of shares", forecast_figures.forecast_table(made)))
    if law is not None:
        counted, reasons = counts_forecast.forecasts(every, law)
        found.without.extend(reasons)
        if counted:
            compared = counts_forecast.comparisons(counted)
            found.sentences.extend(counts_figures.sentences(counted, compared))
            found.figures.append(counts_figures.forecast_figure(counted))
            found.figures.append(counts_figures.law_figure(law))
            found.tables.extend(counts_figures.titled_tables(counted, compared, law))
    return found


def _notes(runs: Sequence[Run], shown: Sequence[Part], side: Sequence[Run]) -> list[str]:
    """Caveats of runs without a part of their own; images and seeds that were used twice."""
    folders = {part.folder for part in shown}
    notes = []
    for run in (*runs, *side):
        if run.path not in folders:
            notes += [f"{run.path.name}: {caveat}" for caveat in text.caveats(run)]
    notes += text.shared_images(runs)
    shared = sorted({run.seed for run in runs} & {run.seed for run in side})
    if shared:
        seeds = ", ".join(map(str, shared))
        notes.append(
            f"Seeds {seeds} are in the side study too, so its curves are not independent of them."
        )
    return notes


def _parts(runs: Sequence[Run], every: Sequence[Arm], names: Sequence[str]) -> list[Part]:
    """The run itself, or the run of the first seed of each loop."""
    if len(runs) == 1:
        return [_part(runs[0], "", "")]
    loops = [arm for arm in every if arm.is_loop] or every
    # The first run of an arm stands for it on the page.
    labels = {next(iter(arm.runs)): arm.name for arm in loops}
    # `names` has the runs of the side study behind these.
    shown = [(run, name) for run, name in zip(runs, names, strict=False) if name in labels]
    # The figures of all runs are in one folder: the prefix keeps their names apart.
    return [_part(run, labels[name], f"run{i + 1}_") for i, (run, name) in enumerate(shown)]


def _destination(workdirs: Sequence[Path], out: Path | None) -> Path:
    if out is None:
        return Path(workdirs[0]) / ("report.html" if len(workdirs) == 1 else "overlay.html")
    if Path(out).suffix != ".html":
        raise UsageError(f"--out={out}: must be a file ending in .html")
    return Path(out)


def _part(run: Run, label: str, prefix: str) -> Part:
    images = [
        sample_grid.sample_grid(run, prefix),
        sample_grid.group_grid(run, prefix),
        neighbours.pairs(run, prefix),
    ]
    maps = [
        heatmaps.share_map(run, prefix),
        heatmaps.corrected_map(run, prefix),
        heatmaps.recall_map(run, prefix),
        heatmaps.annotator_map(run, prefix),
        foreground_figures.sensitivity(run, prefix),
    ]
    config = store.flatten(run.config)
    return Part(
        folder=run.path,
        label=label,
        subtitle=text.subtitle(run),
        caveats=text.caveats(run),
        images=[figure for figure in images if figure],
        maps=[figure for figure in maps if figure],
        training=[bars.pool_bars(run, prefix), *curves.loss_curves(run, prefix)],
        metrics=tables.metrics(run),
        fidelity=tables.fidelity(run),
        seconds=tables.seconds(run),
        versions=tables.versions(run),
        digests=tables.digests(run),
        config="\n".join(f"{field} = {json.dumps(value)}" for field, value in config.items()),
    )


def _render(**variables: Any) -> str:
    """The page as text; everything that comes from a run is escaped."""
    template = resources.files("selfloop_jax.report").joinpath("page.html").read_text("utf-8")
    # A name that the template misspells must raise, not come out empty.
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # Figures are embedded, so that the page is one file.
    environment.filters["base64"] = lambda png: base64.b64encode(png).decode("ascii")
    # No line break between a number and its percent sign.
    environment.filters["unbroken"] = lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%")
    return environment.from_string(template).render(**variables)


def _save(page: Path, html: str, figures: Sequence[RenderedFigure], numbers: str) -> None:
    """PNGs and the CSV first and the page last, by rename: no page without its files."""
    folder = page.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    store.write_bytes(folder / "numbers.csv", numbers.encode(errors="backslashreplace"))
    for figure in figures:
        store.write_bytes(folder / f"{figure.name}.png", figure.png)
    store.write_bytes(page, html.encode(errors="backslashreplace"))
