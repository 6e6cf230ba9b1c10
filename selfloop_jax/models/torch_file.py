"""Files of weights as arrays, without PyTorch and without running what a file asks for.

A `.pth` of PyTorch 1.6 or newer is a zip archive: `data.pkl`, a pickle of a dict whose tensors
refer to storages, and one member `data/<key>` per storage with its raw numbers. An older one, which
many published weights still are, is a sequence: pickles of a magic number, a version, the sizes of
types, the dict, and the keys of its storages; then of each key the length and the raw numbers.
"""

import io
import math
import mmap
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import ml_dtypes
import numpy as np
from safetensors import safe_open

from selfloop_jax.data.sources.pickles import check_opcodes
from selfloop_jax.errors import UsageError

SUFFIXES = (".safetensors", ".pth", ".pt")


STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    # Whole numbers are read to be refused by the name of their tensor.
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


# Parts of the imports of a file whose tensors are kept in 8 bits.
EIGHT_BITS = ("_rebuild_qtensor", "QInt8", "QUInt8", "QInt32", "Float8", "float8", "bitsandbytes")


REDUCED = "a type of few bits that means nothing without its scale; must be floating point"


Storage = tuple[np.dtype, Any]  # any buffer


Fetch = Callable[[str, int, int], Any]  # (key, count, bytes of a number) of a storage -> its buffer


MAX_TUPLES = 200_000  # some for each tensor, of tens of thousands of tensors


MOST_REPEATED = 2**24  # bytes


MAGIC = 0x1950A86A20F9469CFC6C  # with which a file of PyTorch before 1.6 begins


# Where training scripts keep the weights inside a checkpoint; of several the first is taken.
WRAPPERS = (
    *("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network"),
    *("weights", "params", "state_dict_ema", "model_ema", "ema_state_dict", "ema"),
)


@dataclass(frozen=True)
class Read:
    """The tensors of a file by name, and what was opened to find them.

    opened: the keys of the dicts that they lay in, outermost first; left: other keys beside those
    under which there are tensors too.
    """

    tensors: dict[str, np.ndarray]
    opened: tuple[str, ...]
    left: tuple[str, ...]


def read(file: str, field: str) -> Read:
    """Tensors by name from a `.safetensors` or `.pth` file, in the types it stores.

    They may be read-only. A checkpoint that keeps its weights under a key such as `state_dict` is
    opened. Raises UsageError, naming the config's `field`, where the file is missing, damaged, of
    another format, or wants to import anything but tensors.
    """
    path = Path(file).expanduser()
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{field} = {file}: must be a file ending in {' | '.join(SUFFIXES)}")
    try:
        # safetensors holds numbers alone; a .pth is a pickle, which could run code.
        found = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
        return _state_dict(found)
    except FileNotFoundError:
        raise UsageError(f"{field} = {file}: no such file") from None
    except UsageError as error:
        raise UsageError(f"{field} = {file}: {error}") from None
    except Exception as error:  # Damaged bytes make the readers raise nearly anything.
        raise UsageError(
            f"{field} = {file}: damaged or unreadable ({type(error).__name__})"
        ) from error


def _state_dict(found: Any) -> Read:
    """The dict of tensors inside a checkpoint."""
    opened: list[str] = []
    left: list[str] = []
    while isinstance(found, dict):
        wrappers = [key for key in WRAPPERS if isinstance(found.get(key), dict)]
        if not wrappers:
            break
        others = [key for key in found if key != wrappers[0] and _has_tensors(found[key])]
        left += [str(key) for key in others]
        opened.append(wrappers[0])
        found = found[wrappers[0]]
    if not isinstance(found, dict) or not found:
        raise UsageError(
            "holds no named tensors; must be what torch.save(model.state_dict(), ...) writes"
        )
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray):
            raise UsageError(
                f"{name!r:.60} is not a named tensor; must be a dict of names and tensors"
            )
    return Read(dict(found), tuple(opened), tuple(left))


def _has_tensors(found: Any) -> bool:
    """Whether there are tensors by name: the state of an optimizer has them by number."""
    if not isinstance(found, dict):
        return False
    named = (value for key, value in found.items() if isinstance(key, str))
    return any(isinstance(value, np.ndarray) or _has_tensors(value) for value in named)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file; UsageError for a type that NumPy has not."""
    with safe_open(path, "numpy") as file:
        # Types are in the header; reading a tensor of 8-bit floats would fail without its name.
        for name in file.keys():  # noqa: SIM118 - it is no dict
            kind = file.get_slice(name).get_dtype()
            if kind.startswith(("F8_", "F6_", "F4")):
                raise UsageError(f"{name} is {kind}, {REDUCED}")
        return dict(file.get_tensors())


def _read_torch(path: Path) -> Any:
    """What `torch.save` wrote, tensors as arrays."""
    with open(path, "rb") as file:
        # Checked first, since zipfile would only say that this is no zip file.
        if file.read(1) == b"\x80":  # a bare pickle
            file.seek(0)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                return _read_sequence(cast("IO[bytes]", mapped), len(mapped))
    with zipfile.ZipFile(path) as archive:
        # Not exactly one gives a ValueError, which `read` reports as damage.
        (pickled,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        root = pickled.removesuffix("data.pkl")
        # Older versions of PyTorch do not write this member.
        order = f"{root}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise UsageError("its numbers are big-endian; must be little-endian")

        def fetch(key: str, count: int, width: int) -> bytes:
            member = f"{root}data/{key}"
            # Before it is unpacked: a few bytes can unpack to gigabytes.
            if archive.getinfo(member).file_size != count * width:
                raise ValueError("the length of a storage is not the one in the pickle")
            return archive.read(member)

        # Read to its end, where its checksum is compared, before anything in it is believed.
        data = archive.read(pickled)
        check_opcodes(data, len(data), MAX_TUPLES)
        return _Unpickler(io.BytesIO(data), fetch).load()


def _read_sequence(file: IO[bytes], size: int) -> Any:
    """What `torch.save` wrote before PyTorch 1.6; `file` reads no further than its `size` bytes."""
    storages: dict[str, tuple[int, np.ndarray]] = {}

    def fetch(key: str, count: int, width: int) -> np.ndarray:
        # A damaged length must not ask for more memory than the file can fill.
        if not 0 <= count * width <= size:
            raise ValueError("a storage is longer than the file")
        if key in storages:
            raise ValueError("a storage has numbers of two types")
        # The numbers follow the pickle: tensors are views of a buffer that is filled below.
        storages[key] = count, np.zeros(count * width, np.uint8)
        return storages[key][1]

    def load() -> Any:
        start = file.tell()
        check_opcodes(file, size, MAX_TUPLES)
        file.seek(start)
        return _Unpickler(file, fetch).load()

    if load() != MAGIC:
        raise UsageError("a pickle, but not one of torch.save; must be a file of torch.save")
    load()  # the version of the format: there has been one
    if not load()["little_endian"]:
        raise UsageError("its numbers are big-endian; must be little-endian")
    found = load()
    order = load()
    # A storage that does not follow would stay zero.
    if set(order) != set(storages):
        raise ValueError("other storages follow than the pickle names")
    for key in order:
        count, data = storages[key]
        stated = int.from_bytes(file.read(8), "little")
        stored = np.frombuffer(file.read(len(data)), np.uint8)
        if stated != count or len(stored) != len(data):
            raise ValueError("the length of a storage is not the one in the pickle")
        data[:] = stored
    return found


class _Unpickler(pickle.Unpickler):
    """An unpickler that knows dicts and tensors, and refuses to import anything else."""

    def __init__(self, file: Any, fetch: Fetch):
        super().__init__(file)
        self.fetch = fetch
        self.storages: dict[tuple[str, str], Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """What stands for an import; none runs code of the file's choice."""
        # A storage class stays a name, by which `persistent_load` finds the dtype.
        if module == "torch" and name in STORAGES:
            return name
        known = {
            "collections.OrderedDict": OrderedDict,
            "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
            "torch._utils._rebuild_parameter": _rebuild_parameter,
        }
        if f"{module}.{name}" not in known:
            if any(part in f"{module}.{name}" for part in EIGHT_BITS):
                raise UsageError(f"has tensors of {f'{module}.{name}'!r:.100}, {REDUCED}")
            raise UsageError(f"wants to import {f'{module}.{name}'!r:.100}; must hold only tensors")
        return known[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> Storage:
        """The storage of ("storage", type, key, device, length); fetched once, then shared."""
        # Before 1.6 a sixth part follows, of a view into another storage: None in all but the
        # oldest files.
        _, kind, key, _, length, *view = pid
        if any(view):
            raise ValueError("a storage is a view of another one")
        if (key, kind) not in self.storages:
            dtype = np.dtype(STORAGES[kind])
            self.storages[key, kind] = dtype, self.fetch(key, length, dtype.itemsize)
        return self.storages[key, kind]


def _rebuild_tensor(
    storage: Storage, offset: int, size: tuple, stride: tuple, *_: Any
) -> np.ndarray:
    """The view of a storage that is a tensor.

    NumPy raises ValueError where it would reach beyond the storage. What follows in the pickle
    (whether it wants a gradient, hooks) is of no use here.
    """
    dtype, data = storage
    # A tensor that repeats its numbers, of stride 0, can be larger than its storage; a damaged size
    # must not make it fill the memory.
    if math.prod(size) * dtype.itemsize > max(len(data), MOST_REPEATED):
        raise ValueError("a tensor is much larger than its storage")
    # PyTorch counts strides and offset in numbers, NumPy in bytes.
    steps = [step * dtype.itemsize for step in stride]
    return np.ndarray(size, dtype, buffer=data, offset=offset * dtype.itemsize, strides=steps)


def _rebuild_parameter(data: np.ndarray, *_: Any) -> np.ndarray:
    """The tensor inside a parameter."""
    return data
