"""Print the tables of a study as Markdown, from the numbers.csv of its report.

    python -m selfloop_jax.report.markdown runs/study/study/numbers.csv
    python -m selfloop_jax.report.markdown docs/digits_study.csv --into=docs/results.md

NUMBERS.csv    the numbers.csv that `python -m selfloop_jax.report` wrote
--into         puts the tables between the two lines of FILE.md that name the CSV, and leaves the
               rest of the file as it is: `<!-- tables of NAME.csv -->`, `<!-- end of NAME.csv -->`

Tables: verdicts, levels of every arm, what a change is made of, contrasts with every control,
fidelity of the generated images, their coverage against copy machines, forecasts where the CSV has
a side study, and what each arm cost. Before them the tested sentences.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from selfloop_jax.analysis import (
    counts_forecast,
    decomposition,
    drift,
    forecast,
    numbers,
    verdicts,
)
from selfloop_jax.analysis.arms import Arm, arms, control_of
from selfloop_jax.data.controls import CONTROLS
from selfloop_jax.errors import UsageError
from selfloop_jax.measure import sign_test
from selfloop_jax.report import costs, text
from selfloop_jax.report import counts_forecast as counts_text
from selfloop_jax.report import decomposition as decomposition_text
from selfloop_jax.report import drift as drift_figures
from selfloop_jax.report import forecast as forecast_figures
from selfloop_jax.report import verdicts as verdict_text
from selfloop_jax.report.panels import features_of, title_of
from selfloop_jax.report.tables import Table
from selfloop_jax.runtime import store
from selfloop_jax.runtime.cli import Parser, one_line_errors

LEVELS = ("accuracy", forecast.GAP, "aligned_contrast", forecast.SHARE)
CONTRASTS = (forecast.GAP, "aligned_contrast", "accuracy")
FIDELITY = ("fid", "precision", "recall", "memorized_share")


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Prints or writes the tables; returns the exit code."""
    parser = Parser("report.markdown", "NUMBERS.csv [--into=FILE.md]", __doc__)
    parser.add_argument("numbers", metavar="NUMBERS.csv", type=Path)
    parser.add_argument("--into", metavar="FILE.md", type=Path)
    args = parser.parse_args(argv)
    tables = markdown(numbers.read_csv(args.numbers))
    if args.into is None:
        print(tables)
    else:
        insert(args.into, args.numbers.name, tables)
    return 0


def insert(path: Path, name: str, text: str) -> None:
    """Replaces the text between the two lines of the file that name the CSV."""
    begin = f"<!-- tables of {name} -->\n"
    end = f"<!-- end of {name} -->"
    whole = path.read_text() if path.is_file() else ""
    # `partition` leaves the rest of the file byte for byte as it is.
    before, _, rest = whole.partition(begin)
    if begin not in whole or end not in rest:
        raise UsageError(f"--into={path}: the file needs the lines {begin.strip()} and {end}")
    after = rest.partition(end)[2]
    store.write_bytes(path, f"{before}{begin}\n{text}\n{end}{after}".encode())


def markdown(rows: Sequence[numbers.Row]) -> str:
    """Returns all tables of a study."""
    rows, faults = numbers.consistent(rows)
    # The side study has other seeds: it is no arm, and serves the curves alone.
    every = arms([row for row in rows if row["set"] == "main"])
    side = [row for row in rows if row["set"] == "side"]
    findings = verdicts.findings(every)
    drifted = drift.drifts(every)[0]
    made_of = decomposition.decompositions(every, findings[0].metric if findings else forecast.GAP)
    tables: list[tuple[str, Table | None]] = [
        *verdict_text.tables(findings),
        ("Levels", _levels(every)),
        (
            "What the change is made of",
            decomposition_text.decomposition_table(made_of) if made_of else None,
        ),
        ("Contrasts with every control", _contrasts(every)),
        ("Generated images", _fidelity(every)),
        ("Coverage against copy machines", drift_figures.drift_table(drifted) if drifted else None),
    ]
    parts = []
    for title, lines in (
        ("Left out", faults),
        ("Planned", text.tested(every, findings)),
        ("Not planned", verdict_text.headlines(findings, planned=False)),
    ):
        if lines:
            parts.append(f"### {title}\n\n{_sentences(lines)}")
    parts += _titled(tables)
    parts += _of_shares(every, side)
    parts += _of_counts(every, side)
    parts += _titled([("Cost", costs.cost_table(every))])
    return "\n\n".join(parts)


def _titled(tables: Sequence[tuple[str, Table | None]]) -> list[str]:
    return [f"### {title}\n\n{_markdown(table)}" for title, table in tables if table]


def _sentences(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _of_shares(every: Sequence[Arm], side: Sequence[numbers.Row]) -> list[str]:
    """Forecasts of shares, where the side study has generators."""
    curves = forecast.curves(side)
    if curves is None:
        return []
    made, reasons = forecast.forecasts(every, curves)
    tables = [("Forecasts", forecast_figures.forecast_table(made) if made else None)]
    lines = [_sentences(reasons)] if reasons else []
    return [*_titled(tables), *lines, forecast.response_formulas(curves)]


def _of_counts(every: Sequence[Arm], side: Sequence[numbers.Row]) -> list[str]:
    """Forecasts from counts, where the side study has classifiers of real images."""
    law = counts_forecast.law(side)
    if law is None:
        return []
    made, reasons = counts_forecast.forecasts(every, law)
    compared = counts_forecast.comparisons(made)
    tables = counts_text.titled_tables(made, compared, law)
    sentences = [*counts_text.sentences(made, compared), *reasons]
    start = [f"### Forecast from counts\n\n{_sentences(sentences)}"] if sentences else []
    return [*start, *_titled(tables), counts_text.formula(law)]


def _markdown(table: Table) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (table.header, *table.rows)]
    lines.insert(1, "|" + "---|" * len(table.header))
    return "\n".join(lines) + (f"\n\n{table.caption}" if table.caption else "")


def _levels(every: Sequence[Arm]) -> Table:
    """The first and the last level of every arm."""
    rows = []
    for arm in every:
        rows.append((arm.name, str(len(arm.runs)), *(_level(arm, key) for key in LEVELS)))
    caption = (
        "Mean over seeds, generation 0 → last generation, with the last one's 95 % t interval."
    )
    return Table(("arm", "seeds", *map(title_of, LEVELS)), tuple(rows), caption)


def _level(arm: Arm, key: str) -> str:
    mean = arm.mean(key)
    if np.isnan(mean[-1]):
        return "–"
    low, high = (end[-1] for end in arm.interval(key))
    interval = "" if np.isnan(low) else f" [{low:.3f}, {high:.3f}]"
    return f"{mean[0]:.3f} → {mean[-1]:.3f}{interval}"


def _contrasts(every: Sequence[Arm]) -> Table | None:
    """Change of each loop minus change of each of its controls: intervals, no tests."""
    rows = []
    for arm in every:
        if not arm.is_loop:
            continue
        for kind in CONTROLS:
            control = control_of(arm, every, kind)
            if control is not None:
                rows.append((arm.name, kind, *(_contrast(arm, control, key) for key in CONTRASTS)))
    caption = (
        "Mean over seeds of the change (last generation minus generation 0) of the loop minus that "
        "of the control, with its 95 % t interval, not adjusted for multiplicity: no verdict rests "
        "on these."
    )
    header = ("loop", "control", *map(title_of, CONTRASTS))
    return Table(header, tuple(rows), caption) if rows else None


def _contrast(arm: Arm, control: Arm, key: str) -> str:
    loop, other = verdicts.changes(arm, control, key)
    # A seed that lacks either end has no contrast.
    contrasts = loop - other
    contrasts = contrasts[~np.isnan(contrasts)]
    if not len(contrasts):
        return "–"
    return verdict_text.with_interval(contrasts.mean(), *sign_test.interval(contrasts, 0.95))


def _fidelity(every: Sequence[Arm]) -> Table | None:
    rows = tuple(_fidelity_rows(every))
    caption = (
        "Mean over seeds, generation 0 → last generation, in brackets the baseline of the last: "
        "held-out real images in place of generated ones."
    )
    features = features_of(every)
    header = ("loop", *(title_of(key, features) for key in FIDELITY))
    return Table(header, rows, caption) if rows else None


def _fidelity_rows(every: Sequence[Arm]) -> Iterator[tuple[str, ...]]:
    for arm in every:
        if not arm.is_loop or np.isnan(arm.series(FIDELITY[0])).all():
            continue
        cells = []
        for key in FIDELITY:
            mean = arm.mean(key)
            baseline = arm.mean(key, "baseline")
            cells.append(f"{mean[0]:.2f} → {mean[-1]:.2f} [{baseline[-1]:.2f}]")
        yield (arm.name, *cells)


if __name__ == "__main__":
    sys.exit(main())
