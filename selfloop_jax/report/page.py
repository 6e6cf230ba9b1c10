"""Runs -> drawings, tables and sentences -> one HTML file, and the PNGs beside it."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from selfloop_jax.analysis import arms, config_diff, forecast, verdicts
from selfloop_jax.analysis.arms import Arm
from selfloop_jax.analysis.numbers import Row, as_csv, rows, run_names
from selfloop_jax.analysis.runs import Run, read_runs
from selfloop_jax.analysis.verdicts import Finding
from selfloop_jax.errors import UsageError
from selfloop_jax.report import bars, curves, heatmaps, sample_grid, tables
from selfloop_jax.report import forecast as forecast_figures
from selfloop_jax.report import foreground as foreground_figures
from selfloop_jax.report import verdicts as verdict_text
from selfloop_jax.report.metrics import ACCURACY, OPPORTUNITY, by_key
from selfloop_jax.report.neighbours import pairs
from selfloop_jax.report.style import RenderedFigure, figure_style
from selfloop_jax.report.tables import Table
from selfloop_jax.report.text import caveats, subtitle, summary, title
from selfloop_jax.runtime import store


@dataclass(frozen=True)
class Part:
    """What the page shows of one run."""

    folder: Path
    label: str
    subtitle: str
    caveats: list[str]
    samples: RenderedFigure | None
    groups: RenderedFigure | None
    neighbours: RenderedFigure | None
    maps: list[RenderedFigure]
    training: list[RenderedFigure]
    metrics: Table
    fidelity: Table | None
    seconds: Table
    versions: Table | None
    digests: Table
    config: str

    @property
    def drawings(self) -> list[RenderedFigure]:
        """All pictures, in the order of the page."""
        sample_grid = [
            drawing for drawing in (self.samples, self.groups, self.neighbours) if drawing
        ]
        return [*sample_grid, *self.maps, *self.training]


def write(workdirs: Sequence[Path], out: Path | None = None, side: Sequence[Path] = ()) -> Path:
    """Write the report of one run, or of several overlaid, and return the path of the page.

    The page is `WORKDIR/report.html`, or `FIRST/overlay.html` for several, unless `out` names
    another; its drawings lie as PNG files, and all numbers as a CSV, in the folder of the same
    stem. Runs that differ in their seed alone are one arm. `side` are the runs of a side study,
    from which the loops are predicted. Raises UsageError for a mistake in the arguments and
    RunError for a damaged run; nothing is written then.
    """
    both = read_runs([*workdirs, *side])
    runs, side_runs = both[: len(workdirs)], both[len(workdirs) :]
    page = _destination(workdirs, out)
    numbers = rows(runs, side_runs)
    every = arms.arms([row for row in numbers if row["set"] == "main"])
    found = verdicts.findings(every)
    with figure_style():
        overview = _overview(
            every, runs[0], found, [row for row in numbers if row["set"] == "side"]
        )
        parts = _parts(runs, every, run_names(both))
    html = _render(
        title=title(runs),
        sentences=summary(runs, every, found),
        several_findings=len(found) > 1,
        differences=tables.config_differences(runs, config_diff.labels(runs))
        if len(runs) > 1
        else None,
        many=len(runs) > 1,
        parts=parts,
        notes=_notes(runs, parts, side_runs),
        **overview,
    )
    drawings = [drawing for kind in _DRAWN for drawing in overview[kind]]
    drawings += [drawing for part in parts for drawing in part.drawings]
    try:
        _save(page, html, drawings, as_csv(numbers))
    except OSError as error:
        raise UsageError(
            f"--out: {page} cannot be written ({error.strerror}); name another file"
        ) from error
    return page


_DRAWN = ("controls", "prediction", "curves")


def _overview(
    every: Sequence[Arm], run: Run, found: Sequence[Finding], side: Sequence[Row]
) -> dict[str, Any]:
    """What the page shows of all arms together."""
    loops = [arm for arm in every if arm.control == "none"] or list(every)
    tested = [by_key(metric) for metric in dict.fromkeys(one.metric for one in found)]
    fitted = forecast.curves(side) if side else None
    made, reasons = forecast.forecasts(every, fitted) if fitted else ([], [])
    if side and not fitted:
        reasons = [
            "Nothing is predicted: the side study needs aligned groups at two initial biases or more."
        ]
    return {
        "verdicts": verdict_text.table(found) if found else None,
        "controls": curves.control_curves(every, tested or [ACCURACY, OPPORTUNITY]),
        "prediction": [
            forecast_figures.response_figure(fitted),
            forecast_figures.forecast_figure(made),
        ]
        if made
        else [],
        "errors": forecast_figures.forecast_table(made) if made else None,
        "unpredicted": reasons,
        "curves": curves.metric_curves(loops, run),
    }


def _notes(runs: Sequence[Run], shown: Sequence[Part], side: Sequence[Run]) -> list[str]:
    """What is weaker than it looks in runs that have no part of their own, and seeds used twice."""
    told = {part.folder for part in shown}
    notes = [
        f"{r.path.name}: {note}"
        for r in (*runs, *side)
        if r.path not in told
        for note in caveats(r)
    ]
    if again := sorted({run.seed for run in runs} & {run.seed for run in side}):
        notes.append(
            f"Seeds {', '.join(map(str, again))} are in the side study too: its curves have seen them."
        )
    return notes


def _parts(runs: Sequence[Run], every: Sequence[Arm], names: Sequence[str]) -> list[Part]:
    """Of each loop the run of its first seed, with pictures and all numbers."""
    if len(runs) == 1:
        return [_part(runs[0], "", "")]
    loops = [arm for arm in every if arm.control == "none"] or every
    first = {next(iter(arm.runs)): arm.name for arm in loops}
    shown = [(run, first[name]) for run, name in zip(runs, names, strict=False) if name in first]
    return [_part(run, label, f"run{i + 1}_") for i, (run, label) in enumerate(shown)]


def _destination(workdirs: Sequence[Path], out: Path | None) -> Path:
    if out is None:
        return Path(workdirs[0]) / ("report.html" if len(workdirs) == 1 else "overlay.html")
    if Path(out).suffix != ".html":
        raise UsageError(f"--out: {str(out)!r}; a file name ending in .html is needed")
    return Path(out)


def _part(run: Run, label: str, prefix: str) -> Part:
    maps = [
        heatmaps.share_map(run, prefix),
        heatmaps.corrected_map(run, prefix),
        heatmaps.recall_map(run, prefix),
    ]
    maps += [heatmaps.annotator_map(run, prefix), foreground_figures.sensitivity(run, prefix)]
    return Part(
        folder=run.path,
        label=label,
        subtitle=subtitle(run),
        caveats=caveats(run),
        samples=sample_grid.sample_grid(run, prefix),
        groups=sample_grid.group_grid(run, prefix),
        neighbours=pairs(run, prefix),
        maps=[drawing for drawing in maps if drawing],
        training=[bars.pool_bars(run, prefix), *curves.loss_curves(run, prefix)],
        metrics=tables.metrics(run),
        fidelity=tables.fidelity(run),
        seconds=tables.seconds(run),
        versions=tables.versions(run),
        digests=tables.digests(run),
        config="\n".join(
            f"{field} = {json.dumps(value)}" for field, value in store.flatten(run.config).items()
        ),
    )


def _render(**what) -> str:
    """The page as text; everything that comes from a run is escaped."""
    text = resources.files("selfloop_jax.report").joinpath("page.html").read_text("utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["base64"] = lambda png: base64.b64encode(png).decode("ascii")
    return environment.from_string(text).render(**what)


def _save(page: Path, html: str, drawings: Sequence[RenderedFigure], numbers: str) -> None:
    """PNGs and the CSV first, the page last and in one step, so that a page is never half there."""
    store.write_bytes(page.with_suffix("") / "numbers.csv", numbers.encode())
    for drawing in drawings:
        store.write_bytes(page.with_suffix("") / f"{drawing.name}.png", drawing.png)
    store.write_bytes(page, html.encode())
