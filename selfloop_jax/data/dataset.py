"""The real images of a study: four sets, made of a source by colours and an initial bias."""

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from selfloop_jax.config import Config, DataConfig, refuse
from selfloop_jax.data import bias, colorize, sources
from selfloop_jax.data.images import UNKNOWN, Images, concatenate
from selfloop_jax.data.sources import Source
from selfloop_jax.errors import UsageError
from selfloop_jax.runtime import rng, store

# In data as they come, a group counts as aligned with its class when it leads by so much.
NATURAL_MARGIN = 0.01


@dataclass(frozen=True)
class Dataset:
    """The real images of a study.

    `validation` and `test` never enter a pool; `reserve` is like `train`; `probe`, where there is
    one, has masks. train_unbiased: the training images before subsampling, what an annotator learns
    from. control_pool: held-out images in all compositions, the reserve and what subsampling left
    out of `train`. aligned_group int32[C]: the group that the initial bias ties to a class, -1
    none. groups_of_class bool[C,G]: the groups that a class has. nested: each group lies within one
    class. colours: where colour is the group, what reads it from pixels. provenance: what source
    and subsampling say of themselves.
    """

    train: Images
    validation: Images
    reserve: Images
    test: Images
    classes: tuple[str, ...]
    groups: tuple[str, ...]
    train_unbiased: Images
    control_pool: Images
    aligned_group: np.ndarray
    groups_of_class: np.ndarray
    nested: bool = False
    colours: colorize.Colours | None = None
    probe: Images | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def splits(self) -> dict[str, Images]:
        """The four sets, and the probe where there is one, by name."""
        names = ("train", "validation", "reserve", "test", "probe")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @cached_property
    def pixel_rms(self) -> float:
        """Root mean square of the training pixels in [-1, 1], to four digits."""
        # Counts of whole numbers, and few digits: the same on every machine.
        counts = np.zeros(256, np.int64)
        for image in self.train.pixels:
            counts += np.bincount(image.ravel(), minlength=256)
        squares = (np.arange(256) / 127.5 - 1) ** 2
        return round(math.sqrt(counts @ squares / counts.sum()), 4)

    def describe(self, source: str) -> dict[str, Any]:
        """What a record says of it; `digest` is that of all that is in the images."""
        described: dict[str, Any] = {
            "source": source,
            "classes": list(self.classes),
            "groups": list(self.groups),
            "nested": self.nested,
            "aligned_group": self.aligned_group.tolist(),
        }
        if self.nested:
            rows = [np.flatnonzero(row).tolist() for row in self.groups_of_class]
            described["groups_of_class"] = rows
        described["sizes"] = {name: len(images) for name, images in self.splits.items()}
        described["pixel_rms"] = self.pixel_rms
        described["digest"] = self._digest(self.splits | {"train_unbiased": self.train_unbiased})
        # The same for all seeds and biases: it says whether runs have the same source.
        described["test_digest"] = self._digest({"test": self.test})
        return described | self.provenance

    def _digest(self, splits: dict[str, Images]) -> str:
        """sha256 of all pixels, labels, groups, ids and masks of some sets.

        An annotator learns from the images before subsampling, so their bits count as well.
        """
        arrays = {}
        for split, images in splits.items():
            for name in ("pixels", "label", "group", "id", "mask"):
                if name in images.columns:
                    arrays[f"{split}/{name}"] = images.columns[name]
        return store.digest_arrays(arrays)


def check(config: Config) -> None:
    """Raises UsageError for an unknown source, and colours its images cannot have or lack."""
    section = config.data
    sources.check(section)
    coloured = section.colorize != "none"
    # Gray images come without groups, so there is no natural share to keep.
    if coloured and section.bias.kind == "natural":
        refuse(
            "data.bias.kind",
            "natural",
            "another kind where data.colorize gives images their groups",
        )
    # The oracle reads a colour that `colorize` has painted.
    if not coloured and config.loop.group_source == "oracle":
        refuse("loop.group_source", "oracle", "annotator | requested where data.colorize = none")


def load(section: DataConfig, seed: int, prepare: bool = True) -> Dataset:
    """The real images that section `data` asks for, with the bias of one seed.

    Raises UsageError where they do not fit the section, and `sources.Missing` where they are not on
    this machine, or with `prepare` false not ready to be read.
    """
    return make(sources.load(section, prepare), section, seed)


def make(source: Source, section: DataConfig, seed: int) -> Dataset:
    """The data set of one seed: colours and subsampling follow it, the splits do not.

    Colours follow the run's seed, and the choice of training images `data.split_seed`.
    """
    split_seed = seed if section.split_seed < 0 else section.split_seed
    if section.colorize != "none":
        return _coloured(source, section, seed, split_seed)
    return _subsampled(source if source.groups else _one_group(source), section, split_seed)


def _one_group(source: Source) -> Source:
    """Without groups all images are of one: the loop runs, gaps are undefined."""

    def grouped(images: Images) -> Images:
        return replace(images, group=np.zeros(len(images), np.int32))

    return replace(
        source,
        groups=("all",),
        train=grouped(source.train),
        validation=grouped(source.validation),
        reserve=grouped(source.reserve),
        test=grouped(source.test),
        probe=None if source.probe is None else grouped(source.probe),
    )


def _coloured(source: Source, section: DataConfig, seed: int, split_seed: int) -> Dataset:
    """Coloured images: the bias is in the colours, held-out images come in every colour."""
    # Images whose channels differ have colours of their own, which paint would replace.
    gray = not any((x.pixels != x.pixels[..., :1]).any() for x in (source.train, source.test))
    if source.groups or not gray:
        raise UsageError(
            f"data.colorize = {section.colorize}: must be none for "
            f"data.source = {section.source}, whose images have groups or colours of their own"
        )
    colours = colorize.MODES[section.colorize]
    groups_of_class = np.ones((len(source.classes), len(colours.groups)), bool)
    table = bias.group_table(section.bias, groups_of_class)
    # One path for all sets: an image has one colour, in `train` as in `train_unbiased`.
    key_path: rng.KeyPath = (seed, "data", "colour")
    kept = source.train
    if section.train_size:
        names = (source.classes, ())
        kept = bias.subsample(source.train, None, section.train_size, split_seed, names)
    return Dataset(
        train=colorize.colorize(kept, table, colours, key_path),
        validation=colorize.every_colour(source.validation, colours),
        reserve=colorize.colorize(source.reserve, table, colours, key_path),
        test=colorize.every_colour(source.test, colours),
        classes=source.classes,
        groups=colours.groups,
        train_unbiased=colorize.colorize(source.train, table, colours, key_path),
        control_pool=colorize.every_colour(_held_out(source, kept), colours),
        aligned_group=bias.aligned_groups(table),
        groups_of_class=groups_of_class,
        colours=colours,
        provenance=source.provenance | {"before_subsampling": {"train": len(source.train)}},
    )


def _subsampled(source: Source, section: DataConfig, split_seed: int) -> Dataset:
    """Images with groups of their own: the bias is put in by leaving images out.

    Out of train and reserve alone, that is.
    """
    counts = source.train.counts(len(source.classes), len(source.groups))
    # Crossed, a class may have every group, whether or not an image shows it.
    groups_of_class = counts > 0 if source.nested else np.ones_like(counts, bool)
    names = (source.classes, source.groups)
    # These two alone lose images: validation and test must not depend on bias or seed.
    train = source.train
    reserve = source.reserve
    if section.bias.kind == "natural":
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        aligned = bias.aligned_groups(shares, NATURAL_MARGIN)
        if section.train_size:
            train = bias.subsample(train, None, section.train_size, split_seed, names)
    else:
        _check_known_groups(section, source, counts)
        table = bias.group_table(section.bias, groups_of_class)
        aligned = bias.aligned_groups(table)
        train = bias.subsample(train, table, section.train_size, split_seed, names)
        # A reserve that lacks a subgroup becomes empty: only pool.rule = fresh would miss it.
        enough = bias.largest(reserve, table)
        empty = reserve.take(slice(0))
        reserve = bias.subsample(reserve, table, 0, split_seed, names) if enough else empty
    before = {"train": len(source.train), "reserve": len(source.reserve)}
    return Dataset(
        train=train,
        validation=source.validation,
        reserve=reserve,
        test=source.test,
        classes=source.classes,
        groups=source.groups,
        train_unbiased=source.train,
        control_pool=_held_out(source, train),
        # A class with one group has nothing that this group could be compared with.
        aligned_group=np.where(groups_of_class.sum(axis=1) > 1, aligned, np.int32(UNKNOWN)),
        groups_of_class=groups_of_class,
        nested=source.nested,
        probe=source.probe,
        provenance=source.provenance | {"before_subsampling": before},
    )


def _check_known_groups(section: DataConfig, source: Source, counts: np.ndarray) -> None:
    """Raises UsageError for a class without a training image of known group."""
    for c in np.flatnonzero(counts.sum(axis=1) == 0):
        raise UsageError(
            f"data.bias.kind = {section.bias.kind}: must be natural, because class "
            f"{source.classes[c]} has no training image whose group is known"
        )


def _held_out(source: Source, train: Images) -> Images:
    """The reserve, and the training images that subsampling left out: no arm trains on them."""
    # By id, as a subset keeps its images' ids and no places in the larger set.
    left_out = source.train.take(~np.isin(source.train.id, train.id))
    return concatenate([source.reserve, left_out])
