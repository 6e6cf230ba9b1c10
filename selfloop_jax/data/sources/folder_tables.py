"""metadata.csv and metadata.jsonl: the rows of a split, with file, label and group as text."""

import csv
import difflib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfloop_jax.errors import UsageError

FILE = "file_name"
GROUP = "group"  # the one column that a table may lack
# What other programs call the column of files, in small letters without signs between.
FILES = ("file", "filepath", "path", "image", "imagepath", "imagefile", "imagename", "img", "name")
LABELS = ("class", "classname", "classlabel", "category", "target", "y")
ALIKE = 0.8  # of difflib: `lable`, `filenames`, `gruop`


@dataclass(frozen=True)
class Columns:
    """The columns that hold label and group, as the config names them."""

    label: str
    group: str


@dataclass(frozen=True)
class Record:
    """A row of a table: its file below the split's folder, label and group.

    What errors name: `place`, the row, and `image`, the row and its file.
    """

    file: str
    label: str
    group: str
    place: str
    image: str


@dataclass(frozen=True)
class _Table:
    """A table as it is read: the columns, and each row with its number in an editor."""

    header: list[str]
    rows: list[tuple[int, dict[str, Any]]]


def read(path: Path, columns: Columns) -> tuple[list[Record], list[str]]:
    """The rows of a table, and the names of the columns that nobody reads.

    UsageError naming file and row for whatever does not fit.
    """
    table = _json_lines(path) if path.suffix == ".jsonl" else _csv(path)
    _check_header(table.header, columns, path)
    if not table.rows:
        raise UsageError(f"{path}: it lists no image; there must be a row for each")
    records = []
    for number, row in table.rows:
        place = f"{path}, row {number}"
        names = (FILE, columns.label, columns.group)
        file, label, group = (_text(row.get(name), place, name) for name in names)
        records.append(Record(file, label, group, place, f"{place}, {FILE} = {file!r}"))
    wanted = (FILE, columns.label, columns.group)
    return records, [name for name in table.header if name not in wanted]


def read_text(path: Path) -> str:
    """The text of a file; UsageError where it cannot be read or is not UTF-8."""
    try:
        # Spreadsheets put a byte order mark first; utf-8-sig drops it.
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: byte {error.start} is not UTF-8; save it as UTF-8") from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error


def _csv(path: Path) -> _Table:
    """A table in CSV; blank lines are left out."""
    # newline="" leaves line ends to csv, since a quoted cell can hold some.
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        lines = [(reader.line_num, cells) for cells in reader if any(map(str.strip, cells))]
    except csv.Error as error:
        raise UsageError(f"{path}, row {reader.line_num}: not a CSV: {error}") from error
    header = [cell.strip() for cell in lines[0][1]] if lines else []
    rows = []
    for number, cells in lines[1:]:
        if len(cells) != len(header):
            raise UsageError(
                f"{path}, row {number}: {len(cells)} cells under {len(header)} columns"
            )
        rows.append((number, dict(zip(header, cells, strict=True))))
    return _Table(header, rows)


def _json_lines(path: Path) -> _Table:
    """A table with a JSON object a line; what an object leaves out is empty."""
    rows = []
    header: dict[str, None] = {}  # in the order in which they come
    # Not `splitlines`, which ends a line at characters that may stand within a text.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path}, row {number}: not JSON: {error}") from error
        if not isinstance(found, dict):
            raise UsageError(f"{path}, row {number}: must be an object of columns and values")
        header |= dict.fromkeys(found)
        rows.append((number, found))
    return _Table(list(header), rows)


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names all differ; JSON itself would take the last of equal ones."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice in an object")
    return found


def _text(value: Any, place: str, column: str) -> str:
    """A value of a table as text, without blanks around it; nothing is ""."""
    if isinstance(value, list | dict):
        raise UsageError(f"{place}: {column} = {value!r:.60}: must be text or a number")
    return "" if value is None else value.strip() if isinstance(value, str) else json.dumps(value)


def _check_header(header: Sequence[str], columns: Columns, path: Path) -> None:
    """Raises UsageError where a column is missing, twice there, or only nearly there."""
    # With JSON lines there is no header: what is named are the columns of all rows.
    where = f"{path}, row 1" if path.suffix == ".csv" else f"{path}"
    for column in (FILE, columns.label, columns.group):
        count = header.count(column)
        near = [name for name in header if _near(name, column)]
        optional = column == GROUP
        if count == 1 or (count == 0 and optional and not near):
            continue
        fault = "two columns" if count else "no column"
        hint = ""
        if not count and near and column != FILE:
            field = "label_column" if column == columns.label else "group_column"
            hint = f"; data.folder.{field}={near[0]} takes another column"
        raise UsageError(
            f"{where}: {fault} {column!r} among {list(header)}; must have {FILE}, "
            f"{columns.label} and, where groups are known, {columns.group}{hint}"
        )


def _near(name: str, column: str) -> bool:
    """Whether a column may have been meant for another one."""
    plain, wanted = ("".join(filter(str.isalnum, one.lower())) for one in (name, column))
    called = {FILE: FILES, "label": LABELS}.get(column, ())
    alike = difflib.SequenceMatcher(None, plain, wanted).ratio() >= ALIKE
    return name != column and (wanted in plain or plain in called or alike)
