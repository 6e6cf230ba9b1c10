"""The config that a run was made with, as its workdir has it."""

from pathlib import Path

from selfloop_jax.config.parse import typed
from selfloop_jax.config.schema import Config
from selfloop_jax.errors import RunError, UsageError
from selfloop_jax.runtime import store
from selfloop_jax.runtime.workdir import check_version


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
