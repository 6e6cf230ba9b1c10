"""Decoded images kept between runs: an entry is whole and intact, or it is made again.

<cache_dir>/<name>-<key>/        one .npy per array; index.json: their digests and the facts
<cache_dir>/<name>-<key>.tmp/    the same while it is written, renamed when it is on the disk
<cache_dir>/<name>-<key>.lock    held by the process that makes the entry
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np
import PIL

from selfloop_jax.errors import RunError, UsageError
from selfloop_jax.runtime import store
from selfloop_jax.runtime.log import say

DEFAULT = "~/.cache/selfloop_jax_data"


# Part of every key: raised when the same files would be decoded to other arrays.
FORMAT = 3


KEY_DIGITS = 16


# What an entry takes in addition to its arrays' own bytes, at most.
OVERHEAD = 1 << 20


Entry = tuple[dict[str, np.ndarray], dict[str, Any]]


class Damaged(Exception):
    """An entry that is not what was written; the message says where."""


def cached(
    cache_dir: str, name: str, key: dict[str, Any], nbytes: int, make: Callable[[], Entry]
) -> Entry:
    """The arrays and facts (JSON) that `make()` returns, from the disk where it ran before.

    `key` is JSON and holds all that the result depends on but Pillow's version; `nbytes` bounds
    the size of the arrays, so that a full disk is noticed before the work. `make` runs in one
    process at a time; where it raises, nothing is kept. Raises UsageError where `cache_dir` ('' is
    DEFAULT) cannot be created or opened, RunError where its disk is full or fails.
    """
    root = Path(os.path.expanduser(cache_dir or DEFAULT))
    # Another version of Pillow can decode the same bytes to other pixels.
    text = json.dumps({"format": FORMAT, "pillow": PIL.__version__, **key}, sort_keys=True)
    path = root / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]}"
    # Without the lock first: what has the final name is whole, and a reader needs no write access.
    with contextlib.suppress(Damaged, FileNotFoundError):
        return _load(path)
    with _locked(root, path):
        # Another process may have made the entry while this one waited for the lock.
        found = _intact(path)
        return _made(root, path, nbytes, make) if found is None else found


def stamps(root: Path, names: Sequence[str]) -> list[list]:
    """What a key says of files: [name, bytes, ns of the last change, ns of the last touch, inode].

    None for what is not there.
    """
    return [[name, *_stamp(root / name)] for name in names]


def _stamp(path: Path) -> Sequence[int | None]:
    try:
        found = path.stat()
    except (OSError, ValueError):  # ValueError: no file can have such a name.
        return (None,) * 4
    # In place of a digest of the contents, which would read a whole ImageNet at every start. Length
    # and time of change can both be those of a file that was replaced (`cp -p`, `touch -r`, tar);
    # the time of the last touch (ctime) is set by the kernel, and another file has another inode.
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


@contextlib.contextmanager
def _opening(root: Path) -> Iterator[None]:
    """Reports an OSError in this block as a bad `data.cache_dir`."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"data.cache_dir = '{root}': {error.strerror}; must be a writable folder"
        ) from error


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Reports an OSError in this block as a failure to write.

    Not every such error knows its file or its number.
    """
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{error.filename or path}: not written: {error.strerror or error}"
        ) from error


@contextlib.contextmanager
def _locked(root: Path, path: Path) -> Iterator[None]:
    """The right to make the entry, waited for."""
    with _opening(root):
        root.mkdir(parents=True, exist_ok=True)
        # The file is never removed: else two processes could each lock a file of this name.
        file = open(_sibling(path, ".lock"), "a")  # noqa: SIM115 - closed below; only opening may fail here.
    with file:
        with _writing(_sibling(path, ".lock")):
            _wait(file, path)
        yield


def _wait(file: TextIO, path: Path) -> None:
    try:
        # A first try that does not wait, so that the user learns what the program waits for.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"{path}: waiting for another process that decodes the same images")
        fcntl.flock(file, fcntl.LOCK_EX)


def _intact(path: Path) -> Entry | None:
    """The entry, or None; a damaged one is taken away."""
    try:
        return _load(path)
    except FileNotFoundError:
        return None
    except Damaged as error:
        say(f"{error}; decoding again")
    # Renamed before it is removed: a removal that is interrupted leaves nothing under the final
    # name.
    aside = _sibling(path, ".tmp")
    with _writing(path):
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(path, aside)
        shutil.rmtree(aside)
    return None


def _made(root: Path, path: Path, nbytes: int, make: Callable[[], Entry]) -> Entry:
    """Runs `make` and keeps what it returns."""
    # Before the space is checked, since leftovers take some of it.
    _sweep(root)
    store.check_space(path, nbytes + OVERHEAD)
    arrays, facts = make()
    # As they will be read back, so that the first run's record is like the next one's.
    facts = json.loads(json.dumps(facts))
    temporary = _sibling(path, ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with _opening(root):
        # Here, too, the folder of the cache can turn out to be read-only.
        temporary.mkdir()
    try:
        _write(temporary, arrays, facts)
        with _writing(path):
            # The name comes last; after it, the folder is synced, or a power failure could undo the
            # rename.
            os.rename(temporary, path)
            _sync(root)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return arrays, facts


def _write(folder: Path, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """All files of an entry, on the disk when this returns."""
    for name, array in arrays.items():
        with _written(folder / f"{name}.npy") as file:
            np.save(file, array, allow_pickle=False)
    # Digests of the files as written, so that a load checks the bytes on the disk.
    content = {"arrays": {name: _digest(folder / f"{name}.npy") for name in arrays}, "facts": facts}
    # Not by `store`, which writes on the first process of a run alone: each process that has a
    # cache folder of its own makes its own entries.
    with _written(folder / "index.json") as file:
        index = {"content": content, "sha256": _json_digest(content)}
        file.write(json.dumps(index, indent=1).encode() + b"\n")


@contextlib.contextmanager
def _written(path: Path) -> Iterator[BinaryIO]:
    """A file to fill, on the disk when the block ends."""
    with _writing(path), open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _load(path: Path) -> Entry:
    """An entry, every byte of it as written.

    Raises Damaged otherwise, FileNotFoundError where there is none.
    """
    if not os.path.isdir(path):  # False, too, where it may not be looked at.
        raise FileNotFoundError(path)
    index = path / "index.json"
    try:
        stored = json.loads(index.read_bytes())
        content = stored["content"]
        # The index has a digest of its own: damage in the facts would not show in an array.
        sound = stored["sha256"] == _json_digest(content)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise Damaged(f"{index}: missing or damaged") from error
    if not sound:
        raise Damaged(f"{index}: damaged: its digest is not the recorded one")
    arrays = {
        name: _array(path / f"{name}.npy", digest) for name, digest in content["arrays"].items()
    }
    return arrays, content["facts"]


def _array(path: Path, digest: str) -> np.ndarray:
    try:
        if _digest(path) != digest:
            raise Damaged(f"{path}: damaged: its digest is not the recorded one")
        return np.load(path, allow_pickle=False)
    except OSError as error:
        raise Damaged(f"{path}: {error.strerror}") from error


def _sweep(root: Path) -> None:
    """Removes what killed builds have left; a folder whose lock is held is being written."""
    for left in root.glob(f"*-{'[0-9a-f]' * KEY_DIGITS}.tmp"):
        with contextlib.suppress(OSError), open(left.with_suffix(".lock"), "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left)


def _sibling(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json_digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
