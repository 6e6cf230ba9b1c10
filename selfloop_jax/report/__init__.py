"""The report of one run or of several overlaid: one self-contained HTML page and its PNGs."""

from collections.abc import Sequence
from pathlib import Path


def write(workdirs: Sequence[Path], out: Path | None = None, side: Sequence[Path] = ()) -> Path:
    """Writes the report of the runs and returns the path of its page: see `report.page.write`."""
    # Imported here: matplotlib and jinja2 take seconds, and a run may have its report disabled.
    from selfloop_jax.report import page

    return page.write(workdirs, out, side)


__all__ = ["write"]
