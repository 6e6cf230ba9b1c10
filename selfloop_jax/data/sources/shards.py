"""Data sets in a few large files: Parquet of Hugging Face, tar shards of webdataset.

    <dir>/data/train-00000-of-00002.parquet    or <dir>/train/0000.parquet
    <dir>/train/00000.tar                      or <dir>/train-000000.tar

The split is the folder's name or what the file's name begins with, in Hugging Face's words. A row
of Parquet has an image (its bytes, or `bytes` and `path`) and a label, perhaps a group; a sample of
a shard is files of one name: the image, and `.cls` with the label or `.json` with label and group.
Labels and groups then mean what they mean in a folder, see docs/your_data.md.
"""

import itertools
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from selfloop_jax.config import DataConfig, refuse
from selfloop_jax.data import cache, decode
from selfloop_jax.data.sources import folder, folder_files
from selfloop_jax.data.sources.base import Missing, Outline, Source
from selfloop_jax.data.sources.folder_tables import GROUP, Record
from selfloop_jax.errors import UsageError

FIELD = "data.folder.dir"
# What Hugging Face datasets takes for a split.
WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    "reserve": "reserve",
}


@dataclass(frozen=True)
class Format:
    """How the files of one format are read.

    rows(path, section): label, group and place of every row, and names of what is not read.
    images(path, section): the encoded image of every row, in the same order; None: it has none.
    """

    ending: str
    rows: Callable[[Path, DataConfig], tuple[list[Record], set[str]]]
    images: Callable[[Path, DataConfig], Iterable[bytes | None]]


def parquet(section: DataConfig, prepare: bool) -> Source:
    """The source of a folder of Parquet files; errors as for `folder.load`."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "data.source = parquet: needs pyarrow, which `pip install pyarrow` installs"
        ) from error
    return _load(section, prepare, Format(".parquet", _parquet_rows, _parquet_images))


def webdataset(section: DataConfig, prepare: bool) -> Source:
    """The source of a folder of tar shards; errors as for `folder.load`."""
    return _load(section, prepare, Format(".tar", _tar_rows, _tar_images))


def _load(section: DataConfig, prepare: bool, kind: Format) -> Source:
    if not section.folder.dir:
        raise Missing(FIELD, f"{FIELD} = '': must be a folder of {kind.ending} files")
    root = Path(os.path.expanduser(section.folder.dir))
    names = section.folder
    if len({names.image_column, names.label_column, names.group_column}) < 3:
        rule = "another column than image and label"
        refuse("data.folder.group_column", names.group_column, rule)
    if not root.is_dir():
        raise Missing(FIELD, f"{FIELD} = {section.folder.dir!r}: no such folder")
    shards, others = _find(root, section.folder.ignore, kind.ending)
    records: dict[str, list[Record]] = {}
    lengths: dict[Path, int] = {}
    unread: set[str] = set()
    for split, paths in shards.items():
        records[split] = []
        for path in paths:
            rows, left = kind.rows(path, section)
            lengths[path] = len(rows)
            records[split] += [folder.named(row) for row in rows]
            unread |= left
        if not records[split]:
            raise UsageError(f"{paths[0]}: has no rows; each split must have some")
    notes = []
    if others:
        notes.append(f"{root}: not read: {', '.join(others)}")
    if unread:
        notes.append(f"{root}: columns not read: {', '.join(sorted(unread))}")

    def decoded(_: folder.Splits, outline: Outline) -> cache.Entry:
        return _decoded(section, kind, shards, lengths, None if prepare else outline)

    return folder.assemble(section, root, records, notes, decoded)


def _find(
    root: Path, ignore: Sequence[str], ending: str
) -> tuple[dict[str, list[Path]], list[str]]:
    """The files of each split in the order of their names, and names of what else is there."""
    found: dict[str, list[Path]] = {split: [] for split in folder_files.SPLITS}
    others = []
    left_alone = folder_files.Ignore(ignore)
    for name, entry in folder_files.tree(root, "", left_alone):
        if entry.is_dir():
            continue
        if not name.endswith(ending):
            others.append(name)
            continue
        split = _split_of(PurePosixPath(name))
        if split is None:
            raise UsageError(
                f"{root / name}: of which split? A folder or the file must be called "
                f"{' | '.join(folder_files.SPLITS)}; data.folder.ignore leaves a file alone"
            )
        found[split].append(root / name)
    left_alone.check_used(root)
    for split in folder.REQUIRED:
        if not found[split]:
            raise UsageError(f"{root}: must have {ending} files of {split}, as in {split}/")
    return {split: paths for split, paths in found.items() if paths}, others


def _split_of(path: PurePosixPath) -> str | None:
    """The split that a path names: the innermost folder that does, else the file itself."""
    for part in [*reversed(path.parts[:-1]), path.stem]:
        word = re.split(r"[-_.]", part.lower())[0]
        if word in WORDS:
            return WORDS[word]
    return None


def _decoded(
    section: DataConfig,
    kind: Format,
    shards: dict[str, list[Path]],
    lengths: dict[Path, int],
    outline: Outline | None,
) -> cache.Entry:
    """Arrays and facts of all splits, each file from the cache or decoded into it.

    With an `outline` nothing is decoded: Missing brings it instead.
    """
    arrays: dict[str, np.ndarray] = {}
    bad: list[list[str]] = []
    converted: Counter[str] = Counter()
    for split, paths in shards.items():
        pixels, kept, first = [], [], 0
        for path in paths:
            found, facts = _shard(section, kind, path, lengths[path], outline)
            pixels.append(found["pixels"])
            kept.append(found["kept"] + first)
            first += lengths[path]
            bad += facts["bad"]
            converted.update(facts["converted"])
        arrays |= {
            f"{split}_pixels": np.concatenate(pixels),
            f"{split}_kept": np.concatenate(kept),
        }
    return arrays, {
        "bad_images": bad[: folder.NAMED],
        "bad_image_count": len(bad),
        "converted": dict(sorted(converted.items())),
    }


def _shard(
    section: DataConfig, kind: Format, path: Path, count: int, outline: Outline | None
) -> cache.Entry:
    side = section.image_size
    key = {
        "file": os.path.realpath(path),
        "stamp": cache.stamps(path.parent, [path.name]),
        "side": side,
        "column": section.folder.image_column,
        "on_bad_image": section.on_bad_image,
    }

    def make() -> cache.Entry:
        if outline is not None:
            message = f"{FIELD} = {section.folder.dir!r}: not decoded yet at {side} pixels"
            raise Missing(FIELD, message, outline)
        # One file at a time is in memory: its makers chose how large that is.
        encoded = [image or b"" for image in kind.images(path, section)]
        decoded = decode.decode_all(
            encoded,
            side,
            None,
            section.on_bad_image,
            str(path),
            where=lambda i: f"row {i}",
        )
        bad = [[f"{path.name}, row {i}", why] for i, why in decoded.bad]
        return {"pixels": decoded.pixels, "kept": decoded.kept}, {
            "bad": bad,
            "converted": decoded.converted,
        }

    nbytes = count * (side * side * 3 + 8)
    return cache.cached(section.cache_dir, kind.ending[1:], key, nbytes, make)


# ------------------------------------------------------------------------------------------------
# Parquet.
# ------------------------------------------------------------------------------------------------


def _open_parquet(path: Path) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(path, page_checksum_verification=True)
    # ValueError: for example text in it that is not UTF-8.
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UsageError(f"{path}: not a whole Parquet file: {_short(error)}") from error


def _parquet_columns(path: Path, columns: Sequence[str]) -> Iterator[dict[str, list]]:
    """The columns of a file, row group after row group, as Python's values."""
    import pyarrow

    file = _open_parquet(path)
    try:
        for i in range(file.num_row_groups):
            yield file.read_row_group(i, columns=list(columns)).to_pydict()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UsageError(f"{path}: damaged: {_short(error)}") from error


def _parquet_rows(path: Path, section: DataConfig) -> tuple[list[Record], set[str]]:
    names = section.folder
    schema = _open_parquet(path).schema_arrow
    columns = dict.fromkeys(("label",), names.label_column)
    for column in (names.image_column, names.label_column):
        if schema.names.count(column) != 1:
            raise UsageError(
                f"{path}: must have one column {column!r}, not {schema.names}; "
                "data.folder.image_column and label_column take others"
            )
    columns["group"] = names.group_column
    if names.group_column not in schema.names:
        near = [name for name in schema.names if "group" in name.lower()]
        if names.group_column != GROUP or near:
            raise UsageError(
                f"{path}: no column {names.group_column!r} among {schema.names}; "
                "data.folder.group_column takes another"
            )
        del columns["group"]
    texts = {name: _texts(path, schema, column) for name, column in columns.items()}
    rows: list[Record] = []
    for part in _parquet_columns(path, list(columns.values())):
        for values in zip(*(part[column] for column in columns.values()), strict=True):
            place = f"{path}, row {len(rows)}"
            text = {
                name: texts[name](value, place) for name, value in zip(columns, values, strict=True)
            }
            rows.append(Record("", text["label"], text.get("group", ""), place, place))
    return rows, set(schema.names) - {names.image_column, *columns.values()}


def _texts(path: Path, schema: Any, column: str) -> Callable[[Any, str], str]:
    """How values of a column are called: by the names that Hugging Face keeps, or as they are."""
    classes: list[str] = []
    try:
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        classes = info.get("info", {}).get("features", {}).get(column, {}).get("names") or []
    except (ValueError, AttributeError):
        raise UsageError(f"{path}: damaged: its features are not JSON") from None

    def text(value: Any, place: str) -> str:
        if value is None or value == -1:
            return ""
        if isinstance(value, bool | str):
            return str(value)
        if not isinstance(value, int) or (classes and not 0 <= value < len(classes)):
            rule = f"from 0 to {len(classes) - 1}" if classes else "a name or a whole number"
            raise UsageError(f"{place}: {column} = {value!r:.60}: must be {rule}")
        return str(classes[value]) if classes else str(value)

    return text


def _parquet_images(path: Path, section: DataConfig) -> Iterator[bytes | None]:
    column = section.folder.image_column
    for part in _parquet_columns(path, [column]):
        for row, image in enumerate(part[column]):
            found = image.get("bytes") if isinstance(image, dict) else image
            if found is not None and not isinstance(found, bytes):
                raise UsageError(f"{path}, row {row}: {column} must be the bytes of an image file")
            yield found


# ------------------------------------------------------------------------------------------------
# Tar shards.
# ------------------------------------------------------------------------------------------------

Member = tuple[str, str, Callable[[], bytes]]  # name of the sample, ending, and what reads it


def _members(path: Path, archive: tarfile.TarFile) -> Iterator[Member]:
    """The files of a shard in their order; UsageError for what is no file, and at a missing end."""
    for member in archive:
        if member.isdir():
            continue
        if not member.isfile():
            raise UsageError(f"{path}: {member.name!a} must be a file, not a link")
        # A sample's name ends at the first dot of its last part.
        where, _, name = member.name.rpartition("/")
        stem, _, ending = name.partition(".")

        def read(member: tarfile.TarInfo = member) -> bytes:
            file = archive.extractfile(member)
            assert file is not None  # as of every regular file
            return file.read()

        yield f"{where}/{stem}", ending.lower(), read
    # Blocks of zeros end a tar. One that was cut between two files, or whose next header is
    # damaged, would pass for whole.
    with open(path, "rb") as file:
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise UsageError(
                f"{path}: damaged: at byte {archive.offset} there is neither a file's header nor "
                "the mark of a tar's end"
            )


def _samples(path: Path) -> Iterator[tuple[str, dict[str, Callable[[], bytes]]]]:
    """The samples of a shard: name, and its files by ending; UsageError where it is damaged."""
    seen = set()
    try:
        with tarfile.open(path, "r:") as archive:
            for name, members in itertools.groupby(_members(path, archive), lambda one: one[0]):
                files: dict[str, Callable[[], bytes]] = {}
                for _, ending, read in members:
                    if ending in files:
                        raise UsageError(f"{path}: sample {name!a} has two files .{ending}")
                    files[ending] = read
                if name in seen:
                    raise UsageError(f"{path}: files of sample {name!a} must follow one another")
                seen.add(name)
                yield name, files
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UsageError(f"{path}: not a whole tar: {_short(error)}") from error


def _tar_rows(path: Path, section: DataConfig) -> tuple[list[Record], set[str]]:
    rows: list[Record] = []
    unread: set[str] = set()
    for name, files in _samples(path):
        place = f"{path}, sample {name.strip('/')!a}"
        images = [ending for ending in files if _is_image(ending)]
        if len(images) != 1:
            raise UsageError(f"{place}: must have one image, has {sorted(files)}")
        values = _json(files["json"](), place) if "json" in files else {}
        label = _value(values, section.folder.label_column, place)
        if not label and "cls" in files:
            label = _decode_text(files["cls"](), place)
        group = _value(values, section.folder.group_column, place)
        wanted = {section.folder.label_column, section.folder.group_column}
        unread |= (set(values) - wanted) | {
            f".{ending}" for ending in files if ending not in (*images, "json", "cls")
        }
        rows.append(Record("", label, group, place, place))
    return rows, unread


def _is_image(ending: str) -> bool:
    return f".{ending}".endswith(decode.SUFFIXES)


def _tar_images(path: Path, section: DataConfig) -> Iterator[bytes]:
    for _, files in _samples(path):
        yield next(read() for ending, read in files.items() if _is_image(ending))


def _decode_text(data: bytes, place: str) -> str:
    try:
        return data.decode().strip()
    except UnicodeDecodeError as error:
        raise UsageError(f"{place}: its label is not UTF-8") from error


def _json(data: bytes, place: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place}: its .json is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{place}: its .json must be an object of columns and values")
    return found


def _value(values: dict[str, Any], column: str, place: str) -> str:
    value = values.get(column)
    if isinstance(value, list | dict):
        raise UsageError(f"{place}: {column} = {value!r:.60}: must be text or a number")
    return "" if value is None else value.strip() if isinstance(value, str) else json.dumps(value)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
