"""`python -m selfloop_jax.report.markdown NUMBERS.csv [--into=FILE.md]`: the tables of a study from its CSV.

Prints the tables as Markdown or, with --into, puts them between the two lines of the file that name
the CSV: `<!-- tables of NAME.csv -->` and `<!-- end of NAME.csv -->`.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from selfloop_jax.analysis import forecast, numbers, verdicts
from selfloop_jax.analysis.arms import CONTROLS, Arm, arms, control_of
from selfloop_jax.errors import UsageError
from selfloop_jax.measure import sign_test
from selfloop_jax.report import forecast as forecast_figures
from selfloop_jax.report import verdicts as verdict_text
from selfloop_jax.report.metrics import ACCURACY, ALIGNED, OPPORTUNITY, Metric
from selfloop_jax.report.tables import Table
from selfloop_jax.runtime import store
from selfloop_jax.runtime.cli import Parser

FIDELITY = (
    Metric("fidelity", "frechet", "Frechet distance"),
    Metric("fidelity", "precision", "precision"),
    Metric("fidelity", "recall", "recall"),
    Metric("fidelity", "memorized_share", "nearer to training"),
)


CONTRAST = Metric("metrics", "aligned_contrast", "aligned minus others")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints or writes the tables; the exit code."""
    parser = Parser("report.markdown", "NUMBERS.csv [--into=FILE.md]", __doc__)
    parser.add_argument("numbers", metavar="NUMBERS.csv", type=Path)
    parser.add_argument("--into", metavar="FILE.md", type=Path)
    try:
        args = parser.parse_args(argv)
        text = markdown(numbers.read_csv(args.numbers))
        if args.into is None:
            print(text)
        else:
            insert(args.into, args.numbers.name, text)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def insert(path: Path, name: str, text: str) -> None:
    """Puts the text between the lines that name the CSV, and leaves the rest of the file as it is."""
    begin, end = f"<!-- tables of {name} -->\n", f"<!-- end of {name} -->"
    whole = path.read_text() if path.is_file() else ""
    if begin not in whole or end not in whole.partition(begin)[2]:
        raise UsageError(
            f"--into={path}: allowed are files with the lines {begin.strip()} and {end}"
        )
    before, _, rest = whole.partition(begin)
    store.write_bytes(path, f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}".encode())


def markdown(found: Sequence[numbers.Row]) -> str:
    """All tables of a study."""
    every = arms([row for row in found if row["set"] == "main"])
    tested = verdicts.findings(every)
    curves = forecast.curves([row for row in found if row["set"] == "side"])
    made = forecast.forecasts(every, curves)[0] if curves else []
    parts = [("Verdicts", verdict_text.table(tested))] if tested else []
    parts += [("Levels", _levels(every))]
    if contrasts := _contrasts(every):
        parts += [("Loop minus control, whichever control", contrasts)]
    if fidelity := _fidelity(every):
        parts += [("Generated images", fidelity)]
    parts += [("Prediction", forecast_figures.forecast_table(made))] if made else []
    text = "\n\n".join(f"### {title}\n\n{_markdown(table)}" for title, table in parts)
    return f"{text}\n\n{forecast.response_formulas(curves)}" if curves else text


def _markdown(table: Table) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (table.header, *table.rows)]
    lines.insert(1, "|" + "---|" * len(table.header))
    return "\n".join(lines) + (f"\n\n{table.caption}" if table.caption else "")


def _levels(every: Sequence[Arm]) -> Table:
    """Where every arm begins and ends."""
    metrics = (ACCURACY, OPPORTUNITY, CONTRAST, ALIGNED)
    body = []
    for arm in every:
        cells = (_ends(arm, metric) for metric in metrics)
        body.append((arm.name, str(len(arm.runs)), *cells))
    caption = "Mean over seeds in generation 0 → in the last one, with its 95 % t interval."
    return Table(("arm", "seeds", *(metric.name for metric in metrics)), tuple(body), caption)


def _ends(arm: Arm, metric: Metric) -> str:
    values = arm.series(metric.column)
    if np.isnan(values[:, -1]).all():
        return "–"
    first, last = np.nanmean(values[:, 0]), np.nanmean(values[:, -1])
    low, high = (end[-1] for end in arm.interval(metric.column))
    return f"{first:.3f} → {last:.3f}" + ("" if np.isnan(low) else f" [{low:.3f}, {high:.3f}]")


def _contrasts(every: Sequence[Arm]) -> Table | None:
    """Change of the loop minus change of each of its controls; intervals alone, nothing tested."""
    metrics = (OPPORTUNITY, CONTRAST, ACCURACY)
    body = [
        (arm.name, kind, *(_contrast(arm, other, metric) for metric in metrics))
        for arm in every
        for kind in CONTROLS
        if arm.control == "none" and (other := control_of(arm, every, kind))
    ]
    caption = (
        "Mean over seeds of [last - generation 0] of the loop minus the same of the control, with its 95 % t "
        "interval, not adjusted for how many there are: for reading, no verdict rests on them."
    )
    return (
        Table(("loop", "control", *(m.name for m in metrics)), tuple(body), caption)
        if body
        else None
    )


def _contrast(arm: Arm, other: Arm, metric: Metric) -> str:
    loop, control = verdicts.changes(arm, other, metric.column)
    d = (loop - control)[~np.isnan(loop - control)]
    if not len(d):
        return "–"
    return verdict_text.with_interval(d.mean(), *sign_test.interval(d, 0.95))


def _fidelity(every: Sequence[Arm]) -> Table | None:
    body = list(_fidelity_rows(every))
    header = ("loop", *(metric.name for metric in FIDELITY))
    caption = (
        "Means over seeds in generation 0 → in the last one, in brackets the floor of the last: held-out "
        "real images in place of generated ones."
    )
    return Table(header, tuple(body), caption) if body else None


def _fidelity_rows(every: Sequence[Arm]) -> Iterator[tuple[str, ...]]:
    for arm in every:
        if arm.control == "none" and not np.isnan(arm.series(FIDELITY[0].column)).all():
            cells = []
            for metric in FIDELITY:
                values, floor = arm.series(metric.column), arm.series(f"{metric.column}.floor")
                ends = (np.nanmean(values[:, g]) for g in (0, -1))
                cells.append("{:.2f} → {:.2f} [{:.2f}]".format(*ends, np.nanmean(floor[:, -1])))
            yield (arm.name, *cells)


if __name__ == "__main__":
    sys.exit(main())
