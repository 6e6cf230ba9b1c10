"""Config differences between runs, and the label that each run gets from them."""

import json
from collections.abc import Sequence

from selfloop_jax.analysis.runs import Run
from selfloop_jax.config.schema import PATHS
from selfloop_jax.config.stored import MAY_CHANGE
from selfloop_jax.runtime import store

LONGEST_LABEL = 60  # characters; beyond it runs are numbered, and a table has the differences


def differences(runs: Sequence[Run]) -> dict[str, tuple[str, ...]]:
    """Returns {dotted field: its value in each run} of the fields that differ.

    Fields that cannot touch a result (logging, report) are left out. Paths at which the same images
    or weights lie are one value, the first of them.
    """
    configs = [store.flatten(run.config) for run in runs]
    for field in PATHS:
        _name_by_content(field, configs, runs)
    fields: dict[str, tuple[str, ...]] = {}
    # Fields of any run, in the order of their first appearance: a run may lack some.
    for config in configs:
        for field in config:
            fields[field] = tuple(_text(other, field) for other in configs)
    return {
        field: values
        for field, values in fields.items()
        if len(set(values)) > 1 and not field.startswith(MAY_CHANGE)
    }


def _name_by_content(field: str, configs: Sequence[store.Json], runs: Sequence[Run]) -> None:
    """Gives all configs whose `field` leads to the same content the first one's path."""
    first: dict[str, str] = {}
    for config, run in zip(configs, runs, strict=True):
        if field in config:
            found = run.content(field)
            if found is not None:
                config[field] = first.setdefault(found, config[field])


def labels(runs: Sequence[Run]) -> tuple[str, ...]:
    """Returns a distinct label per run: `field=value` where configs differ, else its folder."""
    fields = differences(runs)
    numbers = [f"run {i + 1}" for i in range(len(runs))]
    folders = [run.path.name for run in runs]
    names = []
    for i in range(len(runs)):
        names.append(", ".join(f"{field}={values[i]}" for field, values in fields.items()))
    if max(map(len, names)) > LONGEST_LABEL:
        names = numbers
    # Folders may share a name too, so numbers are the last resort.
    names = [name or folder for name, folder in zip(names, folders, strict=True)]
    return tuple(_distinguished(_distinguished(names, folders), numbers))


def _distinguished(names: Sequence[str], marks: Sequence[str]) -> list[str]:
    """Names with their mark added where they occur more than once."""
    distinct = []
    for name, mark in zip(names, marks, strict=True):
        repeated = names.count(name) > 1 and mark != name
        distinct.append(f"{name} ({mark})" if repeated else name)
    return distinct


def _text(config: store.Json, field: str) -> str:
    value = config.get(field, "not set")
    return value if isinstance(value, str) else json.dumps(value)
