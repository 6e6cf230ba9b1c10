"""Safe unpickling of untrusted files: plain containers alone, nothing that runs code."""

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

from selfloop_jax.errors import UsageError

RULE = "must hold only dicts, lists, tuples, sets, strings and numbers"


# Hard ImageNet's largest has a megabyte.
MAX_BYTES = 16 * 1024**2


# A tuple in a tuple in a tuple, and so on, overflows the interpreter's stack where it becomes a
# key.
MAX_TUPLES = 10_000


# Built-in containers that pickles before protocol 4 import like any class.
SETS = {"set": set, "frozenset": frozenset}


class _Plain(pickle.Unpickler):
    """An unpickler that imports sets alone.

    Whatever else is no plain container, a pickle would have to import.
    """

    def find_class(self, module: str, name: str) -> Any:
        """Refuses to import anything."""
        if module in ("builtins", "__builtin__") and name in SETS:
            return SETS[name]
        wanted = f"{module}.{name}"[:100]
        raise UsageError(f"it wants to import {wanted if wanted.isprintable() else ascii(wanted)}")

    def persistent_load(self, pid: Any) -> Any:
        """Refuses every reference to an object kept elsewhere."""
        raise UsageError("it refers to an object outside of itself")


def _check_size(data: bytes) -> None:
    """Raises UsageError where unpickling could take the interpreter or the memory with it."""
    if len(data) > MAX_BYTES:
        raise UsageError(f"it has more than {MAX_BYTES // 1024**2} MiB")
    tuples = 0
    # genops reads the opcodes without running any.
    for opcode, argument, _ in pickletools.genops(data):
        tuples += "TUPLE" in opcode.name
        if tuples > MAX_TUPLES:
            raise UsageError(f"it has more than {MAX_TUPLES} tuples")
        # The unpickler makes room for all objects up to that number.
        if opcode.name.endswith("PUT") and (argument or 0) > len(data):
            raise UsageError(f"it has no object number {argument}")


def load_plain(path: Path) -> Any:
    """What the pickle at `path` holds.

    Raises UsageError naming the file where it is missing, damaged, or asks for anything to be
    imported (an own class, a NumPy number, a function to call), of which nothing is run; and where
    it is longer, or has more tuples, than can be read safely.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        _check_size(data)
        return _Plain(io.BytesIO(data)).load()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}; {RULE}") from error
    except Exception as error:  # Damaged bytes make the unpickler raise nearly anything.
        raise UsageError(f"{path}: damaged, not a pickle ({type(error).__name__})") from error
