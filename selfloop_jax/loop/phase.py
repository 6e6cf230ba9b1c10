"""A phase as a value: what it reads, what it computes, what it writes.

The runner (`runner.py`) knows nothing else of a study. To add a phase is to write one `Phase` and
to put it into a study's list.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Run = TypeVar("Run")  # one stage of a study under way: of the loop, a generation
Inputs = TypeVar("Inputs")
Outputs = TypeVar("Outputs")


@dataclass(frozen=True)
class Result:
    """What a phase leaves behind in `<phase>.json`.

    digests: sha256 by artifact. record: its part of record.json; parts of two phases merge, and
    no two phases may set the same number. rates: images per second by name.
    """

    digests: Mapping[str, str] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)


SKIPPED = Result()  # of a phase that does not apply


def always(run: Any) -> bool:
    """True: the phase applies to every stage."""
    return True


def halve(field: str) -> Callable[[Any], str]:
    """The memory hint of a phase that takes half of it with half of the number in a field."""

    def hint(run: Any) -> str:
        section, name = field.split(".")
        value = getattr(getattr(run.context.config, section), name)
        return f"set {field} = {max(1, value // 2)}"

    return hint


MEASURES_LESS = halve("measure.batch")


@dataclass(frozen=True)
class Phase(Generic[Run, Inputs, Outputs]):
    """One phase of a study.

    read(run) gives verified inputs from disk. compute takes a list of inputs, one per replica, and
    gives as many outputs; it touches no file except through the checkpoints and progress that its
    inputs carry. write(run, outputs) writes the artifacts. memory_hint(run) says what to set when a
    device runs out of memory.
    """

    name: str
    read: Callable[[Run], Inputs]
    compute: Callable[[Sequence[Inputs]], list[Outputs]]
    write: Callable[[Run, Outputs], Result]
    applies: Callable[[Run], bool] = always
    memory_hint: Callable[[Run], str] = MEASURES_LESS

    def run(self, run: Run) -> Result:
        """Reads, computes and writes one stage."""
        if not self.applies(run):
            return SKIPPED
        # The runner computes one stage at a time: a list of one.
        (outputs,) = self.compute([self.read(run)])
        return self.write(run, outputs)


def each(function: Callable[[Inputs], Outputs]) -> Callable[[Sequence[Inputs]], list[Outputs]]:
    """The `compute` that applies a function to every input."""
    return lambda jobs: [function(job) for job in jobs]


def merge(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The records of several phases as one: tables of the same name are joined.

    Raises ValueError where two phases set the same entry.
    """
    merged: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            if isinstance(value, Mapping) and isinstance(merged.get(name), Mapping):
                twice = merged[name].keys() & value.keys()
                if twice:
                    raise ValueError(f"record, {name}: two phases set {sorted(twice)}")
                merged[name] = {**merged[name], **value}
            elif name in merged:
                raise ValueError(f"record: two phases set {name}")
            else:
                merged[name] = value
    return merged
