"""The numbers of runs as rows, one per run and generation: what numbers.csv holds.

Columns of a row:
  set, run, seed, generation    `set` is `main`, or `side` for the runs of a side study
  version                       of the program that wrote the record
  config.<field>                the config fields in which the runs differ; they define the arms
  setting.<field>               the config fields that the analysis reads
  verdict.<field>               the section `verdict` of the config
  metrics.<key>                 a number of the record, by its key in `measure.metrics.METRICS`
  metrics.<key>.low, .high      its interval
  metrics.<key>.null05, .null50, .null95   quantiles of its null
  metrics.<key>.p               its p-value against that null
  metrics.<key>.baseline        the same number with held-out real images as the generated ones
  pool.size, pool.real          images in the pool, and real ones among them
  pool.class_counts             images per class, numbers separated by blanks
  pool.aligned_counts           those in the bias-aligned group of their class
  pool.subgroup_counts          images per subgroup: those of the first class by group, then of the
                                second, and so on
  generated.*_counts            the three of the generated images
  train.*_counts, reserve.*_counts   and of the real images that pools may take
  recall.by_subgroup            in the order of the counts; nan where a subgroup has no test image
  seconds.<phase>, images_per_second.<phase>
An empty cell means that a run lacks the number, `nan` that it is undefined. Further tables by class
and group (fidelity, corrected shares) are in record.json only.
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
from selfloop_jax.config import PoolConfig
from selfloop_jax.config.fields import leaves
from selfloop_jax.errors import UsageError
from selfloop_jax.runtime import store

Row = dict[str, Any]  # text, numbers (NaN: undefined), or float64 arrays

NAMES = ("set", "run", "seed", "generation")
FIELD = "config."
SETTING = "setting."
VERDICT = "verdict."
TEXT = (FIELD, SETTING, VERDICT)  # columns with these prefixes hold text
RECALL = "recall.by_subgroup"

# Fields that belong to one run, not to its arm: which run it is, and how long.
OF_THE_RUN = (
    *("seed", "loop.branch_from", "loop.control_of", "loop.generations"),
    *("checkpoint.", "verdict."),
)

# Fields that the analysis reads, with the value of a config that has none.
SETTINGS = {
    "loop.control": "none",
    **{f"pool.{name}": value for name, value, _ in leaves(PoolConfig())},
    "diffusion.condition_on": "label",
    "diffusion.later.start": "",
    "measure.features": "classifier",
}


def rows(runs: Sequence[Run], side: Sequence[Run] = ()) -> list[Row]:
    """Returns one row per run and finished generation; `side` are the runs of a side study."""
    every = [*runs, *side]
    fields = differences(every)
    names = run_names(every)
    found = []
    for i, run in enumerate(every):
        shared: Row = {}  # the same in all rows of the run
        for field, values in fields.items():
            if not field.startswith(OF_THE_RUN):
                shared[FIELD + field] = values[i]
        shared |= _settings(run)
        for generation in run.generations:
            found.append(
                {
                    "set": "main" if i < len(runs) else "side",
                    "run": names[i],
                    "seed": run.seed,
                    "generation": generation.number,
                    "version": str(generation.record.get("version", "")),
                    **shared,
                    **_numbers(generation),
                }
            )
    return found


def run_names(runs: Sequence[Run]) -> list[str]:
    """Returns the folder name of each run, numbered where two runs share a name."""
    folders = [run.path.name for run in runs]
    names = []
    for i, name in enumerate(folders):
        names.append(name if folders.count(name) == 1 else f"{name} ({i + 1})")
    return names


def _settings(run: Run) -> Row:
    """The fields that the analysis reads, as text."""
    flat = store.flatten(run.config)
    row = {SETTING + name: str(flat.get(name, default)) for name, default in SETTINGS.items()}
    for name, value in run.config.get("verdict", {}).items():
        row[VERDICT + name] = " ".join(value) if isinstance(value, list) else str(value)
    return row


def _numbers(generation: Generation) -> Row:
    """Every number of one record under the name of its column."""
    row: Row = {}
    for key, number in generation.metrics.items():
        for part, value in number.parts():
            row[column(key, part)] = value
    record = generation.record
    row["pool.size"] = record["pool"]["size"]
    row["pool.real"] = record["pool"]["real"]
    aligned = np.asarray(record["data"]["aligned_group"])
    row |= _counts("pool", generation.pool_counts, aligned)
    if generation.generated_counts is not None:
        row |= _counts("generated", generation.generated_counts, aligned)
    for split, counts in generation.split_counts.items():
        row |= _counts(split, counts, aligned)
    if generation.recall is not None:
        row[RECALL] = generation.recall.ravel()
    for kind in ("seconds", "images_per_second"):
        for phase, value in (record.get(kind) or {}).items():
            row[f"{kind}.{phase}"] = math.nan if value is None else float(value)
    return row


def column(key: str, part: str = "value") -> str:
    """Returns the column of a metric, or of one part of it (`low`, `null95`, `baseline`, ...)."""
    return f"metrics.{key}" if part == "value" else f"metrics.{key}.{part}"


def _counts(place: str, counts: np.ndarray, aligned_group: np.ndarray) -> Row:
    """Images per class, in its aligned group (0 for a class without one, -1), and per subgroup."""
    own = counts[np.arange(len(counts)), aligned_group]  # of -1 the last group, dropped below
    return {
        f"{place}.class_counts": counts.sum(axis=1).astype(float),
        f"{place}.aligned_counts": np.where(aligned_group >= 0, own, 0).astype(float),
        f"{place}.subgroup_counts": counts.ravel().astype(float),
    }


def consistent(found: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Returns the rows of the runs whose counts add up, and a sentence for each other run.

    Counts of subgroups must add up to those of their class, a class has no fewer images than its
    aligned group, and a pool no fewer than its classes.
    """
    faults: dict[str, str] = {}
    for row in found:
        for fault in _faults(row):
            sentence = f"{row['run']}: left out: generation {row['generation']}: {fault}."
            faults.setdefault(row["run"], sentence)
    return [row for row in found if row["run"] not in faults], list(faults.values())


def _faults(row: Row) -> Iterator[str]:
    """What of a row's counts does not add up."""
    for name, classes in row.items():
        if not name.endswith(".class_counts"):
            continue
        place = name.removesuffix(".class_counts")
        groups = row.get(f"{place}.subgroup_counts")
        if groups is not None:
            fits = len(groups) % len(classes) == 0
            if not fits or (groups.reshape(len(classes), -1).sum(axis=1) != classes).any():
                yield f"{place}.subgroup_counts do not add up to {name}"
        aligned = row.get(f"{place}.aligned_counts")
        if aligned is not None and (len(aligned) != len(classes) or (aligned > classes).any()):
            yield f"{place}.aligned_counts are more than {name}"
    size = row.get("pool.size")
    if size is not None and "pool.class_counts" in row and row["pool.class_counts"].sum() > size:
        yield "pool.class_counts add up to more than pool.size"


def columns(found: Sequence[Row]) -> list[str]:
    """Returns all columns in the order of appearance, names and config fields first."""
    # A dict, because a set does not keep the order of appearance.
    every: dict[str, None] = {}
    for row in found:
        every |= dict.fromkeys(row)
    # The sort is stable: within its three blocks the order of appearance stays.
    return sorted(every, key=lambda name: (name not in NAMES, not name.startswith(TEXT)))


def as_csv(found: Sequence[Row]) -> str:
    """Returns the rows as the text of a CSV file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns(found), restval="", lineterminator="\n")
    writer.writeheader()
    for row in found:
        writer.writerow({name: _cell(value) for name, value in row.items()})
    return text.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return " ".join(f"{number:g}" for number in value)
    # All bits of a float: the sign-flip test counts ties.
    return repr(value) if isinstance(value, float) else str(value)


def read_csv(path: Path) -> list[Row]:
    """Returns the rows of a CSV that `as_csv` wrote. Raises UsageError for any other file."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            cells = list(csv.DictReader(file))
        if cells and any(str(name).startswith("is.") for name in cells[0]):  # now SETTING
            raise UsageError(
                f"{path}: written by selfloop_jax 0.1; this version reads 0.2 and later"
            )
        found = [_row(row) for row in cells]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, csv.Error) as error:
        raise UsageError(f"{path}: no table of runs ({error})") from error
    if not found or not set(NAMES) <= found[0].keys():
        raise UsageError(f"{path}: no table of runs; columns {', '.join(NAMES)} are needed")
    return found


def _row(cells: dict[str, str]) -> Row:
    row: Row = {}
    for name, text in cells.items():
        if name in ("set", "run", "version") or name.startswith(TEXT):
            row[name] = text
        elif text:  # an empty cell is a number that the run lacks
            numbers = [float(part) for part in text.split()]
            several = name.endswith("_counts") or name == RECALL
            row[name] = np.array(numbers) if several else numbers[0]
    row["seed"] = int(row["seed"])
    row["generation"] = int(row["generation"])
    return row
