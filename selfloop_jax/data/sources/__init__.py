"""Sources of real images: one row each in the table SOURCES.

To add one, write a function that returns a `Source` and give it a row, in a config file of your own
if you like:

    def load(section, prepare):
        train, test = ...  # Images with ids that differ
        return Source(**four_splits(section, train, test), classes=("cat", "dog"))

    SOURCES["pets"] = SourceEntry(load)

Sources that need packages of their own (Pillow, TFDS) are imported when they are loaded: a run on
digits does without.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from selfloop_jax.config import BiasConfig, DataConfig, check_choice, refuse
from selfloop_jax.config.fields import leaves
from selfloop_jax.data import colorize
from selfloop_jax.data.images import UNKNOWN
from selfloop_jax.data.sources import digits
from selfloop_jax.data.sources.base import TFDS, Missing, Outline, Source, four_splits
from selfloop_jax.errors import UsageError

__all__ = ["SOURCES", "Missing", "Outline", "Source", "SourceEntry", "four_splits"]


def _colours(section: DataConfig) -> int | None:
    """Number of colours that images get, None where they keep their own."""
    if section.colorize == "none":
        return None
    return len(colorize.MODES[section.colorize].groups)


def _by_the_images(section: DataConfig) -> Outline:
    """What is known where all else is read from the images."""
    return Outline(groups=_colours(section))


@dataclass(frozen=True)
class SourceEntry:
    """A row of SOURCES.

    load(section, prepare): raises Missing where the images are not on this machine or, without
    `prepare`, not ready to be read. outline(section): what is known all the same. gray: its images
    have no groups and must be coloured. in_colour: they cannot be coloured. reads: the fields of
    READ_BY_SOME that it reads, by how their names begin. fixed_splits: it does not read SHARES,
    because its splits are fixed for good.
    """

    load: Callable[[DataConfig, bool], Source]
    outline: Callable[[DataConfig], Outline] = _by_the_images
    gray: bool = False
    in_colour: bool = False
    reads: tuple[str, ...] = ()
    fixed_splits: bool = False


# Fields of section `data` that some sources read and others do not, by how their names begin.
READ_BY_SOME = (
    *("archive_dir", "on_bad_image", "cache_dir", "folder.", "idx.", "tfds.", "hardimagenet."),
)
OFFICIAL = ("archive_dir", "tfds.dir", "tfds.checksums")
DECODED = ("on_bad_image", "cache_dir")
SHARES = ("validation_share", "reserve_share")


def _mnist(section: DataConfig, prepare: bool) -> Source:
    from selfloop_jax.data.sources import tfds

    return tfds.mnist(section, prepare)


def _cifar20(section: DataConfig, prepare: bool) -> Source:
    from selfloop_jax.data.sources import tfds

    return tfds.cifar(section, True, prepare)


def _cifar100(section: DataConfig, prepare: bool) -> Source:
    from selfloop_jax.data.sources import tfds

    return tfds.cifar(section, False, prepare)


def _hardimagenet(section: DataConfig, prepare: bool) -> Source:
    from selfloop_jax.data.sources import hardimagenet

    return hardimagenet.load(section, prepare)


def _folder(section: DataConfig, prepare: bool) -> Source:
    from selfloop_jax.data.sources import folder

    return folder.load(section, prepare)


def _parquet(section: DataConfig, prepare: bool) -> Source:
    from selfloop_jax.data.sources import shards

    return shards.parquet(section, prepare)


def _webdataset(section: DataConfig, prepare: bool) -> Source:
    from selfloop_jax.data.sources import shards

    return shards.webdataset(section, prepare)


def _idx(section: DataConfig, prepare: bool) -> Source:
    from selfloop_jax.data.sources import idx

    return idx.load(section, prepare)


def _tfds(section: DataConfig, prepare: bool) -> Source:
    from selfloop_jax.data.sources import tfds

    return tfds.named(section, prepare)


SOURCES: dict[str, SourceEntry] = {
    "digits": SourceEntry(digits.load, gray=True, fixed_splits=True),
    "mnist5k": SourceEntry(digits.load, gray=True, fixed_splits=True),
    "mnist": SourceEntry(
        _mnist,
        lambda section: Outline(10, _colours(section) or 1, 60_000, 10_000),
        gray=True,
        reads=OFFICIAL,
    ),
    "cifar20": SourceEntry(
        _cifar20, lambda _: Outline(20, 100, 50_000, 10_000), in_colour=True, reads=OFFICIAL
    ),
    "cifar100": SourceEntry(
        _cifar100, lambda _: Outline(100, 1, 50_000, 10_000), in_colour=True, reads=OFFICIAL
    ),
    "hardimagenet": SourceEntry(
        _hardimagenet,
        lambda section: Outline(15, section.hardimagenet.bands),
        in_colour=True,
        reads=("hardimagenet.", *DECODED),
    ),
    "folder": SourceEntry(_folder, reads=("folder.", *DECODED)),
    "idx": SourceEntry(_idx, gray=True, reads=("idx.",)),
    "parquet": SourceEntry(_parquet, reads=("folder.", *DECODED)),
    "webdataset": SourceEntry(_webdataset, reads=("folder.", *DECODED)),
    f"{TFDS}<name>": SourceEntry(
        _tfds, reads=("archive_dir", "tfds.dir", "tfds.label_feature", "tfds.group_feature")
    ),
}


def entry(name: str) -> SourceEntry:
    """The row that `data.source` names; UsageError where there is none."""
    if name.startswith(TFDS):
        name = f"{TFDS}<name>"
    check_choice("data.source", name, SOURCES)
    return SOURCES[name]


def check(section: DataConfig) -> None:
    """Raises UsageError for a source that is none, and for colours its images cannot have."""
    row = entry(section.source)
    check_choice("data.colorize", section.colorize, ("none", *colorize.MODES))
    if section.colorize != "none" and row.in_colour:
        refuse("data.colorize", section.colorize, f"none for data.source = {section.source}")
    if section.colorize == "none" and row.gray:
        modes = " | ".join(colorize.MODES)
        refuse("data.colorize", "none", f"one of {modes} for data.source = {section.source}")


def check_given(section: DataConfig) -> None:
    """Raises UsageError for a field that other sources read, and this one does not."""
    source = entry(section.source)
    for name, value, declared in leaves(section):
        unread = name.startswith(READ_BY_SOME) and not name.startswith(source.reads)
        unread |= source.fixed_splits and name in SHARES
        if unread and value != declared.default:
            must = f"{declared.default!r} where data.source = {section.source}"
            refuse(f"data.{name}", value, must)


def load(section: DataConfig, prepare: bool = True) -> Source:
    """The source of section `data`, which many seeds and biases share: the last two are kept.

    Raises UsageError where it does not fit the section, and Missing where the images are not on
    this machine, or with `prepare` false not ready to be read.
    """
    # What `dataset.make` alone reads must not load the images again.
    section = replace(section, bias=BiasConfig(), train_size=0, split_seed=-1, placement="device")
    return _load(entry(section.source), section, prepare)


@lru_cache(maxsize=2)
def _load(row: SourceEntry, section: DataConfig, prepare: bool) -> Source:
    source = row.load(section, prepare)
    _check_source(section, source)
    return source


def outline(section: DataConfig) -> Outline:
    """What can be said before the images of section `data` are on this machine."""
    return entry(section.source).outline(section)


def _check_source(section: DataConfig, source: Source) -> None:
    """Raises UsageError for what would go wrong later, or not be noticed at all."""
    splits = (source.train, source.validation, source.reserve, source.test)
    where = f"data.source = {section.source}"
    ids = np.concatenate([images.id for images in splits])
    # An id keys the colour of an image, and says whether it is a held-out or a trained one.
    if len(np.unique(ids)) < len(ids):
        raise UsageError(f"{where}: two images have the same id; every id must be unique")
    label = np.concatenate([images.label for images in splits])
    # A negative label would count from the end of a table, and a large one fail far from its cause.
    if label.min(initial=0) < 0 or label.max(initial=0) >= len(source.classes):
        raise UsageError(f"{where}: a label is not among the {len(source.classes)} classes")
    for images in splits:
        if images.pixels.shape[1:] != (section.image_size, section.image_size, 3):
            shape = images.pixels.shape[1:]
            raise UsageError(
                f"data.image_size = {section.image_size}: {where} has images of shape {shape}"
            )
    # Of a group without a test image nothing could be said.
    for g in np.setdiff1d(source.train.group, source.test.group):
        if g != UNKNOWN:
            raise UsageError(
                f"group {source.groups[g]} has training images but not a single test image"
            )
