"""The layouts in which people keep MNIST and CIFAR-100, all read as the same official contents.

MNIST: its four IDX files, gzipped or not, in a folder or in MNIST/raw below it, as torchvision has
them. CIFAR-100: its binary or its Python version, packed as any tar or unpacked. A file counts as
official by what it contains, so that one packed anew is the official one, too.
"""

import gzip
import hashlib
import io
import lzma
import math
import os
import pickle
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from selfloop_jax.data.sources import archives
from selfloop_jax.errors import UsageError

Files = dict[str, bytes]  # contents by the names that the official version gives its files
Load = Callable[[], Files]
CIFAR_RECORD = 2 + 3 * 32 * 32
NAME_LISTS = {
    "label": (100, "fine_label_names.txt"),
    "coarse_label": (20, "coarse_label_names.txt"),
}


class Unfit(Exception):
    """What is wrong with a file: its name, then the fault."""


@dataclass(frozen=True)
class Published:
    """A data set as its makers publish it, and as people keep it.

    archives: names of the published archives. sha256: of the official contents of each file.
    find(folder): paths of the first layout that is there, and what loads the files of each; Unfit
    where there is none or a file is damaged. unpack(path, archive): the files in one archive.
    parse(files): columns, see `mnist_columns` and `cifar100_columns`; Unfit where the files are not
    of the format. layouts: what a folder may have, for messages.
    """

    archives: tuple[str, ...]
    sha256: Mapping[str, str]
    find: Callable[[Path], Iterator[tuple[Path, Load]]]
    unpack: Callable[[Path, str], Files]
    parse: Callable[[Files], Any]
    layouts: str


def read(folder: str, published: Published, table: archives.Table) -> Any:
    """The columns of the data set in `data.archive_dir`, one of its layouts.

    Raises UsageError where none is there, a file is damaged, or the contents are neither the
    official ones nor in an archive of `table`.
    """
    base = Path(os.path.expanduser(folder))
    files: Files = {}
    try:
        for path, load in published.find(base):
            where = str(path.relative_to(base))
            try:
                files |= _checked(where, path, load, published, table)
            except OSError as error:
                raise Unfit(f"{where} cannot be read ({error.strerror})") from error
        return published.parse(files)
    except Unfit as error:
        raise UsageError(
            f"data.archive_dir = {folder}: {error}; the folder must have {published.layouts}"
        ) from error


def _checked(
    where: str, path: Path, load: Load, published: Published, table: archives.Table
) -> Files:
    """The files that `load` gives; Unfit where they are not those of the data set."""
    listed = {archive.name: archive for archive in table.archives}.get(path.name)
    fault = archives.fault(path, listed) if listed else "is not in data.tfds.checksums"
    # A table of the user's own says what its archives are, and nothing of the files in them.
    if fault and table.stand_in:
        raise Unfit(f"{where} {fault}")
    files = load()
    if fault:
        _check_contents(where, files, published.sha256)
    return files


def _check_contents(where: str, files: Files, sha256: Mapping[str, str]) -> None:
    for name, data in files.items():
        # A list of names is compared by its words: versions differ in how they end a line.
        words = "\n".join(data.decode("ascii", "replace").split()).encode()
        found = hashlib.sha256(words if name.endswith(".txt") else data).hexdigest()
        if found != sha256[name]:
            what = "" if name == PurePosixPath(where).name.removesuffix(".gz") else f" {name}"
            raise Unfit(
                f"{where} is not official:{what} has sha256 {found} instead of {sha256[name]}"
            )


def _first(base: Path, names: Sequence[str]) -> Path | None:
    """The first of the named files that is there."""
    return next((base / name for name in names if (base / name).is_file()), None)


# MNIST.


def _find_mnist(base: Path) -> Iterator[tuple[Path, Load]]:
    for archive in MNIST.archives:
        plain = archive.removesuffix(".gz")
        # Kaggle has train-images.idx3-ubyte.
        names = [archive, plain, plain.replace("-idx", ".idx")]
        path = _first(base, [place + name for place in ("", "MNIST/raw/") for name in names])
        if path is None:
            raise Unfit(f"{archive} is missing")
        yield path, partial(_unpack_mnist, path, archive)


def _unpack_mnist(path: Path, archive: str) -> Files:
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise Unfit(f"{path.name} is not a whole gzip file ({error})") from error
    return {archive.removesuffix(".gz"): data}


def mnist_columns(files: Files) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(image uint8[N,28,28], label uint8[N]) of train and test; Unfit where they do not fit."""
    columns = {}
    for split, prefix in {"train": "train", "test": "t10k"}.items():
        labels = f"{prefix}-labels-idx1-ubyte"
        image = _idx(files, f"{prefix}-images-idx3-ubyte", (28, 28))
        label = _idx(files, labels, ())
        if len(image) != len(label) or label.max(initial=0) > 9:
            raise Unfit(f"{labels}: its {len(label)} labels do not fit {len(image)} digits")
        columns[split] = (image, label)
    return columns


def _idx(files: Files, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """uint8[N,*shape] of an IDX file.

    Big-endian words: 0x800 (bytes) plus the number of dimensions, and each dimension.
    """
    data = files[name]
    # Two words, the magic number and N, then one word per dimension of an example.
    start = 8 + 4 * len(shape)
    header = struct.unpack_from(f">{start // 4}I", data.ljust(start, b"\0"))
    if header[0] != 0x801 + len(shape) or header[2:] != shape:
        raise Unfit(f"{name} is not an IDX file of bytes of shape {('N', *shape)}")
    if len(data) != start + math.prod(header[1:]):
        raise Unfit(f"{name}: {len(data)} bytes do not fit its shape {header[1:]}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(header[1:])


MNIST = Published(
    archives=(
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    ),
    sha256={
        "train-images-idx3-ubyte": (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
        ),
        "train-labels-idx1-ubyte": (
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
        ),
        "t10k-images-idx3-ubyte": (
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
        ),
        "t10k-labels-idx1-ubyte": (
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
        ),
    },
    find=_find_mnist,
    unpack=_unpack_mnist,
    parse=mnist_columns,
    layouts="train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
    "t10k-labels-idx1-ubyte, gzipped or not, in it or in MNIST/raw",
)


# CIFAR-100.


# The files of each version; the first one's name tells which version a folder has.
VERSIONS = {
    "binary": ("train.bin", "test.bin", "fine_label_names.txt", "coarse_label_names.txt"),
    "python": ("train", "test", "meta"),
}
TAR_ENDINGS = (".tar.gz", ".tgz", ".tar", ".tar.bz2", ".tar.xz")


def _find_cifar100(base: Path) -> Iterator[tuple[Path, Load]]:
    (archive,) = CIFAR100.archives
    packed = _first(base, [f"cifar-100-{v}{end}" for v in VERSIONS for end in TAR_ENDINGS])
    if packed is not None:
        yield packed, partial(_unpack_cifar100, packed, archive)
        return
    for version, names in VERSIONS.items():
        # The folder itself may be the unpacked one.
        path = _first(base, [f"cifar-100-{version}/{names[0]}", names[0]])
        if path is not None:
            yield path, partial(_unpacked_cifar100, path.parent, names)
            return
    raise Unfit(f"{archive} is missing")


def _unpack_cifar100(path: Path, _: str) -> Files:
    """The files of the binary version, in a tar of that or of the Python version."""
    wanted = {name for names in VERSIONS.values() for name in names}
    found = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                file = archive.extractfile(member) if name in wanted else None
                # A member that is no file, say a folder, is None.
                if file is not None:
                    found[name] = file.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        cause = str(error).splitlines()[0]  # one line for each kind of compression that it tried
        raise Unfit(f"{path.name} is not a whole tar ({cause})") from error
    return _binary_version(path.name, found)


def _unpacked_cifar100(folder: Path, names: Sequence[str]) -> Files:
    there = [name for name in names if (folder / name).is_file()]
    return _binary_version(folder.name, {name: (folder / name).read_bytes() for name in there})


def _binary_version(where: str, found: Files) -> Files:
    """The files of the binary version, made from those of the Python version if need be."""
    version = "python" if VERSIONS["python"][0] in found else "binary"
    for name in VERSIONS[version]:
        if name not in found:
            raise Unfit(f"{where} has no {name}")
    return found if version == "binary" else _from_pickles(where, found)


# What pickles of arrays ask for, by the names of NumPy 1 and 2. Looked up here, never imported.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads arrays and Python's own types, and refuses whatever else a pickle asks for."""

    def find_class(self, module: str, name: str) -> Any:
        """One of ALLOWED."""
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return ALLOWED[module, name]


def _from_pickles(where: str, found: Files) -> Files:
    """The records and lists of names of the binary version, from train, test and meta."""
    files: Files = {}
    try:
        # Python 2 wrote them, whose text is latin1 to the arrays of bytes.
        values = {
            name: _ArrayUnpickler(io.BytesIO(found[name]), encoding="latin1").load()
            for name in VERSIONS["python"]
        }
        for split in ("train", "test"):
            labels = [values[split][f"{level}_labels"] for level in ("coarse", "fine")]
            columns = np.array(labels, np.uint8).T
            files[f"{split}.bin"] = np.hstack([columns, values[split]["data"]]).tobytes()
        for level in ("fine", "coarse"):
            words = values["meta"][f"{level}_label_names"]
            files[f"{level}_label_names.txt"] = "\n".join(words).encode()
    except Exception as error:  # A pickle can raise whatever its opcodes lead to.
        cause = " ".join(str(error).split())
        raise Unfit(f"{where} is not CIFAR-100's Python version ({cause})") from error
    return files


def cifar100_columns(files: Files) -> tuple[dict[str, list[str]], dict[str, np.ndarray]]:
    """Names of the classes by feature, and records uint8[N,2+3072] by split.

    A record is the coarse label, the fine label and the planes of red, green and blue. Raises Unfit
    where the files hold anything else.
    """
    words = {feature: files[name].decode().split() for feature, (_, name) in NAME_LISTS.items()}
    for feature, (count, name) in NAME_LISTS.items():
        if len(set(words[feature])) != count:
            raise Unfit(f"{name} has {len(set(words[feature]))} names, not {count}")
    return words, {split: _records(f"{split}.bin", files) for split in ("train", "test")}


def _records(name: str, files: Files) -> np.ndarray:
    data = files[name]
    if len(data) % CIFAR_RECORD:
        raise Unfit(f"{name}: {len(data)} bytes are not whole records of {CIFAR_RECORD}")
    records = np.frombuffer(data, np.uint8).reshape(-1, CIFAR_RECORD)
    if records[:, 0].max(initial=0) >= 20 or records[:, 1].max(initial=0) >= 100:
        raise Unfit(f"{name}: a label is out of range")
    return records


CIFAR100 = Published(
    archives=("cifar-100-binary.tar.gz",),
    sha256={
        "train.bin": "f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29",
        "test.bin": "d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a",
        "fine_label_names.txt": "fbe8ad23bbaf24969898a386833b49c3aaf6ad1119d43f7b41cdea1b3416d578",
        "coarse_label_names.txt": (
            "9b48b836d98e8782057bb6a4da0d4030fe828e2b156b81fa835fda91b5276930"
        ),
    },
    find=_find_cifar100,
    unpack=_unpack_cifar100,
    parse=cifar100_columns,
    layouts="cifar-100-binary.tar.gz, cifar-100-python.tar.gz, or one of them unpacked",
)
