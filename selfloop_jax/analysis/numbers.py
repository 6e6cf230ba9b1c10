"""The numbers of runs as rows, one per run and generation: what the CSV holds and what arms are made of.

A row has the run's name, seed and generation, the config fields in which the runs differ, and the
numbers of the record under their dotted names, with what stands beside each: `.low` and `.high` are
the ends of its interval, `.null05`, `.null50` and `.null95` quantiles of its null and `.p` how far
out it lies, `.floor` real images against real ones. A table of counts is written as numbers with a
blank between. Numbers by class and group (recalls, fidelity, corrected shares) are in record.json
alone.
"""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfloop_jax.analysis.config_diff import differences
from selfloop_jax.analysis.runs import Generation, Run
from selfloop_jax.errors import UsageError
from selfloop_jax.runtime import store

Row = dict[str, Any]  # text, numbers (NaN: undefined), or float64 arrays


NAMES = ("set", "run", "seed", "generation")


# What names the runs beside an arm's own: where they lie, and how long they are.
OF_THE_RUN = (
    *("seed", "loop.branch_from", "loop.control_of", "loop.generations"),
    *("checkpoint.", "verdict."),
)


FIELD = "config."


FACT = "is."  # what decides how a run is read, whether or not the runs differ in it


FACTS = {
    "loop.control": "none",
    "pool.rule": "",
    "pool.budget": 0,
    "pool.alpha": 0.0,
    "pool.match_group": False,
    "pool.n_real": 0,
    "pool.n_generated": 0,
    "diffusion.condition_on": "label",
    "diffusion.later.start": "",
}


VERDICT = "verdict."  # what was fixed beforehand: the same in all rows


_QUANTILES = ("null05", "null50", "null95")


def rows(runs: Sequence[Run], side: Sequence[Run] = ()) -> list[Row]:
    """One row per run and finished generation; `side` are the runs that a prediction rests on."""
    runs, main = [*runs, *side], len(runs)
    fields = {name: v for name, v in differences(runs).items() if not name.startswith(OF_THE_RUN)}
    names_of_runs, found = run_names(runs), []
    for i, run in enumerate(runs):
        told = {f"{FIELD}{name}": values[i] for name, values in fields.items()}
        flat = store.flatten(run.config)
        told |= {FACT + name: str(flat.get(name, default)) for name, default in FACTS.items()}
        for name, value in run.config.get("verdict", {}).items():
            told[VERDICT + name] = " ".join(value) if isinstance(value, list) else str(value)
        for generation in run.generations:
            names = {
                "set": "main" if i < main else "side",
                "run": names_of_runs[i],
                "seed": run.seed,
                "generation": generation.number,
            }
            found.append(names | told | dict(_numbers(generation, run.data["aligned_group"])))
    return found


def run_names(runs: Sequence[Run]) -> list[str]:
    """The name of each run's folder, with its place among the runs where two folders share a name."""
    folders = [run.path.name for run in runs]
    return [
        name if folders.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(folders)
    ]


def _numbers(generation: Generation, aligned_group: Sequence[int]) -> Iterator[tuple[str, Any]]:
    """Every number of one record."""
    record = generation.record
    beside = (record.get("uncertainty") or {}).get("metrics", {})
    for name, value in record["metrics"].items():
        yield f"metrics.{name}", _number(value)
        yield from _uncertainty(f"metrics.{name}", beside.get(name) or {})
    samples = record["samples"] or {}
    for name, value in samples.items():
        if value is None or isinstance(value, int | float):
            yield f"samples.{name}", _number(value)
            yield from _uncertainty(
                f"samples.{name}", (samples.get("beside") or {}).get(name) or {}
            )
    aligned = (samples.get("corrected") or {}).get("aligned")
    if aligned:
        yield "samples.corrected.aligned.share", _number(aligned["share"])
        yield from _uncertainty("samples.corrected.aligned.share", aligned)
    for name, found in (record.get("spurious") or {"ablations": {}})["ablations"].items():
        yield f"spurious.ablations.{name}.class_mean", _number(found["class_mean"])
    fidelity = record.get("fidelity") or {"overall": {}}
    for name, value in fidelity["overall"].items():
        yield f"fidelity.{name}", _number(value)
        yield f"fidelity.{name}.floor", _number(fidelity["floor"][name])
    copied = fidelity.get("memorization")
    if copied:
        yield "fidelity.memorized_share", _number(copied["share_nearer"])
        yield from _uncertainty("fidelity.memorized_share", copied)
        yield "fidelity.memorized_share.floor", _number(copied["floor"]["share_nearer"])
    yield "pool.size", record["pool"]["size"]
    yield "pool.real", record["pool"]["real"]
    for place, joint in (("pool", record["pool"]["joint"]), ("samples", samples.get("joint"))):
        if joint is not None:
            joint, aligned = np.asarray(joint, float), np.asarray(aligned_group)
            yield f"{place}.class_counts", joint.sum(axis=1)
            own = np.where(aligned >= 0, joint[np.arange(len(joint)), aligned], 0)
            yield f"{place}.aligned_counts", own
    for kind in ("seconds", "images_per_second"):
        for phase, value in (record.get(kind) or {}).items():
            yield f"{kind}.{phase}", _number(value)


def _uncertainty(name: str, found: store.Json) -> Iterator[tuple[str, float]]:
    """Interval and null of a number, as far as it has them."""
    for end in ("low", "high"):
        if end in found:
            yield f"{name}.{end}", _number(found[end])
    if found.get("p") is not None:
        yield f"{name}.p", _number(found["p"])
    if found.get("null"):
        yield from zip(
            (f"{name}.{q}" for q in _QUANTILES), map(_number, found["null"]), strict=True
        )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def columns(found: Sequence[Row]) -> list[str]:
    """All columns, the names and config fields first, in the order of their first appearance."""
    every = list(dict.fromkeys(name for row in found for name in row))
    return sorted(
        every, key=lambda name: (name not in NAMES, not name.startswith((FIELD, FACT, VERDICT)))
    )


def as_csv(found: Sequence[Row]) -> str:
    """The rows as text: empty cells for what a run has no number of, `nan` for what is undefined."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns(found), restval="", lineterminator="\n")
    writer.writeheader()
    for row in found:
        writer.writerow({name: _cell(value) for name, value in row.items()})
    return text.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return " ".join(f"{number:g}" for number in value)
    return repr(value) if isinstance(value, float) else str(value)  # to the bit: tests count ties


def read_csv(path: Path) -> list[Row]:
    """The rows of a CSV that `as_csv` wrote; UsageError where it is none."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            found = [_row(row) for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, csv.Error) as error:
        raise UsageError(f"{path}: no table of runs ({error})") from error
    if not found or not set(NAMES) <= found[0].keys():
        raise UsageError(f"{path}: no table of runs; columns {', '.join(NAMES)} are needed")
    return found


def _row(cells: dict[str, str]) -> Row:
    row: Row = {}
    for name, text in cells.items():
        if name in ("set", "run") or name.startswith((FIELD, FACT, VERDICT)):
            row[name] = text
        elif text:
            numbers = [float(part) for part in text.split()]
            row[name] = np.array(numbers) if name.endswith("_counts") else numbers[0]
    return row | {name: int(row[name]) for name in ("seed", "generation")}
