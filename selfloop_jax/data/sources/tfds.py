"""Sources of TFDS: MNIST, CIFAR-100 at either level of its labels, and any by name."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from selfloop_jax.config import DataConfig
from selfloop_jax.data import decode
from selfloop_jax.data.images import REAL, UNKNOWN, Images, is_nested
from selfloop_jax.data.resize import area_resize, check_side
from selfloop_jax.data.sources import archives, tfds_prepare
from selfloop_jax.data.sources.base import TFDS, Missing, Source, four_splits
from selfloop_jax.errors import RunError, UsageError

SIDES = (8, 16, 32)


# A name as TFDS prints it: data set, config and version. Names with a namespace would be fetched to
# be known.
NAME = r"\w+(/[\w.-]+)?(:\d+\.\d+\.\d+)?"


Columns = dict[str, np.ndarray]


def mnist(section: DataConfig, prepare: bool) -> Source:
    """MNIST's 60,000 and 10,000 digits in the order of its files.

    Gray as three equal channels, without groups. Raises UsageError, `Missing` and RunError as
    `tfds_prepare.official` does.
    """
    check_side(section, SIDES)
    from selfloop_jax.data.sources.tfds_builders import SelfloopMnist

    builder = tfds_prepare.official(SelfloopMnist, section, prepare)
    train, test = _official(builder, section.image_size, ("label",), (60_000, 10_000))
    splits = four_splits(
        section,
        train=_images(train["image"], train["label"]),
        test=_images(test["image"], test["label"], first=len(train["image"])),
    )
    classes = tuple(str(digit) for digit in range(10))
    return Source(**splits, classes=classes, provenance=_provenance(builder))


def cifar(section: DataConfig, coarse: bool, prepare: bool) -> Source:
    """CIFAR-100's 50,000 and 10,000 images in the order of its files; errors as for `mnist`.

    With `coarse` the 20 superclasses are the labels and the 100 classes are groups nested in them.
    Else the classes are the labels, and there are no groups: no class lies in two superclasses, so
    that nothing could be compared.
    """
    check_side(section, SIDES)
    from selfloop_jax.data.sources.tfds_builders import SelfloopCifar100

    builder = tfds_prepare.official(SelfloopCifar100, section, prepare)
    # One file gives both levels; `coarse` decides which of them is the label.
    label, group = ("coarse_label", "label") if coarse else ("label", "")
    # CIFAR-100 reads its label alone; its superclass cannot be a group.
    paths = tuple(filter(None, (label, group)))
    train, test = _official(builder, section.image_size, paths, (50_000, 10_000))
    splits = four_splits(
        section,
        train=_images(train["image"], train[label], train.get(group)),
        test=_images(test["image"], test[label], test.get(group), first=len(train["image"])),
    )
    return Source(
        **splits,
        classes=tuple(builder.info.features[label].names),
        groups=tuple(builder.info.features[group].names) if group else (),
        nested=coarse,
        provenance=_provenance(builder),
    )


def named(section: DataConfig, prepare: bool) -> Source:
    """The TFDS data set of `data.source` = tfds:<name>, its records in their stored order.

    Label and group are the ClassLabel, integer or boolean features at the dotted paths
    `label_feature` and `group_feature`, '' for no groups; of the feature `image` the central square
    is resized. The split `validation` is the test where there is no split `test`. Raises UsageError
    where the data set has no such features or splits, or takes TensorFlow; `Missing` where it is
    not prepared and `prepare` is false; RunError where it is damaged or an image of it cannot be
    used.
    """
    builder = _find(section, prepare)
    names = _two_splits(section, builder.info.splits)
    label_path = section.tfds.label_feature
    group_path = section.tfds.group_feature
    paths = [path for path in (label_path, group_path) if path]
    categories = _categories(section, builder.info.features)
    decoders = _image_decoders(section, builder.info.features)
    parts = [_columns(builder, name, paths, section.image_size, decoders) for name in names]
    classes, labels = _coded(categories[label_path], [part[label_path] for part in parts])
    # TFDS gives -1 to images of a ClassLabel that have none.
    if min(label.min(initial=0) for label in labels) < 0:
        raise UsageError(
            f"data.tfds.label_feature = {label_path}: images of {' or '.join(names)} have no label"
        )
    groups: tuple[str, ...] = ()
    group = [np.full(len(label), UNKNOWN) for label in labels]
    if group_path:
        groups, group = _coded(categories[group_path], [part[group_path] for part in parts])
    train = _images(parts[0]["image"], labels[0], group[0])
    test = _images(parts[1]["image"], labels[1], group[1], first=len(labels[0]))
    counts = train.counts(len(classes), len(groups)) + test.counts(len(classes), len(groups))
    return Source(
        **four_splits(section, train, test),
        classes=classes,
        groups=groups,
        nested=is_nested(counts > 0),
        provenance={
            "tfds": builder.info.full_name,
            "splits": list(names),
            **_provenance(builder),
        },
    )


def _official(
    builder: Any, side: int, paths: Sequence[str], sizes: tuple[int, int]
) -> list[Columns]:
    """Train and test of MNIST or CIFAR-100.

    RunError where what comes from the official archives has not the official sizes.
    """
    # Stand-in archives may hold fewer images.
    found = tuple(builder.info.splits[split].num_examples for split in ("train", "test"))
    if builder.info.metadata["stand_in"] is None and found != sizes:
        raise RunError(
            f"{builder.data_path}: damaged: it has {found} images instead of {sizes}: delete it"
        )
    return [_stored_columns(builder, split, paths, side) for split in ("train", "test")]


def _stored_columns(builder: Any, split: str, paths: Sequence[str], side: int) -> Columns:
    """A split whole, as `_columns` gives it, of images that are stored as their bytes."""
    count = builder.info.splits[split].num_examples
    columns = {path: np.empty(count, np.int64) for path in paths}
    columns["image"] = np.empty((count, side, side, 3), np.uint8)
    shape = builder.info.features["image"].shape
    for first, chunk in tfds_prepare.stored_examples(builder, split):
        rows = slice(first, first + len(chunk))
        joined = b"".join(features["image"].bytes_list.value[0] for features in chunk)
        columns["image"][rows] = _shrunk(np.frombuffer(joined, np.uint8).reshape(-1, *shape), side)
        for path in paths:
            columns[path][rows] = [features[path].int64_list.value[0] for features in chunk]
    return columns


def _provenance(builder: Any) -> dict[str, Any]:
    """What the prepared copy says of the archives that it was made from."""
    metadata = builder.info.metadata or {}
    return {"stand_in": metadata.get("stand_in"), "archives": dict(metadata.get("archives", {}))}


def _images(
    pixels: np.ndarray, label: np.ndarray, group: np.ndarray | None = None, first: int = 0
) -> Images:
    """Real images with ids from `first` on; without `group` all groups are unknown."""
    count = len(pixels)
    return Images(
        pixels=pixels,
        label=label.astype(np.int32),
        group=np.full(count, UNKNOWN, np.int32) if group is None else group.astype(np.int32),
        origin=np.full(count, REAL, np.int32),
        id=np.arange(first, first + count, dtype=np.uint32),
    )


def _columns(
    builder: Any,
    split: str,
    paths: Sequence[str],
    side: int,
    decoders: dict[str, Any] | None,
) -> Columns:
    """A split whole: `image` uint8[N,side,side,3] and int64[N] for each dotted path.

    Raises RunError naming the first record whose image cannot be used.
    """
    count = builder.info.splits[split].num_examples
    columns = {path: np.empty(count, np.int64) for path in paths}
    # Resized chunk by chunk: the whole split at its own size may not fit into memory.
    columns["image"] = np.empty((count, side, side, 3), np.uint8)
    for first, chunk in tfds_prepare.examples(builder, split, decoders):
        rows = slice(first, first + len(chunk))
        try:
            columns["image"][rows] = _squares([example["image"] for example in chunk], side)
        except _BadRecord as error:
            record = f"{split}, record {first + error.place}"
            raise RunError(
                f"{builder.info.full_name}, {record}: {error}; in {builder.data_path}"
            ) from error
        for path in paths:
            columns[path][rows] = [_at(example, path) for example in chunk]
    return columns


def _at(tree: Any, path: str) -> Any:
    for name in path.split("."):
        tree = tree[name]
    return tree


def _shrunk(images: np.ndarray, side: int) -> np.ndarray:
    """uint8[n,side,side,C]: means over equal squares.

    Of uint8[n,H,H,C] up to 32x32, padded to that with zeros.
    """
    n, height, _, channels = images.shape
    # MNIST's 28 pixels become 32, of which 16 and 8 are whole parts.
    margin = (32 - height) // 2
    if margin:
        images = np.pad(images, [(0, 0), (margin, margin), (margin, margin), (0, 0)])
    if side == 32:
        return images
    # [n,32,32,C] -> [n * C,32,32], as `area_resize` takes planes.
    planes = np.moveaxis(images, 3, 1).reshape(n * channels, 32, 32)
    return np.moveaxis(area_resize(planes, side).reshape(n, channels, side, side), 1, 3)


class _BadRecord(Exception):
    """An image that cannot be used; `place` is its place among those that were to be resized."""

    def __init__(self, place: int, reason: str):
        super().__init__(reason)
        self.place = place


def _squares(images: list[bytes | np.ndarray], side: int) -> np.ndarray:
    """uint8[n,side,side,3]: the central squares of encoded images or of uint8[H,W,1 or 3]."""
    squares = np.empty((len(images), side, side, 3), np.uint8)
    for i, image in enumerate(images):
        try:
            squares[i] = decode.square(image, side)
        except decode.BadImage as error:
            raise _BadRecord(i, str(error)) from error
    return squares


def _find(section: DataConfig, prepare: bool) -> Any:
    """A builder whose data set is prepared, from its files alone or by TFDS's own code."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.read_only_builder import builder_from_files

    name = section.source.removeprefix(TFDS)
    data_dir = section.tfds.dir or None
    if not re.fullmatch(NAME, name):
        raise UsageError(
            f"data.source = {section.source}: must be {TFDS}<name>[/<config>][:<version>]"
        )

    def make() -> Any:
        # Files first: a prepared data set needs neither TFDS's code for it nor TensorFlow.
        with contextlib.suppress(tfds.core.DatasetNotFoundError):
            return builder_from_files(name, data_dir=data_dir)
        try:
            return tfds.builder(name, data_dir=data_dir, file_format="array_record")
        except tfds.core.DatasetNotFoundError:
            raise
        except (AssertionError, ValueError) as error:  # No such config or version.
            raise UsageError(
                f"data.source = {section.source}: {tfds_prepare.brief(error)}"
            ) from error

    def check() -> None:
        archives.check_folder(section.archive_dir)

    def write(builder: Any) -> None:
        tfds_prepare.download_and_prepare(builder, section.archive_dir)

    place = tfds_prepare.root(section) / name.partition(":")[0]
    try:
        return tfds_prepare.prepared(make, place, check, write if prepare else None)
    except tfds.core.DatasetNotFoundError as error:
        raise Missing(
            "data.tfds.dir",
            f"data.tfds.dir = {section.tfds.dir}: {section.source} is not prepared there, and TFDS "
            "has no data set of that name to prepare",
        ) from error
    except ImportError as error:
        raise tfds_prepare.needs_tensorflow(name, error) from error


def _two_splits(section: DataConfig, splits: Any) -> tuple[str, str]:
    """Names of the splits that train and test are read from."""
    test = next((split for split in ("test", "validation") if split in splits), None)
    if "train" not in splits or test is None:
        raise UsageError(
            f"data.source = {section.source}: its splits are {', '.join(splits)}; "
            "must have train and either test or validation"
        )
    return "train", test


def _categories(section: DataConfig, features: Any) -> dict[str, Any]:
    """Features that can be a label or a group, by dotted path.

    UsageError where the section names others.
    """
    found = dict(_scalars(features))
    for field in ("label_feature", "group_feature"):
        path = getattr(section.tfds, field)
        if path not in found and (path or field == "label_feature"):
            known = " | ".join(sorted(found))
            raise UsageError(f"data.tfds.{field} = {path}: must be one of {known}")
    return found


def _scalars(features: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted paths of all integer and boolean scalars, ClassLabel among them."""
    import tensorflow_datasets as tfds

    for name, feature in features.items():
        if isinstance(feature, tfds.features.FeaturesDict):
            yield from _scalars(feature, f"{prefix}{name}.")
        elif feature.shape == () and np.dtype(feature.np_dtype).kind in "iub":
            yield prefix + name, feature


def _image_decoders(section: DataConfig, features: Any) -> dict[str, Any] | None:
    """Decoders that leave encoded images to Pillow, whatever else is there.

    UsageError on other images.
    """
    import tensorflow_datasets as tfds

    image: Any = dict(features.items()).get("image")
    fits = image is not None and len(image.shape or ()) == 3 and image.np_dtype == np.uint8
    if not fits or image.shape[-1] not in (1, 3):
        raise UsageError(
            f"data.source = {section.source}: its feature image is {image}; "
            "must be of type uint8 with one or three channels"
        )
    return {"image": tfds.decode.SkipDecoding()} if isinstance(image, tfds.features.Image) else None


def _coded(feature: Any, values: list[np.ndarray]) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Names of a feature's values, and int64[N] indices into them for train and test.

    -1 is unknown. A ClassLabel and a boolean have all their names, of an integer only what occurs.
    """
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.ClassLabel) and feature.num_classes is not None:
        return tuple(feature.names), values
    if feature.np_dtype == np.bool_:
        return ("False", "True"), values
    # Over train and test together, so that both have the same numbers.
    distinct = np.unique(np.concatenate(values))
    return tuple(map(str, distinct)), [np.searchsorted(distinct, value) for value in values]
