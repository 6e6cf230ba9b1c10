"""In what the configs of several runs differ, and the label each run gets from it."""

import json
from collections.abc import Sequence

from selfloop_jax.analysis.runs import Run
from selfloop_jax.runtime import store, workdir

_LONGEST = 60  # characters; a longer label gives way to a number and the table of differences


def differences(runs: Sequence[Run]) -> dict[str, tuple[str, ...]]:
    """Dotted field -> its value in each run, where they differ and where that can touch a result."""
    configs = [store.flatten(run.config) for run in runs]
    rows = {
        field: tuple(_text(c, field) for c in configs) for config in configs for field in config
    }
    differing = {field: values for field, values in rows.items() if len(set(values)) > 1}
    return {
        field: values
        for field, values in differing.items()
        if not field.startswith(workdir.MAY_CHANGE)
    }


def labels(runs: Sequence[Run]) -> tuple[str, ...]:
    """One name per run, all different: `field=value` where configs differ, else the folder's name."""
    rows, numbers = differences(runs), [f"run {i + 1}" for i in range(len(runs))]
    folders = [run.path.name for run in runs]
    names = [
        ", ".join(f"{field}={values[i]}" for field, values in rows.items())
        for i in range(len(runs))
    ]
    if max(map(len, names)) > _LONGEST:
        names = numbers
    names = [name or folder for name, folder in zip(names, folders, strict=True)]
    return tuple(_told_apart(_told_apart(names, folders), numbers))


def _told_apart(names: list[str], marks: list[str]) -> list[str]:
    """Names that occur more than once get their mark added."""
    twice = [
        names.count(name) > 1 and mark != name for name, mark in zip(names, marks, strict=True)
    ]
    return [f"{n} ({m})" if same else n for n, m, same in zip(names, marks, twice, strict=True)]


def _text(config: store.Json, field: str) -> str:
    value = config.get(field, "not set")
    return value if isinstance(value, str) else json.dumps(value)
