"""The user's own images: a folder with train/ and test/.

Labels come from a table or from folders of classes. The layout is Hugging Face's imagefolder:
`<split>/metadata.csv` (or metadata.jsonl) with columns `file_name,label[,group]`, or
`<split>/<class>/<image>`. Classes are those of train, and each needs images in train and in test.
Groups are integers or names; a subgroup (class, group) without a test image is counted, not
refused: measures leave it out. docs/your_data.md is the same for users.
"""

import functools
import itertools
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selfloop_jax.config import DataConfig, refuse
from selfloop_jax.data import cache, colorize, names
from selfloop_jax.data.decode import SUFFIXES, decode_all
from selfloop_jax.data.images import REAL, UNKNOWN, Images, is_nested
from selfloop_jax.data.sources import folder_files, folder_tables
from selfloop_jax.data.sources.base import Missing, Outline, Source, four_splits, say_no_groups
from selfloop_jax.data.sources.folder_tables import FILE, Columns, Record
from selfloop_jax.errors import UsageError
from selfloop_jax.runtime.log import say

REQUIRED = ("train", "test")


NAMED = 100  # bad images that the record names


@dataclass(frozen=True)
class Row:
    """One image of a split: its file below the split's folder; `place` is for errors."""

    file: str
    label: str
    group: int
    place: str


Splits = dict[str, list[Row]]


def load(section: DataConfig, prepare: bool) -> Source:
    """The images of `data.folder.dir`, decoded once and then read from `data.cache_dir`.

    Raises Missing where the folder is not set or not there, or, unless `prepare`, not decoded yet.
    Whatever else is wrong with it is a UsageError of one line naming file and row, found before
    anything is cached.
    """
    root = _root(section.folder.dir)
    ignore = folder_files.Ignore(section.folder.ignore)
    files = folder_files.find(root, ignore)
    records, unread = _records(section, root, files, ignore)
    _check_files(root, records, section.on_bad_image == "skip")
    listed = {}
    for split, rows in records.items():
        listed[split] = {os.path.normpath(row.file) for row in rows}
    notes = [f"{root}: {line}" for line in (*folder_files.not_read(files, listed), *unread)]

    def decoded(splits: Splits, outline: Outline) -> cache.Entry:
        return _decoded(section, root, splits, outline, prepare)

    return assemble(section, root, records, notes, decoded)


def assemble(
    section: DataConfig,
    root: Path,
    records: Mapping[str, Sequence[Record]],
    notes: Sequence[str],
    decoded: Callable[[Splits, Outline], cache.Entry],
) -> Source:
    """The source whose splits have these rows, each the label and group of one image.

    decoded(splits, outline): arrays `<split>_pixels` uint8[K,side,side,3] and `<split>_kept`
    int64[K], the rows whose images can be used, and what the record says of them. notes: lines to
    be said before. UsageError for labels and groups that do not fit; Missing as `decoded` raises
    it.
    """
    groups, number = _groups(root, records)
    splits = {
        split: [Row(one.file, one.label, number[one.group], one.image) for one in rows]
        for split, rows in records.items()
    }
    classes = _sorted({row.label for row in splits["train"]})
    for name, rows in splits.items():
        _check_labels(root / name, rows, classes)
    names.check_distinct(classes, f"{root}: classes")
    say_no_groups(section, groups)
    for line in notes:
        say(line)
    outline = Outline(
        classes=len(classes),
        groups=len(groups) or _groups_given(section),
        train=len(splits["train"]),
        test=len(splits["test"]),
    )
    arrays, decoding = decoded(splits, outline)
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


def _records(
    section: DataConfig, root: Path, files: folder_files.Found, ignore: folder_files.Ignore
) -> tuple[dict[str, list[Record]], list[str]]:
    """The rows of each split, labels and groups in their normal form, and lines of what is unread.

    In the order of SPLITS: ids count the rows, whether or not a row's image can be read.
    """
    columns = Columns(section.folder.label_column, section.folder.group_column)
    if len({FILE, columns.label, columns.group}) < 3:
        refuse("data.folder.group_column", columns.group, "another column than file and label")
    found: dict[str, list[Record]] = {}
    lines = []
    for split in folder_files.SPLITS:
        if split in files.tables:
            table = files.tables[split]
            rows, unread = folder_tables.read(table, columns)
            if unread:
                lines.append(f"{split}/{table.name}: columns not read: {', '.join(unread)}")
        elif split in files.images:
            rows = list(_in_class_folders(root, split, ignore))
        else:
            continue
        found[split] = [named(row) for row in rows]
    return found, lines


def named(row: Record) -> Record:
    """A row whose label and group are in their normal form."""
    group = "" if row.group in ("", "-1") else names.normal(row.group, f"{row.place}: group")
    label = names.normal(row.label, f"{row.place}: label")
    return Record(row.file, label, group, row.place, row.image)


def _check_files(root: Path, splits: Mapping[str, Sequence[Record]], skip: bool) -> None:
    """Raises UsageError for a file outside of its split, listed twice or, without `skip`, missing.

    Of all splits at once: an image in train and test would be measured on what it trained.
    """
    # By the real path and, as a file can have several, by device and inode.
    places: dict[str | tuple[int, int], str] = {}
    real_path = functools.cache(os.path.realpath)
    for split, rows in splits.items():
        folder = str(root / split)
        home = os.path.realpath(folder)
        for row in rows:
            real, inode = _checked_path(folder, home, row.file, row.image, real_path)
            if not skip and inode is None:
                raise UsageError(f"{row.image}: no such file in {folder}{_other_form(real)}")
            # The real path finds symbolic links, the inode hard links to one file.
            for key in (real, inode):
                if key in places:
                    raise UsageError(
                        f"{row.image}: the same file as {places[key]}; an image must be listed "
                        "only once"
                    )
            places.update({key: row.image for key in (real, inode) if key is not None})


def _other_form(path: str) -> str:
    """What there is in place of a file that is not there, where the two names look alike."""
    folder, name = os.path.split(path)
    try:
        inside = os.listdir(folder)
    except OSError:
        return ""
    alike = [one for one in inside if names.looks(one) == names.looks(name)]
    return f"; there is {alike[0]!a}, and the row has {name!a}" if alike else ""


def _real_file(path: str, real_path: Callable[[str], str]) -> tuple[str, tuple[int, int] | None]:
    """The path once links are followed, and device and inode, the identity of a file.

    None where there is no file. real_path: of a folder; it keeps those of folders of many files.
    """
    parent, name = os.path.split(path)
    real = os.path.join(real_path(parent), name)
    try:
        found = os.lstat(real)
        if stat.S_ISLNK(found.st_mode):
            real = os.path.realpath(real)
            found = os.stat(real)
    except OSError:
        return real, None
    return real, (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None


def _checked_path(
    folder: str, home: str, file: str, place: str, real_path: Callable[[str], str]
) -> tuple[str, tuple[int, int] | None]:
    """Real path and identity of an image; `home` is the real path of its split's folder."""
    if not file.lower().endswith(SUFFIXES):
        raise UsageError(f"{place}: must be a file ending in {' | '.join(SUFFIXES)}")
    # Checked in the text first: the system takes no null byte.
    leaves = "\0" in file or os.path.isabs(file) or ".." in file.split("/")
    real, inode = ("", None) if leaves else _real_file(os.path.join(folder, file), real_path)
    # With a separator at the end: `train` must not contain `train2`.
    if leaves or not real.startswith(os.path.join(home, "")):
        raise UsageError(
            f"{place}: outside of the folder; must be in {folder} once links are followed"
        )
    return real, inode


def _in_class_folders(root: Path, split: str, ignore: folder_files.Ignore) -> Iterator[Record]:
    """The rows of a split with one folder per class, by class and name."""
    folder = root / split
    inside = list(folder_files.visible(root, split, ignore))
    # An image without a class folder would otherwise be passed over in silence.
    for path, entry in inside:
        if not entry.is_dir() and entry.name.lower().endswith(SUFFIXES):
            raise UsageError(
                f"{root / path}: no class; without a metadata.csv, images must be in "
                f"{split}/<class>/"
            )
    classes = [(path, entry.name) for path, entry in inside if entry.is_dir()]
    if not classes:
        raise UsageError(
            f"{folder}: empty; must have a metadata.csv or a folder of images for each class"
        )
    for path, label in classes:
        images = list(folder_files.visible(root, path, ignore))
        if not images:
            raise UsageError(
                f"{root / path}: class {label!r} has no image here; each class folder must have "
                "some"
            )
        for _, entry in images:
            place = os.path.join(root, path, entry.name)
            yield Record(f"{label}/{entry.name}", label, "", place, place)


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


def _groups(
    root: Path, splits: Mapping[str, Sequence[Record]]
) -> tuple[tuple[str, ...], dict[str, int]]:
    """The groups' names, and the number of each by what the rows say; () where no row says any.

    Rows have numbers, which the lines of groups.txt name, or names: then those are the groups, in
    the order of groups.txt or else of the alphabet.
    """
    every = itertools.chain(*splits.values())
    rows = [row for row in every if row.group]
    path = root / folder_files.GROUPS
    listed = _listed_groups(path) if path.exists() else None
    if not rows:
        if listed:
            raise UsageError(f"{path}: names groups, but no row of a table has one")
        return (), {"": UNKNOWN}
    for name in REQUIRED:
        if not any(row.group for row in splits[name]):
            raise UsageError(
                f"{root / name}: no image has a group, but others do; train and test must both "
                "have groups, or neither"
            )
    if any(map(_is_number, {row.group for row in rows})):
        return _numbered(path, rows, listed)
    return _by_name(path, rows, listed)


def _listed_groups(path: Path) -> tuple[str, ...]:
    """The names in groups.txt."""
    lines = folder_tables.read_text(path).strip().splitlines()
    found = tuple(
        names.normal(line, f"{path}, row {i}: name") if line.strip() else ""
        for i, line in enumerate(lines, 1)
    )
    if "" in found or len(set(found)) < len(found):
        raise UsageError(
            f"{path}: a name is empty or occurs twice; must have one name per line, each only once"
        )
    names.check_distinct(found, str(path))
    return found


def _is_number(text: str) -> bool:
    """Whether a group looks like a number, one that can be a group or not."""
    try:
        float(text)
    except ValueError:
        return text.isdigit()  # a superscript 2 is a digit, and no number to `float`
    return True


def _numbered(
    path: Path, rows: Sequence[Record], listed: tuple[str, ...] | None
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Groups of rows that have numbers."""
    number = {"": UNKNOWN} | {row.group: _group_number(row) for row in rows}
    top = max(rows, key=lambda row: number[row.group])
    count = number[top.group] + 1
    if listed is not None:
        if count > len(listed):
            raise UsageError(
                f"{top.image}: group = {top.group}: {path} names only 0 to {len(listed) - 1}"
            )
        return listed, number
    # N rows cannot fill N + 1 numbers, so there is a smallest gap.
    gap = min(set(range(len(rows) + 1)) - set(number.values()))
    if gap < count:
        raise UsageError(f"{top.image}: group = {top.group}, but no image has group {gap}")
    return tuple(map(str, range(count))), number


def _group_number(row: Record) -> int:
    # `int` would also read "1_0" and the digits of other scripts; ten digits may exceed int32.
    if not (row.group.isascii() and row.group.isdecimal() and len(row.group) < 10):
        raise UsageError(
            f"{row.place}: group = {row.group!r}: must be 0, 1, ..., or -1 or empty where it is "
            "unknown; or all groups must be names"
        )
    return int(row.group)


def _by_name(
    path: Path, rows: Sequence[Record], listed: tuple[str, ...] | None
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Groups of rows that have names."""
    found = listed or tuple(sorted({row.group for row in rows}))
    names.check_distinct(found, f"{path.parent}: groups")
    for row in rows:
        if row.group not in found:
            raise UsageError(f"{row.place}: group = {row.group!r}: must be a line of {path}")
    return found, {"": UNKNOWN} | {name: i for i, name in enumerate(found)}


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
        decoded = decode_all(
            [root / name / row.file for row in rows],
            section.image_size,
            None,
            section.on_bad_image,
            str(root / name),
            where=[row.place for row in rows].__getitem__,
        )
        arrays |= {f"{name}_pixels": decoded.pixels, f"{name}_kept": decoded.kept}
        bad += [[f"{name}/{rows[i].file}", reason] for i, reason in decoded.bad]
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
