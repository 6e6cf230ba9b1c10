"""The user's own images: a folder with train/ and test/.

Labels come from a metadata.csv or from folders of classes. The layout is Hugging Face's
imagefolder: `<split>/metadata.csv` with columns `file_name,label[,group]`, or
`<split>/<class>/<image>`. Classes are those of train, and each needs images in train and in test. A
group is an integer; a subgroup (class, group) without a test image is counted, not refused:
measures leave it out. docs/your_data.md is the same for users.
"""

import csv
import io
import itertools
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selfloop_jax.config import DataConfig
from selfloop_jax.data import cache, colorize
from selfloop_jax.data.decode import SUFFIXES, decode_all
from selfloop_jax.data.images import REAL, UNKNOWN, Images, is_nested
from selfloop_jax.data.sources.base import Missing, Outline, Source, four_splits
from selfloop_jax.errors import UsageError

REQUIRED = ("train", "test")


# Ids count the rows in this order, whether or not a row's image can be read.
SPLITS = (*REQUIRED, "validation", "reserve")


NAMED = 100  # bad images that the record names


@dataclass(frozen=True)
class Row:
    """One image of a split: its file below the split's folder; `place` is for errors."""

    file: str
    label: str
    group: int
    place: str


def load(section: DataConfig, prepare: bool) -> Source:
    """The images of `data.folder.dir`, decoded once and then read from `data.cache_dir`.

    Raises Missing where the folder is not set or not there, or, unless `prepare`, not decoded yet.
    Whatever else is wrong with it is a UsageError of one line naming file and row, found before
    anything is cached.
    """
    root = _root(section.folder.dir)
    skip = section.on_bad_image == "skip"
    # One dictionary for all splits: an image in train and test would be measured on what it
    # trained.
    places: dict[str | tuple[int, int], str] = {}
    splits = {
        name: _rows(root / name, skip, places) for name in SPLITS if os.path.isdir(root / name)
    }
    classes = _sorted({row.label for row in splits["train"]})
    for name, rows in splits.items():
        _check_labels(root / name, rows, classes)
    groups = _groups(root, splits)
    outline = Outline(
        classes=len(classes),
        groups=len(groups) or _groups_given(section),
        train=len(splits["train"]),
        test=len(splits["test"]),
    )
    arrays, decoding = _decoded(section, root, splits, outline, prepare)
    images = _images(splits, classes, arrays)
    for name in REQUIRED:
        # Again, since images that cannot be used may have been all that a class had.
        _check_labels(root / name, [splits[name][i] for i in arrays[f"{name}_kept"]], classes)
    nested, empty = _subgroups(images, len(classes), len(groups))
    provenance = {
        "images": {name: len(part) for name, part in images.items()},
        **decoding,
        "stand_in": None,
        "test_subgroups_empty": empty,
    }
    parts = four_splits(section, **images)
    return Source(**parts, classes=classes, groups=groups, nested=nested, provenance=provenance)


def _root(value: str) -> Path:
    """The folder, with train/ and test/ in it."""
    wanted = "must be the folder with train/ and test/"
    root = Path(os.path.expanduser(value))
    if not value:
        raise Missing("data.folder.dir", f"data.folder.dir = '': {wanted}")
    if not root.is_dir():
        raise Missing("data.folder.dir", f"data.folder.dir = {value!r}: no such folder; {wanted}")
    try:
        os.listdir(root)
    except OSError as error:
        raise UsageError(f"data.folder.dir = {value!r}: {error.strerror}; {wanted}") from error
    for name in REQUIRED:
        if not os.path.isdir(root / name):
            raise UsageError(f"data.folder.dir = {value!r}: no folder {name}/ in it; {wanted}")
    return root


def _groups_given(section: DataConfig) -> int:
    """Groups of images that come without: one for all, or the colours that they are to get."""
    return 1 if section.colorize == "none" else len(colorize.MODES[section.colorize].groups)


def _rows(folder: Path, skip: bool, places: dict[str | tuple[int, int], str]) -> list[Row]:
    """The rows of a split, their paths checked; with `skip` a file may be missing.

    `places` says where each file of the splits before was listed, by its real path and, as a file
    can have several, by device and inode; those of this split are added.
    """
    table = folder / "metadata.csv"
    rows = list(
        _rows_from_csv(table) if os.path.isfile(table) else _rows_from_class_folders(folder)
    )
    home = os.path.realpath(folder)
    for row in rows:
        real = _checked_path(folder, home, row.file, row.place)
        inode = _inode(real)
        if not skip and inode is None:
            raise UsageError(f"{row.place}: no such file in {folder}")
        # The real path finds symbolic links, the inode hard links to one file.
        for key in (real, inode):
            if key in places:
                raise UsageError(
                    f"{row.place}: the same file as {places[key]}; an image must be listed only "
                    "once"
                )
        places.update({key: row.place for key in (real, inode) if key is not None})
    return rows


def _inode(path: str) -> tuple[int, int] | None:
    """Device and inode, the identity of a file; None where there is no file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None


def _checked_path(folder: Path, home: str, file: str, place: str) -> str:
    """The real path of an image; `home` is that of its split's folder."""
    if not file.lower().endswith(SUFFIXES):
        raise UsageError(f"{place}: must be a file ending in {' | '.join(SUFFIXES)}")
    # Checked in the text first: `realpath` raises on a null byte.
    leaves = "\0" in file or os.path.isabs(file) or ".." in Path(file).parts
    real = "" if leaves else os.path.realpath(folder / file)
    # With a separator at the end: `train` must not contain `train2`.
    if leaves or not real.startswith(os.path.join(home, "")):
        raise UsageError(
            f"{place}: outside of the folder; must be in {folder} once links are followed"
        )
    return real


def _rows_from_csv(path: Path) -> Iterator[Row]:
    """The rows of a metadata.csv."""
    table = _table(path)
    header = [cell.strip() for cell in table[0][1]] if table else []
    for column in ("file_name", "label", "group"):
        count = header.count(column)
        if count > 1 or (count == 0 and column != "group"):
            fault = "two columns" if count else "no column"
            raise UsageError(
                f"{path}, row 1: {fault} {column!r} among {header}; must have file_name, label "
                "and, where groups are known, group"
            )
    if len(table) == 1:
        raise UsageError(f"{path}: it lists no image; there must be a row for each")
    for number, cells in table[1:]:
        place = f"{path}, row {number}"
        if len(cells) != len(header):
            raise UsageError(f"{place}: {len(cells)} cells under {len(header)} columns")
        row = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
        if not row["label"]:
            raise UsageError(f"{place}: label = '': must be a name or an integer")
        group = _group(row.get("group", ""), place)
        yield Row(
            row["file_name"], row["label"], group, f"{place}, file_name = {row['file_name']!r}"
        )


def _table(path: Path) -> list[tuple[int, list[str]]]:
    """The cells of a CSV, each row with its number in an editor; blank lines are left out."""
    # newline="" leaves line ends to csv, since a quoted cell can hold some.
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        return [(reader.line_num, cells) for cells in reader if any(map(str.strip, cells))]
    except csv.Error as error:
        raise UsageError(f"{path}, row {reader.line_num}: not a CSV: {error}") from error


def _text(path: Path) -> str:
    try:
        # Spreadsheets put a byte order mark first; utf-8-sig drops it.
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: byte {error.start} is not UTF-8; save it as UTF-8") from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error


def _group(text: str, place: str) -> int:
    if text in ("", "-1"):
        return UNKNOWN
    # `int` would also read blanks, "1_0" and the digits of other scripts; ten digits may exceed
    # int32.
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise UsageError(
            f"{place}: group = {text!r}: must be 0, 1, ..., or -1 or empty where it is unknown"
        )
    return int(text)


def _rows_from_class_folders(folder: Path) -> Iterator[Row]:
    """The rows of a split with one folder per class, by class and name."""
    inside = _visible(folder)
    # An image without a class folder would otherwise be passed over in silence.
    loose = [path for path in inside if not path.is_dir() and path.name.lower().endswith(SUFFIXES)]
    if loose:
        raise UsageError(
            f"{loose[0]}: no class; without a metadata.csv, images must be in "
            f"{folder.name}/<class>/"
        )
    classes = [path for path in inside if path.is_dir()]
    if not classes:
        raise UsageError(
            f"{folder}: empty; must have a metadata.csv or a folder of images for each class"
        )
    for path in classes:
        files = _visible(path)
        if not files:
            raise UsageError(
                f"{path}: class {path.name!r} has no image here; each class folder must have some"
            )
        for file in files:
            yield Row(f"{path.name}/{file.name}", path.name, UNKNOWN, str(file))


def _visible(folder: Path) -> list[Path]:
    """What lies in a folder, sorted, without the hidden files that file managers leave."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror}") from error


def _sorted(labels: set[str]) -> tuple[str, ...]:
    """Names in alphabetical, integers in numerical order."""
    if all(label.isascii() and label.isdecimal() and len(label) < 10 for label in labels):
        # "1" and "01" are two classes; the text decides their order.
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    return tuple(sorted(labels))


def _check_labels(folder: Path, rows: Sequence[Row], classes: tuple[str, ...]) -> None:
    """Every label is a class; in train and test every class has an image."""
    names = set(classes)
    known = ", ".join(map(repr, classes[:10])) + (", ..." if len(classes) > 10 else "")
    found = set()
    for row in rows:
        if row.label not in names:
            raise UsageError(
                f"{row.place}: label = {row.label!r}: must be a class of train ({known})"
            )
        found.add(row.label)
    absent = [name for name in classes if name not in found]
    if absent and folder.name in REQUIRED:
        raise UsageError(
            f"{folder}: class {absent[0]!r} has no image here; train and test must have some of "
            "each"
        )


def _groups(root: Path, splits: dict[str, list[Row]]) -> tuple[str, ...]:
    """The groups' names: the lines of groups.txt, else their numbers.

    () where no image has a group.
    """
    every = itertools.chain(*splits.values())
    rows = [row for row in every if row.group != UNKNOWN]
    if not rows:
        return ()
    for name in REQUIRED:
        if all(row.group == UNKNOWN for row in splits[name]):
            raise UsageError(
                f"{root / name}: no image has a group, but others do; train and test must both "
                "have groups, or neither"
            )
    top = max(rows, key=lambda row: row.group)
    path = root / "groups.txt"
    if not path.exists():
        # N rows cannot fill N + 1 numbers, so there is a smallest gap.
        gaps = set(range(len(rows) + 1)) - {row.group for row in rows}
        if min(gaps) < top.group:
            raise UsageError(
                f"{top.place}: group = {top.group}, but no image has group {min(gaps)}"
            )
        return tuple(str(group) for group in range(top.group + 1))
    names = tuple(line.strip() for line in _text(path).strip().splitlines())
    if "" in names or len(set(names)) < len(names):
        raise UsageError(
            f"{path}: a name is empty or occurs twice; must have one name per line, each only once"
        )
    if top.group >= len(names):
        raise UsageError(
            f"{top.place}: group = {top.group}: {path} names only 0 to {len(names) - 1}"
        )
    return names


def _decoded(
    section: DataConfig, root: Path, splits: dict[str, list[Row]], outline: Outline, prepare: bool
) -> cache.Entry:
    """Arrays `<split>_pixels` and `<split>_kept`, and what the record says of decoding.

    From the cache, or made.
    """
    side = section.image_size
    files: list[str] = []
    for name, rows in splits.items():
        files += [f"{name}/{row.file}" for row in rows]
    # Labels and groups are no part of it: an edited metadata.csv needs no decoding.
    key = {
        "folder": os.path.realpath(root),
        "files": cache.stamps(root, files),
        "side": side,
        "geometry": "fill",
        "on_bad_image": section.on_bad_image,
    }

    def make() -> cache.Entry:
        if not prepare:
            message = f"data.folder.dir = {section.folder.dir!r}: not decoded yet at {side} pixels"
            raise Missing("data.folder.dir", message, outline)
        return _decode(section, root, splits)

    # Pixels, and one int64 in `kept`.
    nbytes = len(files) * (side * side * 3 + 8)
    return cache.cached(section.cache_dir, "folder", key, nbytes, make)


def _decode(section: DataConfig, root: Path, splits: dict[str, list[Row]]) -> cache.Entry:
    """What the cache holds."""
    arrays: dict[str, np.ndarray] = {}
    bad: list[list[str]] = []
    converted: Counter[str] = Counter()
    for name, rows in splits.items():
        places = {root / name / row.file: row.place for row in rows}
        decoded = decode_all(
            list(places),
            section.image_size,
            None,
            section.on_bad_image,
            str(root / name),
            where=places.__getitem__,
        )
        arrays |= {f"{name}_pixels": decoded.pixels, f"{name}_kept": decoded.kept}
        bad += [[path.relative_to(root).as_posix(), reason] for path, reason in decoded.bad]
        converted.update(decoded.converted)
    return arrays, {
        "bad_images": bad[:NAMED],
        "bad_image_count": len(bad),
        "converted": dict(converted),
    }


def _images(
    splits: dict[str, list[Row]], classes: tuple[str, ...], arrays: dict[str, np.ndarray]
) -> dict[str, Images]:
    """The splits as images; an id is the row's number over all splits."""
    number = {name: i for i, name in enumerate(classes)}
    images = {}
    first = 0
    for name, rows in splits.items():
        kept = arrays[f"{name}_kept"]
        images[name] = Images(
            pixels=arrays[f"{name}_pixels"],
            label=np.array([number[rows[i].label] for i in kept], np.int32),
            group=np.array([rows[i].group for i in kept], np.int32),
            origin=np.full(len(kept), REAL, np.int32),
            id=(first + kept).astype(np.uint32),
        )
        # All rows count, so an image that is skipped changes no other image's id.
        first += len(rows)
    return images


def _subgroups(images: dict[str, Images], classes: int, groups: int) -> tuple[bool, int]:
    """Whether every group lies within one class, and the subgroups without a test image.

    Of nested groups only the subgroups count that occur in some split.
    """
    counts = {name: part.counts(classes, groups) for name, part in images.items()}
    occurs = np.sum(list(counts.values()), axis=0) > 0
    nested = is_nested(occurs)
    empty = counts["test"] == 0
    return nested, int((empty & occurs).sum() if nested else empty.sum())
