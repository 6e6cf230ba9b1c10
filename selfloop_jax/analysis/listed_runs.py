"""The runs that a sweep lists, next to their workdirs, so that a report can name missing ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from selfloop_jax.errors import RunError
from selfloop_jax.runtime import store

FILE = "listed_runs.json"


def write(out: Path, lists: Mapping[str, Sequence[str]]) -> None:
    """Stores the names of the runs in `out` by list; other lists that are stored stay."""
    path = out / FILE
    stored = store.read_json(path) if path.exists() else {}
    store.write_json(path, stored | {name: list(runs) for name, runs in lists.items()})


def missing(workdirs: Sequence[Path]) -> dict[str, list[str]]:
    """Returns {folder: runs that are not among the workdirs}, of folders that lack any.

    A run is missing where a list that has any of the workdirs has it as well. Raises RunError for a
    damaged list.
    """
    given: dict[Path, set[str]] = {}
    for workdir in workdirs:
        resolved = Path(workdir).resolve()
        given.setdefault(resolved.parent, set()).add(resolved.name)
    found = {}
    for folder, names in given.items():
        path = folder / FILE
        if not path.exists():
            continue
        absent: dict[str, None] = {}  # a dict keeps the order
        for listed in _lists(path):
            if names & set(listed):
                absent |= dict.fromkeys(run for run in listed if run not in names)
        if absent:
            found[folder.name] = list(absent)
    return found


def _lists(path: Path) -> list[list[str]]:
    lists = store.read_json(path)
    if not isinstance(lists, dict) or not all(isinstance(runs, list) for runs in lists.values()):
        raise RunError(f"{path}: must hold lists of runs by name; delete it to do without")
    return list(lists.values())
