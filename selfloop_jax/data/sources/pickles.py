"""Safe unpickling of untrusted files: plain containers alone, nothing that runs code.

NumPy's numbers, text and vectors are rebuilt from their bytes and become Python's own: whatever a
pickle asks for, nothing is imported.
"""

import io
import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from selfloop_jax.errors import UsageError

RULE = "must hold only dicts, lists, tuples, sets, strings and numbers"


# Hard ImageNet's largest has a megabyte.
MAX_BYTES = 16 * 1024**2


# A tuple in a tuple in a tuple, and so on, overflows the interpreter's stack where it becomes a
# key.
MAX_TUPLES = 10_000


# Built-in containers that pickles before protocol 4 import like any class.
SETS = {"set": set, "frozenset": frozenset}


class _Call:
    """Stands for a function that a pickle names. Without attributes, so that none can be set."""

    __slots__ = ("_function",)
    _function: Callable

    def __init__(self, function: Callable):
        object.__setattr__(self, "_function", function)

    def __setattr__(self, name: str, value: Any) -> None:
        raise UsageError(f"it sets {name!r:.40} of a function")

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


class _Kind:
    """NumPy's dtype: of whole numbers, floats, truth values or text."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any, *_: Any):
        if not isinstance(code, str) or not re.fullmatch(r"[iu][1248]|f[248]|b1|[US]\d{1,4}", code):
            raise UsageError(f"it has numbers of type {code!r:.40}")
        self.code = code
        self.order = "="

    def __setstate__(self, state: Any) -> None:
        """The second part is the order of bytes."""
        self.order = state[1] if state[1] in ("<", ">") else "="

    def values(self, data: Any) -> list:
        """The values whose bytes these are; Python 2 has bytes as text."""
        data = data.encode("latin1") if isinstance(data, str) else bytes(data)
        found: list = np.frombuffer(data, np.dtype(self.order + self.code)).tolist()
        return found


class _Vector(list):
    """NumPy's array of one dimension, as a list."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Version, shape, dtype, the order of axes, and the bytes."""
        _, shape, kind, _, data = state
        self[:] = _vector(data, kind, shape)


def _scalar(kind: Any, data: Any) -> Any:
    (value,) = _kind(kind).values(data)
    return value


def _vector(data: Any, kind: Any, shape: Any, *_: Any) -> list:
    values = _kind(kind).values(data)
    if tuple(shape) != (len(values),):
        raise UsageError(f"it has an array of shape {shape!r:.40}")
    return values


def _kind(kind: Any) -> _Kind:
    if not isinstance(kind, _Kind):
        raise UsageError("it has an array without a type")
    return kind


def _encode(text: Any, encoding: Any) -> bytes:
    """How bytes are kept before protocol 3."""
    if not isinstance(text, str) or encoding != "latin1":
        raise UsageError(f"it has bytes as {encoding!r:.40}")
    return text.encode("latin1")


# What pickles of NumPy's values ask for, by the names of NumPy 1 and 2, and what it gets.
REBUILT = {
    "numpy.dtype": _Call(_Kind),
    "numpy.ndarray": _Call(_Vector),
    "multiarray.scalar": _Call(_scalar),
    "multiarray._reconstruct": _Call(lambda *_: _Vector()),
    "numeric._frombuffer": _Call(_vector),
    "_codecs.encode": _Call(_encode),
}
NUMPY_MODULES = ("numpy.core.", "numpy._core.")


class _Plain(pickle.Unpickler):
    """An unpickler that imports nothing.

    Whatever is no plain container, a pickle would have to import: sets and NumPy's values are
    rebuilt, all else is refused.
    """

    def find_class(self, module: str, name: str) -> Any:
        """What stands for sets and for the functions that rebuild NumPy's values."""
        if module in ("builtins", "__builtin__") and name in SETS:
            return SETS[name]
        for core in NUMPY_MODULES:
            module = module.replace(core, "", 1) if module.startswith(core) else module
        if f"{module}.{name}" in REBUILT:
            return REBUILT[f"{module}.{name}"]
        wanted = f"{module}.{name}"[:100]
        raise UsageError(f"it wants to import {wanted if wanted.isprintable() else ascii(wanted)}")

    def persistent_load(self, pid: Any) -> Any:
        """Refuses every reference to an object kept elsewhere."""
        raise UsageError("it refers to an object outside of itself")


def check_opcodes(data: IO[bytes] | bytes, size: int, most_tuples: int = MAX_TUPLES) -> None:
    """Raises UsageError where unpickling could take the interpreter or the memory with it.

    data: `size` bytes, or what reads them, of which one pickle is looked at.
    """
    tuples = 0
    # genops reads the opcodes without running any.
    for opcode, argument, _ in pickletools.genops(data):
        tuples += "TUPLE" in opcode.name
        if tuples > most_tuples:
            raise UsageError(f"it has more than {most_tuples} tuples")
        # The unpickler makes room for all objects up to that number.
        if opcode.name.endswith("PUT") and (argument or 0) > size:
            raise UsageError(f"it has no object number {argument}")


def load_plain(path: Path) -> Any:
    """What the pickle at `path` holds.

    Raises UsageError naming the file where it is missing, damaged, or asks for anything to be
    imported (an own class, a function to call), of which nothing is run; and where it is longer, or
    has more tuples, than can be read safely.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise UsageError(f"it has more than {MAX_BYTES // 1024**2} MiB")
        check_opcodes(data, len(data))
        # The text of Python 2, of which NumPy's bytes are a kind.
        return _Plain(io.BytesIO(data), encoding="latin1").load()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}; {RULE}") from error
    except Exception as error:  # Damaged bytes make the unpickler raise nearly anything.
        raise UsageError(f"{path}: damaged, not a pickle ({type(error).__name__})") from error
