"""What a run is on disk: atomic files, digests, the lock, config and manifest. No jax here."""

import contextlib
import fcntl
import hashlib
import io
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from selfloop_jax.errors import RunError, UsageError

Json = dict[str, Any]
# What may differ between two starts of one run without touching a single bit.
FREE_SECTIONS = ("log.", "report.")
# What a manifest must not change in; the rest of it is told, not compared.
EXACT = (
    *("python", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"),
    *("platform", "device_kind", "device_count", "process_count", "nproc", "xla_flags"),
)
leading = True  # whether this process writes: of several that make one run the first alone
# What of a record is about the making, not the made.
NOT_DIGESTED = ("seconds", "images_per_second", "compilations", "finished", "exact", "git")


def generation_dir(workdir: Path, generation: int) -> Path:
    """The folder of one generation."""
    return workdir / f"gen_{generation:04d}"


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all: temporary name, fsync, rename, fsync of the folder."""
    if not leading:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
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
    except ValueError as error:
        raise RunError(f"{path}: damaged, not JSON") from error


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> str:
    """Atomic uncompressed npz, byte for byte a function of the arrays; returns its digest."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_bytes(path, buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def read_npz(path: Path, expected: str | None = None) -> dict[str, np.ndarray]:
    """Arrays of an npz, its bytes compared with the digest `expected`; RunError names a damaged file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise RunError(f"{path}: missing") from error
    if expected is not None and hashlib.sha256(data).hexdigest() != expected:
        raise RunError(f"{path}: damaged: its digest is not the recorded one")
    try:
        with np.load(io.BytesIO(data)) as file:
            return dict(file)
    except Exception as error:  # zipfile and NumPy raise a dozen kinds on damaged bytes.
        raise RunError(f"{path}: damaged: {error}") from error


def digest_arrays(arrays: dict[str, np.ndarray]) -> str:
    """sha256 over sorted (name, dtype, shape, little-endian C-order bytes)."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape)
        digest.update(repr((name, array.dtype.str, array.shape)).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def digest_record(record: Json) -> str:
    """sha256 of a record without what is about its making (seconds, dates, code version)."""
    kept = {name: value for name, value in record.items() if name not in NOT_DIGESTED}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def records(workdir: Path, generations: int) -> list[Json]:
    """Committed records from generation 0 on, each checked against the one before it."""
    found: list[Json] = []
    for generation in range(generations):
        path = generation_dir(workdir, generation) / "record.json"
        if not path.exists():
            break
        record = read_json(path)
        if found:
            name = f"gen_{generation - 1:04d}/record.json"
            parents = record.get("parents") if isinstance(record, dict) else None
            if not isinstance(parents, dict):
                raise RunError(f"{path}: damaged: it names no parents")
            if parents.get(name) != digest_record(found[-1]):
                raise RunError(f"{workdir / name}: damaged: its digest is not the one in {path}")
        found.append(record)
    return found


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """One run per workdir; UsageError where another process holds it."""
    workdir.mkdir(parents=True, exist_ok=True)
    if not leading:
        yield
        return
    with open(workdir / ".lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f"--workdir={workdir}: another run is using it") from error
        yield


def settle_config(workdir: Path, config: Json) -> None:
    """Writes config.json, or checks that this run's differs from it only where a run may."""
    path = workdir / "config.json"
    if not path.exists():
        if any(workdir.glob("gen_*")):
            raise RunError(f"{path}: missing")
        write_json(path, config)
        return
    check_config(workdir, config)
    if read_json(path) != json.loads(json.dumps(config)):
        write_json(path, config)


def check_config(workdir: Path, config: Json) -> None:
    """Raises UsageError naming the first field in which a run's stored config forbids `config`."""
    stored = read_json(workdir / "config.json")
    if not isinstance(stored, dict):
        raise RunError(f"{workdir / 'config.json'}: damaged: no object")
    before = flatten(stored)
    after = flatten(json.loads(json.dumps(config)))
    for field in sorted(before.keys() | after.keys()):
        was, now = before.get(field), after.get(field)
        longer = field == "loop.generations" and isinstance(was, int) and now > was
        if was != now and not longer and not field.startswith(FREE_SECTIONS):
            raise UsageError(
                f"{field} = {now}: the run in {workdir} has {was}; allowed are the same value "
                "or another --workdir"
            )


def settle_inputs(workdir: Path, inputs: Json) -> None:
    """Writes inputs.json, or checks that a run goes on with the images and weights it began with.

    RunError names what differs.
    """
    path = workdir / "inputs.json"
    if path.exists() or any(workdir.glob("gen_*")):
        check_inputs(workdir, inputs)
    else:
        write_json(path, inputs)


def check_inputs(workdir: Path, inputs: Json) -> None:
    """Raises RunError where images or weights are not those that the run in `workdir` began with."""
    before, after = flatten(read_json(workdir / "inputs.json")), flatten(jsonable(inputs))
    for field in sorted(before.keys() | after.keys()):
        if before.get(field) != after.get(field):
            what = "the real images are" if field.startswith("data.") else f"the file of {field} is"
            raise RunError(f"{workdir}: {what} no longer what the run began with ({field} differs)")


def settle_manifest(workdir: Path, manifest: Json, accept: bool) -> bool:
    """Writes manifest.json or compares with its last entry; whether all of the run is exact.

    A difference is a UsageError naming the field, or with `accept` a further entry.
    """
    path = workdir / "manifest.json"
    if not path.exists() and any(workdir.glob("gen_*")):
        raise RunError(f"{path}: missing")
    entries = read_json(path) if path.exists() else []
    changed = manifest_difference(entries[-1], manifest) if entries else None
    if changed and not accept:
        raise UsageError(
            f"{changed} = {manifest[changed]}: the run in {workdir} was made with {entries[-1][changed]}; "
            "its bits may differ: pass --accept_manifest to go on, marked as not exact"
        )
    if changed or not entries:
        entries.append(manifest)
        write_json(path, entries)
    return len(entries) == 1


def manifest_difference(old: Json, new: Json) -> str | None:
    """The first field that decides bits and differs, or None."""
    return next((field for field in EXACT if old.get(field) != new.get(field)), None)


def flatten(tree: Json, prefix: str = "") -> Json:
    """Nested dictionaries to dotted names."""
    flat: Json = {}
    for name, value in tree.items():
        inner = isinstance(value, dict) and value
        flat.update(flatten(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value})
    return flat


def jsonable(value: Any) -> Any:
    """The value as JSON gives it back: floats that it cannot hold as None, arrays as lists, names as text."""
    if isinstance(value, dict):
        return {str(name): jsonable(inner) for name, inner in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [jsonable(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
