"""Archives as their makers publish them, by size and checksum."""

import hashlib
import os
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
    """The archives of one data set.

    `stand_in` names the table that replaced the official one, or is None.
    """

    archives: tuple[Archive, ...]
    stand_in: str | None

    @property
    def name(self) -> str:
        """Directory name of the copy prepared from these archives: one for each content."""
        if self.stand_in is None:
            return "official"
        # By content: a copy that was made from another table is never taken for this one.
        contents = repr([(archive.name, archive.sha256) for archive in self.archives])
        return f"stand_in_{hashlib.sha256(contents.encode()).hexdigest()[:16]}"

    @property
    def digests(self) -> dict[str, str]:
        """File name to sha256."""
        return {archive.name: archive.sha256 for archive in self.archives}


def table(checksums: str, names: Sequence[str]) -> Table:
    """The rows for the files `names`, of the official table or the one at `checksums`.

    A row is URL, size, sha256 and file name with tabs between them, as TFDS registers checksums.
    Raises UsageError where the file is missing, is no such table, or lacks one of the names.
    """
    path = Path(os.path.expanduser(checksums)) if checksums else OFFICIAL
    try:
        rows = [_row(line) for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UsageError(
            f"data.tfds.checksums = {checksums}: {' '.join(str(error).split())}; "
            "a table must have tabs between URL, size, sha256 and file name"
        ) from error
    known = {row.name: row for row in rows}
    for name in names:
        if name not in known:
            raise UsageError(
                f"data.tfds.checksums = {checksums}: no row for {name}; the table must "
                f"have {', '.join(names)}"
            )
    return Table(tuple(known[name] for name in names), path.name if checksums else None)


def _row(line: str) -> Archive:
    """One row; ValueError where it is none."""
    fields = line.split("\t")
    if len(fields) != 4 or not fields[1].isdecimal() or len(fields[2]) != 64:
        raise ValueError(f"not a row: {line[:60]!r}")
    return Archive(fields[0], int(fields[1]), fields[2], fields[3])


def check_folder(folder: str) -> None:
    """Raises UsageError where `data.archive_dir` is set and is no folder that can be read."""
    if not folder:
        return
    try:
        # A real read, because permissions alone do not show every reason for a failure.
        os.listdir(os.path.expanduser(folder))
    except OSError as error:
        raise UsageError(
            f"data.archive_dir = {folder}: {error.strerror}; must be a folder with archives, or ''"
        ) from error


def fault(path: Path, archive: Archive) -> str | None:
    """How a file differs from the archive, or None."""
    # The length first: it shows a download that was cut short without reading the file.
    size = path.stat().st_size
    if size != archive.size:
        return f"has {size} bytes instead of {archive.size}"
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return None if found == archive.sha256 else f"has sha256 {found} instead of {archive.sha256}"
