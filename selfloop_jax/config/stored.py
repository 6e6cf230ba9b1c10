"""The config that a run was made with, as its workdir has it; what a resume may change in it."""

import json
from pathlib import Path
from typing import Any

from selfloop_jax.config.parse import typed
from selfloop_jax.config.schema import PATHS, Config
from selfloop_jax.errors import RunError, UsageError
from selfloop_jax.runtime import store
from selfloop_jax.runtime.workdir import check_version, generation_dirs

# Fields that may change on resume without touching a bit, by how their names begin.
MAY_CHANGE = ("log.", "report.", "parallel.processes")  # the manifest has the processes


def read_config(workdir: Path) -> Config:
    """The config of the run in a workdir; UsageError where there is no run."""
    path = workdir / "config.json"
    if not path.exists():
        raise UsageError(f"{workdir}: no run there (config.json is missing)")
    # Before the fields: those of version 0.1 had other names, and an error about one of them would
    # hide the cause.
    check_version(workdir, str(workdir))
    stored = store.read_json(path)
    if not isinstance(stored, dict):
        raise RunError(f"{path}: damaged: not a JSON object")
    try:
        return typed(stored)
    except UsageError as error:
        raise UsageError(f"{path}: {error}; was it made by another version?") from error


def write_or_check_config(workdir: Path, config: store.Json, grows: tuple[str, ...]) -> None:
    """Writes config.json, or checks that this run's differs from it only where a run may."""
    path = workdir / "config.json"
    if not path.exists():
        if generation_dirs(workdir):
            raise RunError(f"{path}: missing")
        store.write_json(path, config)
        return
    # Under the lock. A check before the real images are read can miss a run that starts meanwhile.
    check_config(workdir, config, grows)
    # Allowed changes are stored, as more generations: the next resume compares with them.
    if store.read_json(path) != json.loads(json.dumps(config)):
        store.write_json(path, config)


def check_config(workdir: Path, config: store.Json, grows: tuple[str, ...]) -> None:
    """Raises UsageError naming the first field in which a run's stored config forbids `config`.

    grows: the fields that a resume may raise, such as the number of generations.
    """
    stored = store.read_json(workdir / "config.json")
    if not isinstance(stored, dict):
        raise RunError(f"{workdir / 'config.json'}: damaged: not a JSON object")
    before = store.flatten(stored)
    after = store.flatten(json.loads(json.dumps(config)))
    for field in sorted(before.keys() | after.keys()):
        was: Any = before.get(field)
        now: Any = after.get(field)
        # Fewer generations would leave folders that the config does not account for.
        longer = field in grows and isinstance(was, int) and now > was
        if was != now and not longer and not _is_free(field, was, now):
            rule = f"at least {was}" if field in grows else was
            raise UsageError(
                f"{field} = {now}: must be {rule}, the value of the run in {workdir}; another "
                "value needs another --workdir"
            )


def _is_free(field: str, was: Any, now: Any) -> bool:
    """Whether a field may change without touching a bit.

    Where something lies may, as `check_inputs` compares what lies there; but no file of weights
    may come or go.
    """
    moved = field in PATHS and (field.startswith("data.") or bool(was) == bool(now))
    return moved or field.startswith(MAY_CHANGE)


def check_same_config(
    config: store.Json, source: Path, field: str, may_differ: tuple[str, ...]
) -> None:
    """Raises UsageError naming the first field in which the run in `source` differs and must not.

    field: the config field that names `source`. may_differ: the fields that are free, by how their
    names begin, besides those that may change within a run.
    """
    theirs = store.flatten(store.read_json(source / "config.json"))
    # Through JSON, as the stored config went: tuples become lists.
    ours = store.flatten(json.loads(json.dumps(config)))
    for name in sorted(theirs.keys() | ours.keys()):
        was, now = theirs.get(name), ours.get(name)
        if was != now and not name.startswith(may_differ) and not _is_free(name, was, now):
            raise UsageError(
                f"{name} = {now}: must be {was}, the value of the run of {field} = {source}"
            )
