"""What lies below a folder of images: each file is read, refused by name, or named as not read.

A table that nobody reads takes labels or groups away without a word, so whatever may be one is
refused: under another name, in another place, in another format. `data.folder.ignore` lists what
shall be left alone all the same. Hidden files and what systems leave behind are passed over.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from selfloop_jax.data.decode import SUFFIXES
from selfloop_jax.errors import UsageError

SPLITS = ("train", "test", "validation", "reserve")
# What other tools call a split, and what it is called here.
OTHER_SPLITS = {
    **dict.fromkeys(("training", "trn"), "train"),
    **dict.fromkeys(("testing", "tst", "eval", "evaluation", "holdout"), "test"),
    **dict.fromkeys(("val", "valid", "dev", "validate"), "validation"),
}
TABLES = ("metadata.csv", "metadata.jsonl")
GROUPS = "groups.txt"
# Endings of files that can hold labels or groups, or whole data sets.
DATA = (
    "csv tsv tab psv txt lst list json jsonl ndjson jsonlines json5 xml yaml yml toml ini "
    "parquet pq arrow feather avro orc xls xlsx xlsm xlsb ods numbers gsheet "
    "db sqlite sqlite3 duckdb mdb pkl pickle joblib pt pth npy npz mat h5 hdf5 hdf rds rda dta sav "
    "tar tgz zip 7z rar gz bz2 xz zst tfrecord tfrecords record rec idx lmdb"
)
# Images that this program does not decode: no tables, whatever they are called.
IMAGES = "gif bmp tif tiff heic heif avif jfif jp2 jxl svg ppm pgm pbm ico psd"
# Words with which the name of a table begins, whatever its ending.
WORDS = ("metadata", "label", "annotation", "group", "attribute", "class", "target", "list_attr")
# Text that speaks of the images to people.
PROSE = (
    *("readme", "license", "licence", "copying", "copyright", "citation", "notice", "changes"),
    *("changelog", "authors", "attribution", "credits", "terms", "disclaimer", "version"),
)
LEFT_BY_SYSTEMS = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "lost+found")
NAMED = 5  # files that one line names


@dataclass
class Found:
    """What lies below the folder: images by split, and files that nobody reads.

    images: paths below the split's folder, with / between; tables: of each split that has one.
    """

    images: dict[str, set[str]] = field(default_factory=dict)
    tables: dict[str, Path] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


class Ignore:
    """`data.folder.ignore`: patterns such as `notes/*.json` of paths that are left alone."""

    def __init__(self, patterns: Sequence[str]):
        self.patterns = patterns
        self.used: set[str] = set()

    def has(self, path: str) -> bool:
        """Whether a path below the folder fits a pattern."""
        fitting = [pattern for pattern in self.patterns if fnmatchcase(path, pattern)]
        self.used.update(fitting)
        return bool(fitting)

    def check_used(self, root: Path) -> None:
        """Raises UsageError for a pattern that nothing below the folder fits."""
        unused = [pattern for pattern in self.patterns if pattern not in self.used]
        if unused:
            raise UsageError(
                f"data.folder.ignore: {unused[0]!a} must fit a path below {root}, such as "
                "train/notes.txt; nothing there fits"
            )


def find(root: Path, ignore: Ignore) -> Found:
    """Walks through the folder once; UsageError for what may be a table or a split, by name."""
    found = Found()
    for name, entry in visible(root, "", ignore):
        if name in SPLITS and entry.is_dir():
            found.images[name] = set()
            _find_in_split(root, name, ignore, found)
        elif entry.is_dir():
            _check_no_split(root, name)
            found.others.append(_folder(root, name, ignore, found))
        elif name != GROUPS or not entry.is_file():
            if name.lower().endswith(SUFFIXES):
                raise UsageError(f"{root / name}: in no split; images must be in train/ or test/")
            _check_no_table(root, name)
            found.others.append(name)
    ignore.check_used(root)
    return found


def not_read(found: Found, listed: dict[str, set[str]]) -> list[str]:
    """Lines that name what is left alone; listed: the images that are read, by split."""
    lines = []
    for split, images in found.images.items():
        unlisted = images - listed[split]
        if unlisted:
            table = found.tables[split].name
            lines.append(f"{split}/{table} does not list {len(unlisted)} images: {_few(unlisted)}")
    if found.others:
        lines.append(f"not read: {_few(found.others)}")
    return lines


def _find_in_split(root: Path, split: str, ignore: Ignore, found: Found) -> None:
    tables = []
    for path, entry in tree(root, split, ignore):
        if entry.is_dir():
            continue
        inside = path.removeprefix(f"{split}/")
        if inside in TABLES and entry.is_file():
            tables.append(root / path)
        elif inside.lower().endswith(SUFFIXES):
            found.images[split].add(inside)
        else:
            _check_no_table(root, path)
            found.others.append(path)
    if len(tables) > 1:
        raise UsageError(f"{tables[0]} and {tables[1].name}: must be one table, not two")
    if tables:
        found.tables[split] = tables[0]


def _folder(root: Path, name: str, ignore: Ignore, found: Found) -> str:
    """A folder that is no split, as a line names it; UsageError where a table lies in it."""
    count = 0
    for path, entry in tree(root, name, ignore):
        if not entry.is_dir():
            count += 1
            if not path.lower().endswith(SUFFIXES):
                _check_no_table(root, path)
    return f"{name}/ ({count} files)"


def tree(root: Path, below: str, ignore: Ignore) -> Iterator[tuple[str, os.DirEntry]]:
    """(path below the root, entry) of all that lies in a folder and in the folders within it."""
    for path, entry in visible(root, below, ignore):
        yield path, entry
        # Not into links: they can lead back to where they lie.
        if entry.is_dir(follow_symlinks=False):
            yield from tree(root, path, ignore)


def visible(root: Path, below: str, ignore: Ignore) -> Iterator[tuple[str, os.DirEntry]]:
    """(path below the root, entry) of what lies in a folder, in the order of names.

    Without what is hidden, left behind by systems, or to be ignored.
    """
    try:
        with os.scandir(root / below) as entries:
            inside = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UsageError(f"{root / below}: {error.strerror}") from error
    for entry in inside:
        path = f"{below}/{entry.name}" if below else entry.name
        passed_over = entry.name.startswith(".") or entry.name.lower() in LEFT_BY_SYSTEMS
        if not passed_over and not ignore.has(path):
            yield path, entry


def _check_no_split(root: Path, name: str) -> None:
    """Raises UsageError for a folder that is a split to other tools, or to a slip of the hand."""
    plain = name.lower().strip("_- ")
    meant = plain if plain in SPLITS else OTHER_SPLITS.get(plain)
    # train_set, test-images, validation2.
    parts = plain.replace("-", "_").replace(" ", "_").replace(".", "_").split("_")
    if meant is None and set(parts[1:]) & {"set", "split", "data", "images", "imgs", "img"}:
        meant = parts[0] if parts[0] in SPLITS else OTHER_SPLITS.get(parts[0])
    if meant:
        raise UsageError(
            f"{root / name}: not read: a split must be called {' | '.join(SPLITS)}; is it "
            f"{meant}/? data.folder.ignore leaves a folder alone"
        )


def _check_no_table(root: Path, path: str) -> None:
    """Raises UsageError for a file that may be a table, an archive or a list of names."""
    name = PurePosixPath(path).name.lower()
    stem, *endings = name.rstrip("~").split(".")
    plain = "".join(letter for letter in stem if letter.isalnum() or letter == "_")
    if plain.startswith(PROSE) or set(endings[-1:]) & set(IMAGES.split()):
        return
    if plain.startswith(WORDS) or set(endings) & set(DATA.split()):
        tables = " or ".join(f"<split>/{table}" for table in TABLES)
        raise UsageError(
            f"{root / path}: not read: labels and groups must be in {tables}, names of groups in "
            f"{GROUPS}; data.folder.ignore leaves a file alone"
        )


def _few(names: Sequence[str] | set[str]) -> str:
    """The first names, by kind where there are many of one."""
    if len(names) <= NAMED:
        return ", ".join(sorted(names))
    kinds = Counter(PurePosixPath(name).suffix or name for name in names)
    most = ", ".join(f"{count} of {kind}" for kind, count in kinds.most_common(3))
    return f"{', '.join(sorted(names)[:NAMED])}, ... ({len(names)} in all: {most})"
