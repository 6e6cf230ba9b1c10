"""Files in MNIST's format, by path: Fashion-MNIST, KMNIST, EMNIST, USPS and their like.

A folder has `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the same two of `t10k` (or
`test`), gzipped or not, perhaps with a prefix. Images are gray or RGB, of any size: the shorter
side is resized to `data.image_size`, and the central square kept. They come without groups.
"""

import gzip
import hashlib
import io
import math
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np

from selfloop_jax.config import DataConfig
from selfloop_jax.data import decode
from selfloop_jax.data.images import REAL, UNKNOWN, Images
from selfloop_jax.data.sources.base import Missing, Source, four_splits
from selfloop_jax.errors import UsageError

FIELD = "data.idx.dir"
SPLITS = {"train": ("train",), "test": ("t10k", "test")}
BYTES = 0x08  # the third byte of the magic number: the type of the numbers
MOST = 8 * 1024**3  # bytes that a file may unpack to


def load(section: DataConfig, prepare: bool) -> Source:
    """The images of `data.idx.dir`; ids count them in their order, training images first.

    Raises Missing where the folder is not there; UsageError, naming the file, where one is missing,
    there are several, or it is damaged or of another format.
    """
    root = Path(os.path.expanduser(section.idx.dir))
    if not section.idx.dir or not root.is_dir():
        raise Missing(FIELD, f"{FIELD} = {section.idx.dir!r}: must be the folder of IDX files")
    digests: dict[str, str] = {}
    images: dict[str, np.ndarray] = {}
    labels: dict[str, np.ndarray] = {}
    for split in SPLITS:
        images[split] = _read(_find(section, root, split, "images"), digests)
        path = _find(section, root, split, "labels")
        labels[split] = _read(path, digests)
        if labels[split].ndim != 1 or len(labels[split]) != len(images[split]):
            raise UsageError(
                f"{path}: has labels of shape {labels[split].shape} for {len(images[split])} images"
            )
        if not len(labels[split]):
            raise UsageError(f"{path}: must have a label or more")
    classes = np.unique(labels["train"])
    parts = {}
    first = 0
    for split in SPLITS:
        unknown = np.setdiff1d(labels[split], classes)
        if len(unknown):
            raise UsageError(
                f"{_find(section, root, split, 'labels')}: label {unknown[0]} must be a class of "
                "train"
            )
        parts[split] = _images(images[split], labels[split], classes, section.image_size, first)
        first += len(images[split])
    return Source(
        **four_splits(section, parts["train"], parts["test"]),
        classes=tuple(map(str, classes.tolist())),
        provenance={"archives": digests, "stand_in": None},
    )


def _find(section: DataConfig, root: Path, split: str, what: str) -> Path:
    """The one file of a split, `images` or `labels`."""
    words = "|".join(SPLITS[split])
    pattern = rf"(.*[-_.])?({words})[-_.]{what}([-_.]idx\d)?([-_.]ubyte)?(\.gz)?"
    prefix = section.idx.prefix
    try:
        every = sorted(os.listdir(root))
    except OSError as error:
        raise UsageError(f"{FIELD} = {section.idx.dir}: {error.strerror}") from error
    found = [
        name
        for name in every
        if name.startswith(prefix) and re.fullmatch(pattern, name.removeprefix(prefix))
    ]
    wanted = f"{prefix}{SPLITS[split][-1] if split == 'train' else 't10k'}-{what}-idx"
    if not found:
        raise UsageError(f"{root}: must have a file {wanted}...-ubyte, gzipped or not")
    if len(found) > 1:
        raise UsageError(
            f"{root}: must have one file of {split} {what}, not {found[0]} and {found[1]}; "
            "data.idx.prefix chooses among data sets"
        )
    return root / found[0]


def _read(path: Path, digests: dict[str, str]) -> np.ndarray:
    """The array of an IDX file, uint8; its sha256 goes into `digests`."""
    try:
        data = path.read_bytes()
        digests[path.name] = hashlib.sha256(data).hexdigest()
        # By the first bytes: browsers unpack a file and leave its name.
        packed = data.startswith(b"\x1f\x8b")
        if packed:
            return _array(path, gzip.GzipFile(fileobj=io.BytesIO(data)))
        return _array(path, io.BytesIO(data))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    except (EOFError, zlib.error, struct.error) as error:
        raise UsageError(f"{path}: damaged: {error}") from error


def _array(path: Path, stream: io.BufferedIOBase) -> np.ndarray:
    """Two zero bytes, the type, the number of dimensions, and each as a big-endian word."""
    zero, kind, dimensions = struct.unpack(">HBB", stream.read(4))
    if zero or kind != BYTES or dimensions not in (1, 3, 4):
        raise UsageError(f"{path}: must be an IDX file of bytes with 1, 3 or 4 dimensions")
    shape = struct.unpack(f">{dimensions}I", stream.read(4 * dimensions))
    size = math.prod(shape)
    if size > MOST or 0 in shape[1:]:
        raise UsageError(f"{path}: damaged: its shape is {shape}")
    content = bytearray()
    # Piece by piece, since a damaged header can ask for more memory than the file fills. One byte
    # more than there should be shows a file that is too long.
    while len(content) <= size:
        piece = stream.read(min(1 << 20, size + 1 - len(content)))
        if not piece:
            break
        content += piece
    if len(content) != size:
        more = "more" if len(content) > size else len(content)
        raise UsageError(f"{path}: damaged: has {more} bytes for the shape {shape}")
    return np.frombuffer(bytes(content), np.uint8).reshape(shape)


def _images(
    pixels: np.ndarray, labels: np.ndarray, classes: np.ndarray, side: int, first: int
) -> Images:
    count = len(pixels)
    if pixels.ndim == 1 or (pixels.ndim == 4 and pixels.shape[-1] not in (1, 3)):
        raise UsageError(f"{FIELD}: images of shape {pixels.shape[1:]} must be gray or RGB")
    shaped = pixels if pixels.ndim == 4 else pixels[..., None]
    squares = np.empty((count, side, side, 3), np.uint8)
    for i, image in enumerate(shaped):
        squares[i] = decode.square(image, side)
    return Images(
        pixels=squares,
        label=np.searchsorted(classes, labels).astype(np.int32),
        group=np.full(count, UNKNOWN, np.int32),
        origin=np.full(count, REAL, np.int32),
        id=np.arange(first, first + count, dtype=np.uint32),
    )
