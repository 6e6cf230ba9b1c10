"""How a section of the config is declared: a field with its default, its meaning and its rule."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rule:
    """The values that a field may have: `words` continue the sentence "must be ..."."""

    words: str
    holds: Callable[[Any], bool]


POSITIVE = Rule("> 0", lambda value: value > 0)


SHARE = Rule("from 0 to 1", lambda value: 0 <= value <= 1)


BELOW_ONE = Rule(">= 0 and < 1", lambda value: 0 <= value < 1)


INSIDE = Rule("> 0 and < 1", lambda value: 0 < value < 1)


def choices(*names: str) -> Rule:
    """One of the names."""
    return Rule(f"one of {' | '.join(names)}", lambda value: value in names)


def at_least(least: float) -> Rule:
    """A number that is not below `least`."""
    return Rule(f">= {least}", lambda value: value >= least)


def up_to(most: float) -> Rule:
    """A number from 0 to `most`."""
    return Rule(f"from 0 to {most}", lambda value: 0 <= value <= most)


def each(rule: Rule, least: int = 0) -> Rule:
    """A tuple of at least `least` values that all obey the rule."""
    count = "one value or more, each" if least == 1 else "values, each"
    return Rule(
        f"{count} {rule.words}",
        lambda values: len(values) >= least and all(map(rule.holds, values)),
    )


def field(default: Any, what: str, rule: Rule | None = None) -> Any:
    """A field of a section: its default, what it is with its unit, and its rule if it has one."""
    return dataclasses.field(default=default, metadata={"what": what, "rule": rule})


def path(what: str) -> Any:
    """A field that says where something lies; '' by default.

    What lies there is compared by its digest, so that it may be moved, or lie in another place on
    another machine.
    """
    return dataclasses.field(default="", metadata={"what": what, "rule": None, "path": True})


def leaves(section: Any, prefix: str = "") -> Iterator[tuple[str, Any, dataclasses.Field]]:
    """(dotted name, value, declaration) of every field of a section and of those within it."""
    for declared in dataclasses.fields(section):
        value = getattr(section, declared.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{declared.name}.")
        else:
            yield f"{prefix}{declared.name}", value, declared
