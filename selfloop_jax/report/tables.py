"""Tables of the page, as text cells."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from selfloop_jax.analysis.config_diff import differences
from selfloop_jax.analysis.runs import Generation, Run
from selfloop_jax.measure.metrics import METRICS
from selfloop_jax.report.panels import arrow_of, is_count, number_text, panels, title_of
from selfloop_jax.runtime import store


@dataclass(frozen=True)
class Table:
    """A header and rows of text. The first cell names the row; a row of one cell is a heading.

    The second line of a cell (an interval) is set smaller.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


def metrics(run: Run) -> Table:
    """Returns every metric of the records, a row per metric and a column per generation."""
    keys: dict[str, None] = {}
    for generation in run.generations:
        keys |= dict.fromkeys(generation.metrics)
    rows: list[tuple[str, ...]] = []
    for panel in panels(keys):
        # A row of one cell is a heading.
        rows.append((panel.title,))
        rows += [_metric_row(run, key) for key in panel.keys if key in keys]
    # Counts have no figure, hence no panel: they come last.
    counts = [key for key in keys if is_count(key)]
    if counts:
        rows.append(("Counts",))
        rows += [_metric_row(run, key) for key in counts]
    caption = (
        f"Second line: {run.level} interval over images. ↑ higher is better or fairer, ↓ lower is. "
        "Undefined: nothing to compute it from, or not measured."
    )
    return Table(_header(run), tuple(rows), caption)


def _header(run: Run) -> tuple[str, ...]:
    return ("generation", *(str(generation.number) for generation in run.generations))


def _metric_row(run: Run, key: str) -> tuple[str, ...]:
    cells = [_metric_cell(generation, key) for generation in run.generations]
    return (f"{title_of(key, run.features)} {arrow_of(key)}".strip(), *cells)


def _metric_cell(generation: Generation, key: str) -> str:
    text = number_text(generation.value(key), is_count(key))
    number = generation.metrics.get(key)
    if number is None or number.low is None or number.high is None:
        return text
    if math.isnan(number.low) or math.isnan(number.high):
        return text
    return f"{text}\n[{number_text(number.low)}, {number_text(number.high)}]"


def fidelity(run: Run) -> Table | None:
    """Returns the fidelity of the last generation by class and group, baselines in brackets."""
    tables = run.last.record["tables"]
    if not tables.get("fidelity_by_class"):
        return None
    keys = [key for key in tables["fidelity_by_class"][0] if key in METRICS]
    record = run.last.record["metrics"]
    rows = [_fidelity_row("all images", keys, record)]
    for place, names in (("class", run.classes), ("group", run.groups)):
        rows.append((f"By {place}",))
        parts = tables.get(f"fidelity_by_{place}") or []
        rows += [_fidelity_row(name, keys, part) for name, part in zip(names, parts, strict=True)]
    notes = " ".join(f"{note[:1].upper()}{note[1:]}." for note in run.last.record.get("notes", ()))
    caption = (
        f"Generation {run.last.number}; in brackets the baseline: held-out real images in place "
        f"of generated ones. {notes}"
    )
    header = ("images", *(title_of(key, run.features) for key in keys))
    return Table(header, tuple(rows), caption.strip())


def _fidelity_row(name: str, keys: Sequence[str], numbers: store.Json) -> tuple[str, ...]:
    cells = []
    for key in keys:
        number = numbers.get(key) or {}
        cells.append(f"{_short(number, 'value')} ({_short(number, 'baseline')})")
    return (name, *cells)


def _short(number: store.Json, part: str) -> str:
    value = number.get(part)
    return "–" if value is None else f"{value:.3g}"


def seconds(run: Run) -> Table:
    """Returns seconds and images per second, a row per phase and a column per generation."""
    rows: list[tuple[str, ...]] = [("Seconds",), *_phase_rows(run, "seconds", "{:.1f}")]
    totals = [math.fsum(g.record.get("seconds", {}).values()) for g in run.generations]
    rows.append(("all phases", *(f"{total:.1f}" for total in totals)))
    speeds = _phase_rows(run, "images_per_second", "{:,.0f}")
    if speeds:
        rows += [("Images per second",), *speeds]
    caption = (
        "Wall-clock time of each phase, compilation included; of a resumed phase only the time "
        "after the resume."
    )
    return Table(_header(run), tuple(rows), caption)


def _phase_rows(run: Run, section: str, form: str) -> list[tuple[str, ...]]:
    records = [generation.record.get(section, {}) for generation in run.generations]
    # Not every generation has every phase: the annotator is trained once.
    phases: dict[str, None] = {}
    for record in records:
        phases |= dict.fromkeys(record)
    rows = []
    for phase in phases:
        cells = [form.format(r[phase]) if phase in r else "–" for r in records]
        rows.append((phase.replace("_", " "), *cells))
    return rows


def config_differences(runs: Sequence[Run], labels: Sequence[str]) -> Table | None:
    """Returns a row per run and a column per field in which configs differ; None if none does."""
    fields = differences(runs)
    if not fields:
        return None
    folders = [run.path.name for run in runs]
    rows = zip(labels, folders, *fields.values(), strict=True)
    return Table(("run", "folder", *fields), tuple(rows))


def versions(run: Run) -> Table | None:
    """Returns the newest entry of the manifest, a row per field."""
    if not run.manifest:
        return None
    # An empty text, such as XLA_FLAGS without flags, would look like a missing cell.
    rows = tuple((name, str(value) or "–") for name, value in run.manifest[-1].items())
    earlier = len(run.manifest) - 1
    caption = f"manifest.json has {earlier} earlier: the run was resumed on other versions."
    return Table(("field", "value"), rows, caption if earlier else "")


def digests(run: Run) -> Table:
    """Returns the sha256 of what each generation made and of what it was made from."""
    rows: list[tuple[str, ...]] = []
    for generation in run.generations:
        rows.append((f"generation {generation.number}",))
        rows += list(generation.record.get("digests", {}).items())
        parents = generation.record.get("parents", {})
        rows += [(f"parent: {name}", digest) for name, digest in parents.items()]
    return Table(("artifact", "sha256"), tuple(rows))
