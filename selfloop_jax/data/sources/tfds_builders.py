"""MNIST and CIFAR-100 as TFDS data sets that are prepared without TensorFlow.

Records are in the order of their archives. TFDS has builders of its own for both, which cannot
prepare without TensorFlow and shuffle their records. Importing this file imports
tensorflow_datasets: import it inside functions.
"""

import dataclasses
import gzip
import math
import struct
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums, download_manager

from selfloop_jax.data.sources.archives import Table
from selfloop_jax.errors import RunError, UsageError

CIFAR_RECORD = 2 + 3 * 32 * 32


@dataclasses.dataclass(eq=False)
class FromTable(tfds.core.BuilderConfig):
    """The variant of a data set that is made from the archives of one table."""

    table: Table = dataclasses.field(kw_only=True)


class _Info(tfds.core.DatasetInfo):
    """What is known of a data set that TFDS itself does not publish."""

    def initialize_from_bucket(self) -> None:
        """Does nothing: TFDS would look in its bucket, and leave a temporary folder behind."""


class _Builder(tfds.core.GeneratorBasedBuilder):
    """What both data sets have in common; `NAMES` are the files of the archives."""

    VERSION = tfds.core.Version("1.0.0")
    NAMES: tuple[str, ...] = ()

    @property
    def url_infos(self):
        """Sizes and checksums that TFDS compares with every archive, also with the user's own."""
        return {
            archive.url: checksums.UrlInfo(
                size=tfds.core.utils.Size(archive.size),
                checksum=archive.sha256,
                filename=archive.name,
            )
            for archive in self.builder_config.table.archives
        }

    def _described(self, **features: Any) -> tfds.core.DatasetInfo:
        table = self.builder_config.table
        return _Info(
            builder=self,
            description="STAND-IN data" if table.stand_in else "The official archives",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(stand_in=table.stand_in, archives=table.digests),
        )

    def _archives(self, dl_manager: tfds.download.DownloadManager) -> list[Path]:
        """Paths of the archives in the order of `NAMES`; RunError where a download failed."""
        archives = self.builder_config.table.archives
        try:
            paths = dl_manager.download([archive.url for archive in archives])
            return [Path(path) for path in paths]
        except (
            OSError,
            tfds.download.DownloadError,
            download_manager.NonMatchingChecksumError,
        ) as error:
            raise RunError(
                f"{self.name}: download failed: {' '.join(str(error).split())}; "
                f"data.archive_dir can name a folder that has {', '.join(self.NAMES)}"
            ) from error


class SelfloopMnist(_Builder):
    """MNIST from its IDX files: image uint8[28,28,1], label 0 to 9."""

    NAMES = (
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return self._described(
            image=tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8, encoding="bytes"),
            label=tfds.features.ClassLabel(num_classes=10),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        train, train_label, test, test_label = self._archives(dl_manager)
        # Read before anything is written: a generator's errors reach the user wrapped by TFDS.
        columns = {"train": read_mnist(train, train_label), "test": read_mnist(test, test_label)}
        return {split: self._generate_examples(*pair) for split, pair in columns.items()}

    def _generate_examples(
        self, image: np.ndarray, label: np.ndarray
    ) -> Iterator[tuple[int, dict]]:
        for i in range(len(label)):
            yield i, {"image": image[i, ..., None], "label": int(label[i])}


def read_mnist(images: Path, labels: Path) -> tuple[np.ndarray, np.ndarray]:
    """uint8[N,28,28] and uint8[N] of a pair of IDX files; UsageError where they do not fit."""
    image = _read_idx(images, (28, 28))
    label = _read_idx(labels, ())
    if len(image) != len(label) or label.max(initial=0) > 9:
        raise _unfit(labels, f"its {len(label)} labels do not fit {len(image)} digits")
    return image, label


def _read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """uint8[N,*shape] of a gzipped IDX file.

    Big-endian words: 0x800 (bytes) plus the number of dimensions, and each dimension.
    """
    try:
        data = gzip.decompress(path.read_bytes())
    except (EOFError, OSError, zlib.error) as error:
        raise _unfit(path, f"not a gzip file ({error})") from error
    # Two words, the magic number and N, then one word per dimension of an example.
    start = 8 + 4 * len(shape)
    header = struct.unpack_from(f">{start // 4}I", data.ljust(start, b"\0"))
    if header[0] != 0x801 + len(shape) or header[2:] != shape:
        raise _unfit(path, f"not an IDX file of bytes of shape {('N', *shape)}")
    if len(data) != start + math.prod(header[1:]):
        raise _unfit(path, f"{len(data)} bytes do not fit its shape {header[1:]}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(header[1:])


class SelfloopCifar100(_Builder):
    """CIFAR-100 from its binary version: image uint8[32,32,3], label (of 100), coarse_label."""

    NAMES = ("cifar-100-binary.tar.gz",)

    def _info(self) -> tfds.core.DatasetInfo:
        return self._described(
            image=tfds.features.Tensor(shape=(32, 32, 3), dtype=np.uint8, encoding="bytes"),
            label=tfds.features.ClassLabel(num_classes=100),
            coarse_label=tfds.features.ClassLabel(num_classes=20),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        (path,) = self._archives(dl_manager)
        names, records = read_cifar100(path)
        for feature, words in names.items():
            self.info.features[feature].names = words
        return {split: self._generate_examples(array) for split, array in records.items()}

    def _generate_examples(self, records: np.ndarray) -> Iterator[tuple[int, dict]]:
        for i, record in enumerate(records):
            # Planes of red, green and blue -> [32,32,3].
            image = np.ascontiguousarray(record[2:].reshape(3, 32, 32).transpose(1, 2, 0))
            yield i, {"image": image, "label": int(record[1]), "coarse_label": int(record[0])}


def read_cifar100(path: Path) -> tuple[dict[str, list[str]], dict[str, np.ndarray]]:
    """Names of the classes by feature, and records uint8[N,2+3072] by split.

    Of the gzipped tar. A record is the coarse label, the fine label and the planes of red, green
    and blue. Raises UsageError where the archive holds anything else.
    """
    names = {"label": (100, "fine_label_names.txt"), "coarse_label": (20, "coarse_label_names.txt")}
    files = [*(name for _, name in names.values()), "train.bin", "test.bin"]
    members = dict(
        zip(files, _read_tar(path, [f"cifar-100-binary/{name}" for name in files]), strict=True)
    )
    words = {feature: members[name].decode().split() for feature, (_, name) in names.items()}
    for feature, (count, name) in names.items():
        if len(set(words[feature])) != count:
            raise _unfit(path, f"{name} has {len(set(words[feature]))} names, not {count}")
    return words, {split: _records(path, members[f"{split}.bin"]) for split in ("train", "test")}


def _records(path: Path, data: bytes) -> np.ndarray:
    if len(data) % CIFAR_RECORD:
        raise _unfit(path, f"{len(data)} bytes are not a whole number of records of {CIFAR_RECORD}")
    records = np.frombuffer(data, np.uint8).reshape(-1, CIFAR_RECORD)
    if records[:, 0].max(initial=0) >= 20 or records[:, 1].max(initial=0) >= 100:
        raise _unfit(path, "a label is out of range")
    return records


def _read_tar(path: Path, names: list[str]) -> list[bytes]:
    """The named members of a gzipped tar."""
    try:
        with tarfile.open(path, "r:gz") as archive:
            members = [archive.extractfile(name) for name in names]
            # A member that is no file, say a folder, is None.
            return [member.read() if member else b"" for member in members]
    except KeyError as error:
        raise _unfit(path, str(error.args[0])) from error
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise _unfit(path, f"not a gzipped tar ({error})") from error


def _unfit(path: Path, fault: str) -> UsageError:
    """The error of an archive that is in the table and yet not of the official format.

    Only stand-in data can be that.
    """
    return UsageError(
        f"data.tfds.checksums: {path.name}: {fault}; must be an archive of the official format"
    )
