"""Tables of predictions of any classifier: CSV or .npz to a `TestSet` with names. No jax.

Columns are `label`, `pred`, `group` and perhaps `source_id`. Labels and groups are numbers from 0
or names; a group that is missing (empty, NaN, NA, ...), or -1 among numbers, is unknown.
"""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from selfloop_jax.data.images import is_nested
from selfloop_jax.errors import RunError, UsageError
from selfloop_jax.measure.test_set import TestSet
from selfloop_jax.runtime import store

REQUIRED = ("label", "pred", "group")
OPTIONAL = "source_id"
SEPARATORS = (",", ";", "\t", "|")
MOST_COUNTS = 10**8  # classes x groups x classes: a column of ids taken for labels has more

# How programs write that there is no value, in lower case.
MISSING = ("", "na", "n/a", "nan", "none", "null")

# A number as pandas writes it, which turns a column with an empty cell into 3.0.
WHOLE = re.compile(r"[+-]?\d+(\.0*)?")


@dataclass(frozen=True)
class Table:
    """A test set, the names of its classes and groups, and the columns that were not read."""

    test_set: TestSet
    classes: list[str]
    groups: list[str]
    unread: list[str]


def read_table(
    path: Path,
    class_names: Sequence[str] | None = None,
    group_names: Sequence[str] | None = None,
    nested: bool | None = None,
) -> Table:
    """The test set in a CSV with a header or in an .npz; UsageError says what does not fit.

    An .npz may have `logits` [N,C] in place of `pred`, as predictions.npz of a run has. The names
    are those of numbers 0, 1, ..., or all names (or numbers) that may occur; without them the
    values that occur are all there are. nested: whether each group belongs to one class, by default
    where each group occurs with one label only.
    """
    _check_names("--class_names", class_names)
    _check_names("--group_names", group_names)
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    columns = _read_npz(path) if path.suffix.lower() == ".npz" else _read_csv(path)
    # Every predictions.npz has `id`, which nothing here needs: no notice of it.
    unread = [name for name in columns if name not in (*REQUIRED, OPTIONAL, "id")]
    if "logits" in columns and "pred" not in columns:
        unread.remove("logits")
        logits = _logits(path, columns.pop("logits"))
        columns["pred"] = logits.argmax(axis=1).tolist()
        # Logits have a column per class, also of classes that no image has.
        class_names = class_names or [str(c) for c in range(logits.shape[1])]
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        raise UsageError(
            f"{path}: no column {missing[0]}; its columns are {', '.join(columns) or 'none'}; "
            f"must have {', '.join(REQUIRED)}"
        )
    if not len(columns["label"]):
        raise UsageError(f"{path}: no rows")
    label, pred, classes = _classes(path, columns["label"], columns["pred"], class_names)
    group, groups = _groups(path, columns["group"], group_names)
    if len(classes) ** 2 * len(groups) > MOST_COUNTS:
        raise UsageError(
            f"{path}: {len(classes)} different labels and {len(groups)} groups are too "
            "many to count subgroups"
        )
    source = _sources(path, columns[OPTIONAL]) if OPTIONAL in columns else None
    if nested is None:
        # Columns of different length are refused by TestSet below.
        nested = label.shape == group.shape and _is_nested(label, group, len(groups))
    try:
        test_set = TestSet(
            label, pred, group, len(classes), len(groups), source_id=source, nested=nested
        )
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error
    return Table(test_set, classes, groups, unread)


def _check_names(flag: str, names: Sequence[str] | None) -> None:
    """UsageError where a name is empty or given twice."""
    values = _values(names or ())
    if "" in values or len(set(values)) < len(values):
        raise UsageError(f"{flag}={','.join(names or ())}: must be different names, none empty")


def _is_nested(label: np.ndarray, group: np.ndarray, groups: int) -> bool:
    """Whether each known group of int[N] occurs with one of several labels of int[N] only."""
    known = group >= 0
    present, row = np.unique(label, return_inverse=True)
    occurs = np.zeros((len(present), groups), bool)
    occurs[row[known], group[known]] = True
    return bool(known.any()) and is_nested(occurs)


def _read_csv(path: Path) -> dict[str, list[str]]:
    """The cells of each column, without blanks around them."""
    try:
        # Spreadsheets begin a UTF-8 file with a byte order mark.
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text") from error
    header, _, _ = text.partition("\n")
    # The separator is the one that the header has most of.
    separator = max(SEPARATORS, key=header.count)
    lines = io.StringIO(text, newline="")
    rows = csv.reader(lines, delimiter=separator, skipinitialspace=True)
    names: list[str] = []
    cells: list[list[str]] = []
    try:
        for row in rows:
            stripped = [cell.strip() for cell in row]
            if not any(stripped):
                continue
            if not names:
                names = [name.lower() for name in stripped]
            elif len(stripped) != len(names):
                raise UsageError(
                    f"{path}: line {rows.line_num} has {len(stripped)} cells, the header "
                    f"{len(names)}"
                )
            else:
                cells.append(stripped)
    except csv.Error as error:
        raise UsageError(f"{path}: line {rows.line_num}: {error}") from error
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UsageError(f"{path}: two columns are called {twice[0]}")
    columns = {}
    for i, name in enumerate(names):
        columns[name] = [row[i] for row in cells]
    return columns


def _read_npz(path: Path) -> dict[str, Any]:
    """The arrays of a file; one-dimensional ones as lists."""
    try:
        arrays = store.read_npz(path)
    except RunError as error:
        raise UsageError(str(error)) from error
    return {name: a.tolist() if a.ndim == 1 else a for name, a in arrays.items()}


def _logits(path: Path, logits: Any) -> np.ndarray:
    logits = np.asarray(logits)
    if logits.ndim != 2 or not np.issubdtype(logits.dtype, np.number):
        raise UsageError(f"{path}: logits: shape {logits.shape}; must be numbers [N,C]")
    if not np.isfinite(logits).all():
        raise UsageError(f"{path}: logits: NaN or infinite values; must be finite")
    return logits


def _classes(
    path: Path, label: Any, pred: Any, names: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Labels and predictions as int64[N], and the names of the classes."""
    known: Sequence[Any]
    columns: dict[str, list[Any]] = {
        "label": _complete(path, "label", label, names),
        "pred": _complete(path, "pred", pred, names),
    }
    label_numbers = _numbers(columns["label"])
    pred_numbers = _numbers(columns["pred"])
    # Numbers only where both columns hold numbers; otherwise both hold names.
    if label_numbers is not None and pred_numbers is not None:
        columns = {"label": label_numbers, "pred": pred_numbers}
        for name, values in columns.items():
            _check_not_negative(path, name, values, "0 or more")
        known = sorted({*label_numbers, *pred_numbers}) if names is None else _named(names)
        classes = [str(value) for value in known] if names is None else list(names)
    else:
        # A prediction that is the label of no image is more often misspelt than right.
        known = sorted(set(columns["label"])) if names is None else names
        classes = list(known)
    hint = "; --class_names adds classes without test images" if names is None else ""
    label, pred = (_encode(path, n, c, known, classes, hint) for n, c in columns.items())
    return label, pred, classes


def _groups(path: Path, group: Any, names: Sequence[str] | None) -> tuple[np.ndarray, list[str]]:
    """Groups as int64[N], -1 where unknown, and their names."""
    cells = _cells(path, "group", group, names)
    present = [cell for cell in cells if cell is not None]
    numbers = _numbers(present)
    if numbers is None:
        known: Sequence[Any] = sorted(set(present)) if names is None else names
        groups = list(known)
    else:
        of_cell = iter(numbers)
        # The numbers go back to their rows, between the empty cells.
        cells = [None if cell is None else next(of_cell) for cell in cells]
        cells = [None if cell == -1 else cell for cell in cells]
        present = [cell for cell in cells if cell is not None]
        _check_not_negative(path, "group", present, "0 or more, or -1 for unknown")
        known = sorted(set(present)) if names is None else _named(names)
        groups = [str(value) for value in known] if names is None else list(names)
    return _encode(path, "group", cells, known, groups, ""), groups


def _sources(path: Path, column: Any) -> np.ndarray:
    """The source image of each row, as a number or as text."""
    cells = _complete(path, OPTIONAL, column, None)
    numbers = _numbers(cells)  # in the order of numbers, as in the arrays of a run
    return np.array(cells if numbers is None else numbers)


def _cells(path: Path, name: str, column: Any, names: Sequence[str] | None) -> list[Any]:
    """A column as text, None where a value is missing; `none` is a value if it is in `names`."""
    if isinstance(column, np.ndarray):
        raise UsageError(f"{path}: {name}: shape {column.shape}; must be (N,)")
    # NaN and None of an array become the texts that programs write for them.
    texts = [str(cell).strip() for cell in column]
    missing = {text for text in set(texts) if text.lower() in MISSING} - set(names or ())
    return [None if text in missing else text for text in texts]


def _complete(path: Path, name: str, column: Any, names: Sequence[str] | None) -> list[str]:
    """A column as text; UsageError where a value is missing."""
    cells = _cells(path, name, column, names)
    if None in cells:
        row = cells.index(None)
        text = str(column[row]).strip() or "empty"
        raise UsageError(f"{path}: {name}: {text} in row {row + 1}; must be a number or a name")
    return cells


def _named(names: Sequence[str]) -> Sequence[int | str]:
    """What a column of numbers has for each name: its place or, of names with numbers, itself."""
    values = _values(names)
    return values if any(isinstance(value, int) for value in values) else range(len(names))


def _values(names: Sequence[str]) -> list[int | str]:
    """Names as they are, and those that are whole numbers as numbers."""
    return [_number(name) if WHOLE.fullmatch(name) else name for name in names]


def _number(text: str) -> int:
    """The whole number that `WHOLE` matches."""
    return int(text.partition(".")[0])


def _numbers(cells: Sequence[str]) -> list[int] | None:
    """The cells as whole numbers; None unless all of them are."""
    if not all(WHOLE.fullmatch(cell) for cell in cells):
        return None
    return [_number(cell) for cell in cells]


def _check_not_negative(path: Path, name: str, values: Sequence[int], rule: str) -> None:
    """UsageError where a number is below 0."""
    if values and min(values) < 0:
        row = values.index(min(values)) + 1
        raise UsageError(f"{path}: {name}: {min(values)} in row {row}; must be {rule}")


def _encode(
    path: Path, name: str, cells: Sequence[Any], known: Sequence[Any], names: list[str], hint: str
) -> np.ndarray:
    """int64[N]: the place of each cell among the known values, -1 for None."""
    place = {None: -1} | {value: i for i, value in enumerate(known)}
    for row, cell in enumerate(cells):
        if cell not in place:
            shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            raise UsageError(
                f"{path}: {name}: {cell} in row {row + 1}; must be one of {shown}{hint}"
            )
    return np.array([place[cell] for cell in cells], np.int64)
