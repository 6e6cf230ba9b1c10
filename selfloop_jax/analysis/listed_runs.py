"""The runs that a sweep lists, next to their workdirs, so that a report can name missing ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from selfloop_jax.errors import RunError
from selfloop_jax.runtime import store

FILE = "listed_runs.json"

Lists = dict[str, list[str]]  # names of runs by that of their list


def write(out: Path, lists: Mapping[str, Sequence[str]]) -> None:
    """Stores the names of the runs in `out` by list; other lists that are stored stay.

    Raises RunError for a damaged file.
    """
    path = out / FILE
    out.mkdir(parents=True, exist_ok=True)
    stored = _read(path) if path.exists() else {}
    store.write_json(path, stored | {name: list(runs) for name, runs in lists.items()})


def missing(workdirs: Sequence[Path]) -> dict[Path, list[str]]:
    """Returns {folder of a sweep: runs that are not among the workdirs}, where there are any.

    A run is missing where a list that has any of the workdirs has it as well, and none of them
    branched from it, for these repeat its generation 0. Of lists that share runs the one with most
    of the workdirs counts. Raises RunError for a damaged file.
    """
    given: dict[Path, set[str]] = {}
    for workdir in workdirs:
        resolved = Path(workdir).resolve()
        for folder in resolved.parents:
            if (folder / FILE).exists():
                given.setdefault(folder, set()).add(resolved.relative_to(folder).as_posix())
                break
    found = {}
    for folder, names in given.items():
        lists = list(_read(folder / FILE).values())
        repeated = {source for name in names for source in _sources(folder, name)}
        absent: dict[str, None] = {}  # a dict keeps the order
        left = set(names)
        for listed in sorted(lists, key=lambda runs: -len(names & set(runs))):
            if left & set(listed):
                left -= set(listed)
                absent |= dict.fromkeys(run for run in listed if run not in names | repeated)
        if absent:
            found[folder] = list(absent)
    return found


def _sources(folder: Path, name: str) -> list[str]:
    """The run of the same sweep that a run branched from, if any, by the name of its folder."""
    source = store.read_json(folder / name / "config.json").get("loop", {}).get("branch_from", "")
    return [Path(source).name] if source else []


def _read(path: Path) -> Lists:
    lists = store.read_json(path)
    valid = isinstance(lists, dict) and all(
        isinstance(runs, list) and all(isinstance(run, str) for run in runs)
        for runs in lists.values()
    )
    if not valid:
        raise RunError(f"{path}: must hold lists of runs by name; without the file none is missed")
    return lists
