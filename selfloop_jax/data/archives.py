"""Archives as their makers publish them: a table of their checksums, and the check of a user's own copies."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from selfloop_jax.errors import UsageError

OFFICIAL = Path(__file__).with_name("checksums.tsv")


@dataclass(frozen=True)
class Archive:
    """A row of the table: where a file is published, its length in bytes and its sha256."""

    url: str
    size: int
    sha256: str
    name: str


@dataclass(frozen=True)
class Table:
    """The archives of one data set; `stand_in` names the table that replaced the official one, or is None."""

    archives: tuple[Archive, ...]
    stand_in: str | None

    @property
    def name(self) -> str:
        """Where a copy made from these archives lies: no two contents share a name, whatever their URLs."""
        if self.stand_in is None:
            return "official"
        contents = repr([(archive.name, archive.sha256) for archive in self.archives])
        return f"stand_in_{hashlib.sha256(contents.encode()).hexdigest()[:16]}"

    @property
    def digests(self) -> dict[str, str]:
        """File name to sha256."""
        return {archive.name: archive.sha256 for archive in self.archives}


def table(checksums: str, names: Sequence[str]) -> Table:
    """The rows for the files `names`: of the official table, or of the one at the path `checksums`.

    A row is URL, size, sha256 and file name with tabs between them, as TFDS registers checksums. Raises
    UsageError where the file is missing, is no such table, or lacks one of the names.
    """
    path = Path(checksums).expanduser() if checksums else OFFICIAL
    try:
        rows = [_row(line) for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UsageError(
            f"data.checksums = {checksums}: {' '.join(str(error).split())}; "
            "allowed are tables of URL, size, sha256 and file name, tabs between them"
        ) from error
    known = {row.name: row for row in rows}
    for name in names:
        if name not in known:
            raise UsageError(
                f"data.checksums = {checksums}: no row for {name}; needed are {', '.join(names)}"
            )
    return Table(tuple(known[name] for name in names), path.name if checksums else None)


def _row(line: str) -> Archive:
    """One row; ValueError where it is none."""
    fields = line.split("\t")
    if len(fields) != 4 or not fields[1].isdecimal() or len(fields[2]) != 64:
        raise ValueError(f"not a row: {line[:60]!r}")
    return Archive(fields[0], int(fields[1]), fields[2], fields[3])


def check(folder: str, archives: Sequence[Archive]) -> Path:
    """The folder `data.archive_dir`, once every archive in it is found to be the one in the table.

    Raises UsageError naming the first file that is missing, of another length or of another sha256.
    """
    path = Path(folder).expanduser()
    for archive in archives:
        fault = _fault(path / archive.name, archive)
        if fault:
            needed = ", ".join(archive.name for archive in archives)
            raise UsageError(f"data.archive_dir = {folder}: {archive.name} {fault}; needed are {needed}")
    return path


def _fault(path: Path, archive: Archive) -> str | None:
    """What is wrong with a file, or None."""
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != archive.size:
        return f"has {size} bytes instead of {archive.size}"
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return None if found == archive.sha256 else f"has sha256 {found} instead of {archive.sha256}"
