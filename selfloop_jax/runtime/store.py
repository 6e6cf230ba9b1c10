"""Atomic files, arrays and JSON on disk, and their digests. No jax here."""

import hashlib
import io
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from selfloop_jax.errors import RunError

Json = dict[str, Any]


# Whether this process writes: of several that make one run the first alone. A global of the
# process, because all that writes or prints on behalf of a run asks, also where no run is at hand.
# `multihost.connect` sets it, once; nothing else may.
leading = True


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all: temporary name, fsync, rename, fsync of the folder."""
    if not leading:
        return
    # Its parent alone: a workdir that is moved away under a run must not be made again, half empty.
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            # Contents before the name: after a power failure the name must not stand for an empty
            # file.
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        # On a full disk, half a file would take the space that a later try needs.
        temporary.unlink(missing_ok=True)
        raise
    # The rename is on the disk only when the folder is.
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def check_space(path: Path, needed: int) -> None:
    """Raises RunError where the disk of `path` has fewer than `needed` bytes left."""
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise RunError(f"{path}: not saved: {needed} bytes are needed, the disk has {free} left")


def write_json(path: Path, value: Any) -> None:
    """Atomic JSON; NaN and infinities become null."""
    text = json.dumps(jsonable(value), indent=1, sort_keys=False, allow_nan=False)
    write_bytes(path, text.encode() + b"\n")


def read_json(path: Path) -> Any:
    """Parsed JSON; RunError where the file is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise RunError(f"{path}: missing") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: damaged, not JSON") from error


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> str:
    """Atomic uncompressed npz, byte for byte a function of the arrays; returns its digest."""
    # NumPy gives all members of the zip the same date, so equal arrays are equal bytes.
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # its keywords are array names
    write_bytes(path, buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def read_npz(path: Path, expected: str | None = None) -> dict[str, np.ndarray]:
    """The arrays of an npz; RunError where it is damaged or has not the digest `expected`."""
    try:
        # Read once: the bytes whose digest was compared are the bytes that are parsed.
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise RunError(f"{path}: missing") from error
    if expected is not None and hashlib.sha256(data).hexdigest() != expected:
        raise RunError(f"{path}: damaged: its digest is not the recorded one")
    try:
        with np.load(io.BytesIO(data)) as file:
            arrays = dict(file)
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray):  # NumPy gives the bytes of what is no array
                raise ValueError(f"{name} is no array")
        return arrays
    except Exception as error:  # zipfile and NumPy raise a dozen kinds on damaged bytes.
        raise RunError(f"{path}: damaged: {error}") from error


def digest_arrays(arrays: dict[str, np.ndarray]) -> str:
    """sha256 over sorted (name, dtype, shape, little-endian C-order bytes)."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        # `ascontiguousarray` makes a scalar one-dimensional; the reshape restores its shape ().
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape)
        # Dtype and shape enter too: the same bytes can be other numbers.
        digest.update(repr((name, array.dtype.str, array.shape)).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def flatten(tree: Json, prefix: str = "") -> Json:
    """Nested dictionaries to dotted names."""
    flat: Json = {}
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def jsonable(value: Any) -> Any:
    """The value as JSON can hold it: NaN and infinity as None, arrays as lists, names as text."""
    if isinstance(value, dict):
        return {str(name): jsonable(inner) for name, inner in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        # Python's own numbers, so that the last line finds NaN among them.
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [jsonable(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
