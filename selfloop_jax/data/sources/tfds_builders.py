"""MNIST and CIFAR-100 as TFDS data sets that are prepared without TensorFlow.

Records are in the order of their archives. TFDS has builders of its own for both, which cannot
prepare without TensorFlow and shuffle their records. Importing this file imports
tensorflow_datasets: import it inside functions.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums, download_manager

from selfloop_jax.data.sources import layouts
from selfloop_jax.data.sources.archives import Table
from selfloop_jax.errors import RunError, UsageError


@dataclasses.dataclass(eq=False)
class FromTable(tfds.core.BuilderConfig):
    """The variant of a data set that is made from the archives of one table.

    columns(): what `data.archive_dir` has, read from any of its layouts; None downloads.
    """

    table: Table = dataclasses.field(kw_only=True)
    columns: Callable[[], Any] | None = dataclasses.field(kw_only=True)


class _Info(tfds.core.DatasetInfo):
    """What is known of a data set that TFDS itself does not publish."""

    def initialize_from_bucket(self) -> None:
        """Does nothing: TFDS would look in its bucket, and leave a temporary folder behind."""


class _Builder(tfds.core.GeneratorBasedBuilder):
    """What both data sets have in common."""

    VERSION = tfds.core.Version("1.0.0")
    PUBLISHED: layouts.Published

    @property
    def url_infos(self):
        """Sizes and checksums that TFDS compares with every archive that it downloads."""
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
            description="STAND-IN data" if table.stand_in else "The official data",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(stand_in=table.stand_in, archives=table.digests),
        )

    def _columns(self, dl_manager: tfds.download.DownloadManager) -> Any:
        """What `PUBLISHED.parse` returns; RunError where a download failed.

        Read before anything is written: a generator's errors reach the user wrapped by TFDS.
        """
        config = self.builder_config
        if config.columns is not None:
            return config.columns()
        archives = config.table.archives
        try:
            paths = dl_manager.download([archive.url for archive in archives])
        except (
            OSError,
            tfds.download.DownloadError,
            download_manager.NonMatchingChecksumError,
        ) as error:
            raise RunError(
                f"{self.name}: download failed: {' '.join(str(error).split())}; "
                f"data.archive_dir can name a folder that has {self.PUBLISHED.layouts}"
            ) from error
        try:
            files: layouts.Files = {}
            for path, archive in zip(paths, archives, strict=True):
                files |= self.PUBLISHED.unpack(Path(path), archive.name)
            return self.PUBLISHED.parse(files)
        except layouts.Unfit as error:
            # Its checksum is right, so the table is that of something else.
            raise UsageError(
                f"data.tfds.checksums: {error}; must be archives of the official format"
            ) from error


class SelfloopMnist(_Builder):
    """MNIST from its IDX files: image uint8[28,28,1], label 0 to 9."""

    PUBLISHED = layouts.MNIST

    def _info(self) -> tfds.core.DatasetInfo:
        return self._described(
            image=tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8, encoding="bytes"),
            label=tfds.features.ClassLabel(num_classes=10),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        columns = self._columns(dl_manager)
        return {split: self._generate_examples(*pair) for split, pair in columns.items()}

    def _generate_examples(
        self, image: np.ndarray, label: np.ndarray
    ) -> Iterator[tuple[int, dict]]:
        for i in range(len(label)):
            yield i, {"image": image[i, ..., None], "label": int(label[i])}


class SelfloopCifar100(_Builder):
    """CIFAR-100 from its binary version: image uint8[32,32,3], label (of 100), coarse_label."""

    PUBLISHED = layouts.CIFAR100

    def _info(self) -> tfds.core.DatasetInfo:
        return self._described(
            image=tfds.features.Tensor(shape=(32, 32, 3), dtype=np.uint8, encoding="bytes"),
            label=tfds.features.ClassLabel(num_classes=100),
            coarse_label=tfds.features.ClassLabel(num_classes=20),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        names, records = self._columns(dl_manager)
        for feature, words in names.items():
            self.info.features[feature].names = words
        return {split: self._generate_examples(array) for split, array in records.items()}

    def _generate_examples(self, records: np.ndarray) -> Iterator[tuple[int, dict]]:
        for i, record in enumerate(records):
            # Planes of red, green and blue -> [32,32,3].
            image = np.ascontiguousarray(record[2:].reshape(3, 32, 32).transpose(1, 2, 0))
            yield i, {"image": image, "label": int(record[1]), "coarse_label": int(record[0])}
