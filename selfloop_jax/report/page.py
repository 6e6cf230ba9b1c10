"""Runs -> drawings, tables and sentences -> one HTML file, and the PNGs beside it."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from selfloop_jax import store
from selfloop_jax.errors import UsageError
from selfloop_jax.report import compare, curves, pictures, pool, shares, spurious, tables, words
from selfloop_jax.report.read import Run, read_runs
from selfloop_jax.report.style import Drawing, house_style
from selfloop_jax.report.tables import Table


@dataclass(frozen=True)
class Part:
    """What the page shows of one run."""

    label: str
    subtitle: str
    caveats: list[str]
    samples: Drawing | None
    maps: list[Drawing]
    training: list[Drawing]
    metrics: Table
    seconds: Table
    versions: Table | None
    digests: Table
    config: str

    @property
    def drawings(self) -> list[Drawing]:
        """All pictures, in the order of the page."""
        return [*([self.samples] if self.samples else []), *self.maps, *self.training]


def write(workdirs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of one run, or of several overlaid, and return the path of the page.

    The page is `WORKDIR/report.html`, or `FIRST/overlay.html` for several, unless `out` names another; its
    drawings lie as PNG files in the folder of the same stem. Raises UsageError for a mistake in the arguments
    and RunError for a damaged run; nothing is written then.
    """
    runs = read_runs(workdirs)
    page = _destination(workdirs, out)
    with house_style():
        labels = compare.labels(runs)
        metric_curves = curves.metric_curves(runs, labels)
        parts = [
            _part(run, label, _prefix(i, runs))
            for i, (run, label) in enumerate(zip(runs, labels, strict=True))
        ]
    html = _render(
        title=words.title(runs),
        sentences=words.summary(runs),
        differences=tables.config_differences(runs, labels),
        curves=metric_curves,
        parts=parts,
        many=len(runs) > 1,
    )
    drawings = [*metric_curves, *(drawing for part in parts for drawing in part.drawings)]
    try:
        _save(page, html, drawings)
    except OSError as error:
        raise UsageError(f"--out: {page} cannot be written ({error.strerror}); name another file") from error
    return page


def _destination(workdirs: Sequence[Path], out: Path | None) -> Path:
    if out is None:
        return Path(workdirs[0]) / ("report.html" if len(workdirs) == 1 else "overlay.html")
    if Path(out).suffix != ".html":
        raise UsageError(f"--out: {str(out)!r}; a file name ending in .html is needed")
    return Path(out)


def _prefix(i: int, runs: Sequence[Run]) -> str:
    return f"run{i + 1}_" if len(runs) > 1 else ""


def _part(run: Run, label: str, prefix: str) -> Part:
    maps = [shares.share_map(run, prefix), shares.recall_map(run, prefix)]
    maps += [shares.annotator_map(run, prefix), spurious.sensitivity(run, prefix)]
    return Part(
        label=label,
        subtitle=words.subtitle(run),
        caveats=words.caveats(run),
        samples=pictures.sample_grid(run, prefix),
        maps=[drawing for drawing in maps if drawing],
        training=[pool.pool_bars(run, prefix), *curves.loss_curves(run, prefix)],
        metrics=tables.metrics(run),
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


def _save(page: Path, html: str, drawings: Sequence[Drawing]) -> None:
    """PNGs first, the page last and in one step, so that a page is never half there."""
    for drawing in drawings:
        store.write_bytes(page.with_suffix("") / f"{drawing.name}.png", drawing.png)
    store.write_bytes(page, html.encode())
