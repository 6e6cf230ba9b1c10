"""Tables of the report, as text cells."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from selfloop_jax.analysis.config_diff import differences
from selfloop_jax.analysis.runs import Run
from selfloop_jax.report.metrics import COUNTS, PANELS, Metric, text


@dataclass(frozen=True)
class Table:
    """A header and rows of text; the first cell of each names its row. A row of one cell is a heading."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


def metrics(run: Run) -> Table:
    """Every number of the records, one row per metric, one column per generation."""
    rows: list[tuple[str, ...]] = []
    for panel in PANELS:
        rows += [(panel.title,), *(_metric_row(run, metric) for metric in panel.metrics)]
    rows += [("Counts",), *(_metric_row(run, metric) for metric in COUNTS)]
    if others := _others(run):
        rows += [("Others",), *(_metric_row(run, metric) for metric in others)]
    caption = "↑ higher is better or fairer, ↓ lower is; undefined: nothing to compute it from, or not measured."
    return Table(("generation", *(str(g.number) for g in run.generations)), tuple(rows), caption)


def _metric_row(run: Run, metric: Metric) -> tuple[str, ...]:
    cells = (text(g.value(metric.section, metric.key), metric.whole) for g in run.generations)
    return (f"{metric.name} {metric.better}".strip(), *cells)


def _others(run: Run) -> list[Metric]:
    """Numbers of the last record that the report has no name for."""
    known = {(m.section, m.key) for m in (*COUNTS, *(m for panel in PANELS for m in panel.metrics))}
    found = [
        (section, key)
        for section in ("metrics", "samples")
        for key in run.last.record[section] or ()
    ]
    return [
        Metric(s, k, k)
        for s, k in found
        if (s, k) not in known and _is_number(run.last.record[s][k])
    ]


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, int | float)


_FIDELITY = ("frechet", "kernel", "precision", "recall", "density", "coverage")


def fidelity(run: Run) -> Table | None:
    """Fidelity of the last generation overall, by class and by group, each number beside its floor."""
    found = run.last.record.get("fidelity")
    if not found:
        return None
    rows: list[tuple[str, ...]] = [_fidelity_row("all images", found["overall"], found["floor"])]
    for place, names in (("class", run.data["classes"]), ("group", run.data["groups"])):
        pairs = zip(names, found[f"per_{place}"], found[f"per_{place}_floor"], strict=True)
        rows += [(f"By {place}",), *(_fidelity_row(str(name), *pair) for name, *pair in pairs)]
    notes = ". ".join(note[:1].upper() + note[1:] for note in found["notes"])
    caption = (
        f"Generation {run.last.number}; in brackets the floor: held-out real images in place of generated "
        f"ones. {notes}."
    )
    return Table(("images", *_FIDELITY, "count"), tuple(rows), caption)


def _fidelity_row(name: str, found: dict, floor: dict) -> tuple[str, ...]:
    cells = (f"{_cell(found[key])} ({_cell(floor[key])})" for key in _FIDELITY)
    return (name, *cells, str(found["count"]))


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def seconds(run: Run) -> Table:
    """Wall-clock seconds and images per second, one row per phase, one column per generation."""
    rows = [("Seconds",), *_phase_rows(run, "seconds", "{:.1f}")]
    totals = [math.fsum(g.record.get("seconds", {}).values()) for g in run.generations]
    rows += [("all phases", *(f"{total:.1f}" for total in totals))]
    if speeds := _phase_rows(run, "images_per_second", "{:,.0f}"):
        rows += [("Images per second",), *speeds]
    caption = "Wall-clock time in which a phase ran, compilation included; of a resumed phase the last part only."
    return Table(("generation", *(str(g.number) for g in run.generations)), tuple(rows), caption)


def _phase_rows(run: Run, section: str, form: str) -> list[tuple[str, ...]]:
    records = [generation.record.get(section, {}) for generation in run.generations]
    phases = dict.fromkeys(phase for record in records for phase in record)
    return [
        (phase.replace("_", " "), *(form.format(r[phase]) if phase in r else "–" for r in records))
        for phase in phases
    ]


def config_differences(runs: Sequence[Run], labels: Sequence[str]) -> Table | None:
    """One row per run, one column per field in which the configs differ; None if they are equal."""
    fields = differences(runs)
    if not fields:
        return None
    columns = zip(labels, (run.path.name for run in runs), *fields.values(), strict=True)
    return Table(("run", "folder", *fields), tuple(columns))


def versions(run: Run) -> Table | None:
    """The newest entry of the manifest, one row per field."""
    if not run.manifest:
        return None
    rows = tuple((key, str(value) or "–") for key, value in run.manifest[-1].items())
    more = len(run.manifest) - 1
    caption = f"{more} earlier in manifest.json: the run went on after it changed." if more else ""
    return Table(("field", "value"), rows, caption)


def digests(run: Run) -> Table:
    """sha256 of what each generation made and of what it was made from."""
    rows: list[tuple[str, ...]] = []
    for generation in run.generations:
        rows.append((f"generation {generation.number}",))
        rows += [(name, digest) for name, digest in generation.record.get("digests", {}).items()]
        rows += [(f"parent: {name}", d) for name, d in generation.record.get("parents", {}).items()]
    return Table(("artifact", "sha256"), tuple(rows))
