"""Configs as config files and the command line write them, and the typed config made of them."""

import dataclasses
import difflib
import importlib.util
import re
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

from ml_collections import ConfigDict

from selfloop_jax.config.fields import leaves
from selfloop_jax.config.schema import Config
from selfloop_jax.errors import UsageError

NAMES = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}


def share_folder(file: Path) -> None:
    """Lets a config file import its neighbours, as in `from configs import common`."""
    above = str(file.resolve().parent.parent)
    if above not in sys.path:
        sys.path.append(above)  # last, so that nothing installed is hidden


def run_file(flag: str, file: Path) -> types.ModuleType:
    """Runs a Python file of the user's, which may register what it uses; its module.

    UsageError, naming the flag that gives the file, where it cannot be run.
    """
    share_folder(file)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise UsageError(f"{flag}={file}: must be a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a file of the user's can raise
        raise UsageError(f"{flag}={file}: {type(error).__name__}: {error}") from error
    return module


def default() -> ConfigDict:
    """The default config, types locked: what a config file starts from."""
    return ConfigDict(dataclasses.asdict(Config()), convert_dict=True).lock()


def parse_arg(arg: str, *options: tuple[str, ...]) -> list[str]:
    """The argument of a config file, words with commas between: at most one of each of `options`.

    What is not named is the first of its options; an option that begins with "" is a word that may
    be left out. UsageError on anything else.
    """
    words = [word for word in arg.split(",") if word]
    chosen = []
    for option in options:
        # Of two words for one option neither is chosen: both then count as unused.
        named = [word for word in words if word in option]
        chosen.append(named[0] if len(named) == 1 else option[0])
    unused = sorted(words) != sorted(word for word in chosen if word in words)
    if unused:
        lists = ", ".join(" | ".join(filter(None, option)) for option in options) or "empty"
        raise UsageError(f"--config=FILE:{arg}: what follows the colon must be {lists}")
    return chosen


def check_override(field: str, value: str) -> None:
    """Raises UsageError where an override of the command line does not name a field.

    A name that no section has is left to the parser, which knows the file's own.
    """
    if not re.fullmatch(r"\w+(\.\w+)*", field):
        raise UsageError(f"--config.{field}: must be --config.FIELD=VALUE with dots between names")
    found: Any = Config()
    names = field.split(".")
    for place, name in enumerate(names):
        declared = {one.name for one in dataclasses.fields(found)}
        if name not in declared:
            return
        found = getattr(found, name)
        if not dataclasses.is_dataclass(found) and place + 1 < len(names):
            raise UsageError(f"{field}: must end at {'.'.join(names[: place + 1])}, a field")
    if dataclasses.is_dataclass(found):
        raise UsageError(_not_a_section(field, value, found))


def typed(values: ConfigDict | Mapping[str, Any]) -> Config:
    """The config with these values, those of a config file or of config.json.

    What is missing has its default. Lists become tuples, whole numbers floats where a float is due.
    UsageError names a field that is unknown, as one of another version may be, or whose value is of
    another type.
    """
    config: Config = _section(Config(), values, "")
    return config


def describe(config: Config) -> str:
    """All fields with their values and meanings, one a line."""
    rows = [(f"{name} = {value!r}", declared) for name, value, declared in leaves(config)]
    # One very long value must not push all meanings far to the right.
    width = min(max(len(row) for row, _ in rows), 56)
    return "\n".join(f"{row:{width}}  # {declared.metadata['what']}" for row, declared in rows)


def _section(default: Any, values: Any, path: str) -> Any:
    """The section `default` with some of its values replaced; `path` is its name and a dot."""
    declared = {one.name: one for one in dataclasses.fields(default)}
    # Not Mapping, which a ConfigDict is not.
    if not hasattr(values, "items"):
        raise UsageError(_not_a_section(path[:-1], values, default))
    changed = {}
    for name, value in values.items():
        if name not in declared:
            raise UsageError(_unknown(f"{path}{name}", name, list(declared)))
        old = getattr(default, name)
        if dataclasses.is_dataclass(old):
            changed[name] = _section(old, value, f"{path}{name}.")
        else:
            changed[name] = _converted(declared[name].type, value, f"{path}{name}")
    return dataclasses.replace(default, **changed)


def _not_a_section(field: str, value: Any, section: Any) -> str:
    names = ", ".join(one.name for one in dataclasses.fields(section))
    return f"{field} = {value}: is a section; its fields are {names}"


def _unknown(field: str, name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]}?" if close else f"must be one of {' | '.join(known)}"
    return f"{field}: unknown field; {hint}"


def _converted(kind: Any, value: Any, field: str) -> Any:
    """The value as its field's type; UsageError where it is none."""
    try:
        # A whole number can be too large for a float: OverflowError.
        return _as(kind, value)
    except (TypeError, OverflowError):
        raise UsageError(f"{field} = {value!r}: must be {_name(kind)}") from None


def _as(kind: Any, value: Any) -> Any:
    """The value as a plain type, tuple[..., ...] or union; TypeError where it is none."""
    if isinstance(kind, types.UnionType):
        for one in get_args(kind):
            try:
                return _as(one, value)
            except TypeError:
                continue
    elif get_origin(kind) is tuple:
        if isinstance(value, list | tuple):
            return tuple(_as(get_args(kind)[0], element) for element in value)
    # A bool is an int to Python and must not become 1.0.
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif type(value) is kind:  # not isinstance: True is no whole number
        return value
    raise TypeError


def _name(kind: Any) -> str:
    """A type in words."""
    if isinstance(kind, types.UnionType):
        return " or ".join(map(_name, get_args(kind)))
    if get_origin(kind) is tuple:
        return f"a tuple of which each is {_name(get_args(kind)[0])}"
    return NAMES[kind]
