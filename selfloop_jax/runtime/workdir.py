"""The folder of a run: lock, config, manifest, inputs and records of its generations. No jax."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from selfloop_jax.errors import RunError, UsageError
from selfloop_jax.runtime import store

# Fields of the manifest that decide bits; the others are recorded, not compared.
BIT_RELEVANT = (
    *("python", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"),
    *("platform", "device_kind", "device_count", "process_count", "nproc", "xla_flags"),
    *("accelerator", "variables"),
)


# Entries of inputs.json that runs of before 0.3 lack.
ADDED = ("data.test_digest",)


# What a record says of how it was made: not part of its digest.
NOT_IN_DIGEST = (
    *("seconds", "images_per_second", "compilations", "finished", "exact", "manifest", "git"),
    "version",
)


def check_version(workdir: Path, named: str) -> None:
    """Raises UsageError where an earlier version wrote the run, whose fields had other names.

    named: what the line begins with, the workdir as the user gave it.
    """
    path = workdir / "manifest.json"
    if not path.exists():
        return
    # Version 0.1 did not write the package's own version into the manifest.
    entries = store.read_json(path)
    if isinstance(entries, list) and entries and "selfloop_jax" not in entries[0]:
        raise UsageError(f"{named}: written by selfloop_jax 0.1; this version reads 0.2 and later")


def generation_dir(workdir: Path, generation: int) -> Path:
    """The folder of one generation."""
    return workdir / f"gen_{generation:04d}"


def generation_dirs(workdir: Path) -> dict[int, Path]:
    """The folders of all generations by number, in order, finished or not; {} without a workdir."""
    found = {}
    for path in workdir.glob("gen_*"):
        # gen_0000.tmp is what an interrupted copy has left, not a generation.
        if re.fullmatch(r"gen_\d{4,}", path.name) and path.is_dir():
            found[int(path.name.removeprefix("gen_"))] = path
    return dict(sorted(found.items()))


def digest_record(record: store.Json) -> str:
    """sha256 of a record without how it was made (seconds, dates, code version)."""
    kept = {name: value for name, value in record.items() if name not in NOT_IN_DIGEST}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def records(workdir: Path, generations: int) -> list[store.Json]:
    """Committed records from generation 0 on, each checked against the one before it."""
    found: list[store.Json] = []
    for generation in range(generations):
        path = generation_dir(workdir, generation) / "record.json"
        if not path.exists():
            break
        record = store.read_json(path)
        if found:
            # Each record names the digest of the one before, so a record that was changed later is
            # noticed.
            name = f"gen_{generation - 1:04d}/record.json"
            parents = record.get("parents") if isinstance(record, dict) else None
            if not isinstance(parents, dict):
                raise RunError(f"{path}: damaged: it names no parents")
            if parents.get(name) != digest_record(found[-1]):
                raise RunError(f"{workdir / name}: damaged: its digest is not the one in {path}")
        found.append(record)
    return found


@contextlib.contextmanager
def lock(workdir: Path, name: str = ".lock", holder: str = "run") -> Iterator[None]:
    """One run per workdir, or whatever `holder` says that holds the lock of another name.

    UsageError where the folder cannot be made, locks fail there, or another process holds it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--workdir={workdir}: cannot be made: {error.strerror}") from error
    if not store.leading:
        yield
        return
    with _open_lock(workdir, name) as file:
        try:
            # A lock of the kernel, not a marker file: it ends with the process, however that ends.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"--workdir={workdir}: another {holder} is using it") from error
        except OSError as error:
            # Without a lock two runs could write to one folder.
            raise UsageError(
                f"--workdir={workdir}: must be on a file system with locks: {error.strerror}"
            ) from error
        yield


def _open_lock(workdir: Path, name: str) -> TextIO:
    try:
        return open(workdir / name, "a")
    except OSError as error:
        raise UsageError(
            f"--workdir={workdir}: must be a folder that can be written: {name}: {error.strerror}"
        ) from error


def write_or_check_inputs(workdir: Path, inputs: store.Json) -> None:
    """Writes inputs.json, or checks that a run resumes with the images and weights it started with.

    RunError names what differs.
    """
    path = workdir / "inputs.json"
    # Generations without inputs.json are damage, which `check_inputs` reports as a missing file.
    if path.exists() or generation_dirs(workdir):
        check_inputs(workdir, inputs)
    else:
        store.write_json(path, inputs)


def check_inputs(workdir: Path, inputs: store.Json) -> None:
    """Raises RunError where images or weights are not those that a run started with."""
    before = store.flatten(store.read_json(workdir / "inputs.json"))
    after = store.flatten(store.jsonable(inputs))
    for field in sorted(before.keys() | after.keys()):
        # Runs of before the field were compared by all the others.
        if field in ADDED and field not in before:
            continue
        if before.get(field) != after.get(field):
            what = "the real images are" if field.startswith("data.") else f"the file of {field} is"
            raise RunError(f"{workdir}: {what} no longer what the run began with ({field} differs)")


def write_or_check_manifest(workdir: Path, manifest: store.Json, accept: bool) -> int:
    """Writes manifest.json or compares with its last entry; returns that entry's place from 0.

    A difference is a UsageError naming the field, or with `accept` a further entry. Another version
    of the code is a further entry, too.
    """
    path = workdir / "manifest.json"
    if not path.exists() and generation_dirs(workdir):
        raise RunError(f"{path}: missing")
    entries = store.read_json(path) if path.exists() else []
    # Compared with the last entry: a difference that was accepted once is not asked for again.
    changed = manifest_difference(entries[-1], manifest) if entries else None
    if changed and not accept:
        now, made_with = (store.flatten(one).get(changed) for one in (manifest, entries[-1]))
        raise UsageError(
            f"{changed} = {now}: the run in {workdir} was made with {made_with}; its "
            "bits may differ: pass --accept_manifest to continue, marked as not exact"
        )
    if changed or not entries or code_difference(entries[-1], manifest):
        entries.append(manifest)
        store.write_json(path, entries)
    return len(entries) - 1


def code_difference(old: store.Json, new: store.Json) -> str | None:
    """How the code differs from that of an earlier manifest, in words; None: it is the same."""
    # Manifests of before `code` have the commit, which says nothing of uncommitted changes.
    field = "code" if "code" in old else "git"
    if old.get(field) == new.get(field):
        return None
    was, now = (
        f"{one.get('selfloop_jax')} {one.get('git') or str(one.get('code'))[:12]}"
        for one in (old, new)
    )
    return f"made by version {was}, continued by {now}"


def manifest_of(workdir: Path, record: store.Json) -> store.Json:
    """The entry of manifest.json that a record was made under; RunError where it is missing.

    Records of earlier versions do not say: then the last entry.
    """
    path = workdir / "manifest.json"
    entries = store.read_json(path)
    place = record.get("manifest", len(entries) - 1)
    if not 0 <= place < len(entries):
        raise RunError(f"{path}: damaged: it has no entry {place}, which a record names")
    return entries[place]


def manifest_difference(old: store.Json, new: store.Json) -> str | None:
    """The first field that decides bits and differs, or None."""
    old, new = store.flatten(old), store.flatten(new)
    for name in dict.fromkeys([*old, *new]):
        if name.partition(".")[0] in BIT_RELEVANT and old.get(name) != new.get(name):
            return name
    return None


def copy_generation(source: Path, workdir: Path, generation: int) -> None:
    """Copies a finished generation of another run into `workdir`, all of it or nothing."""
    target = generation_dir(workdir, generation)
    # The final name appears only with a whole copy; what an interrupted one left is removed first.
    temporary = target.with_name(target.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(generation_dir(source, generation), temporary)
    shutil.rmtree(target, ignore_errors=True)  # without a record, so nothing finished
    os.replace(temporary, target)


def last_committed(workdir: Path) -> int:
    """The last generation with a record; UsageError where there is none."""
    folders = generation_dirs(workdir)
    committed = [number for number in folders if (folders[number] / "record.json").exists()]
    if not committed:
        raise UsageError(f"{workdir}: no run with a finished generation in it")
    return committed[-1]
