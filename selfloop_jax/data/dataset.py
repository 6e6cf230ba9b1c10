"""A study's real images: from a source, by way of splits, colours and the initial bias, to four sets."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from selfloop_jax.config import Config, DataConfig, check_choice, refuse
from selfloop_jax.data import bias, colorize
from selfloop_jax.data.images import UNKNOWN, Images, concatenate
from selfloop_jax.data.sources import digits
from selfloop_jax.data.sources.base import TFDS, Outline, Source
from selfloop_jax.data.splits import stratified_order
from selfloop_jax.errors import UsageError
from selfloop_jax.runtime import rng, store

SOURCES = ("digits", "mnist5k", "mnist", "cifar20", "cifar100", "hardimagenet", "folder")


GRAY = ("digits", "mnist5k", "mnist")  # without groups of their own


COLOURED = ("cifar20", "cifar100", "hardimagenet")


# A group counts as aligned with its class in data as they come when it leads by so much.
NATURAL_MARGIN = 0.01


@dataclass(frozen=True)
class Dataset:
    """`validation` and `test` never enter a pool; `reserve` is like `train`; `probe` has masks."""

    train: Images
    validation: Images
    reserve: Images
    test: Images
    classes: tuple[str, ...]
    groups: tuple[str, ...]
    whole: Images  # the training images before subsampling: what an annotator learns from
    candidates: (
        Images  # held-out images in all compositions: reserve and what was left out of `train`
    )
    aligned_group: np.ndarray  # int32[C], the group that the initial bias ties to a class, -1 none
    members: np.ndarray  # bool[C,G], the groups a class has
    nested: bool = False  # whether each group lies within one class
    colours: colorize.Colours | None = None  # where colour is the group: what reads it from pixels
    probe: Images | None = None
    facts: dict[str, Any] = field(
        default_factory=dict
    )  # what source and subsampling say of themselves

    @property
    def splits(self) -> dict[str, Images]:
        """The four sets, and the probe where there is one, by name."""
        names = ("train", "validation", "reserve", "test", "probe")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def describe(self, source: str) -> dict[str, Any]:
        """What a record says of it; `digest` is that of all pixels, labels, groups, ids and masks."""
        return {
            "source": source,
            "classes": list(self.classes),
            "groups": list(self.groups),
            "nested": self.nested,
            "aligned_group": self.aligned_group.tolist(),
            **(
                {"members": [np.flatnonzero(row).tolist() for row in self.members]}
                if self.nested
                else {}
            ),
            "sizes": {name: len(images) for name, images in self.splits.items()},
            "digest": store.digest_arrays(
                {
                    f"{name}/{column}": getattr(images, column)
                    for name, images in (self.splits | {"whole": self.whole}).items()
                    for column in ("pixels", "label", "group", "id", "masks")
                    if getattr(images, column) is not None
                }
            ),
            **self.facts,
        }


def check(config: Config) -> None:
    """Raises UsageError on an unknown source, and on colours that its images cannot have or lack."""
    section = config.data
    source, colorize_as = section.source, section.colorize
    if not source.startswith(TFDS):
        check_choice("data.source", source, (*SOURCES, f"{TFDS}<name>"))
    check_choice("data.colorize", colorize_as, ("none", *colorize.MODES))
    if colorize_as != "none" and source in COLOURED:
        refuse("data.colorize", colorize_as, f"none for data.source = {source}")
    if colorize_as == "none" and source in GRAY:
        modes = " | ".join(colorize.MODES)
        refuse("data.colorize", "none", f"one of {modes} for data.source = {source}")
    if colorize_as != "none" and section.bias.kind == "natural":
        refuse("data.bias.kind", "natural", "another where data.colorize gives images their groups")
    if colorize_as == "none" and config.loop.group_source == "oracle":
        refuse("loop.group_source", "oracle", "annotator | requested where data.colorize = none")


def load(section: DataConfig, seed: int, prepare: bool = True) -> Dataset:
    """The real images that section `data` asks for; splits are fixed, the bias's draws follow `seed`.

    Raises UsageError where they do not fit the section, and `source.Missing` where they are not on
    this machine, or with `prepare` false not ready to be read.
    """
    source = _read(section, prepare)
    _check_groups(source)
    source = _with_splits(source, section, (0, "split", section.source))
    if section.colorize == "none":
        return _subsampled(source if source.groups else _one_group(source), section, seed)
    return _coloured(source, section, seed)


def _read(section: DataConfig, prepare: bool) -> Source:
    """The source as it comes. Imported where needed: a run on digits takes neither Pillow nor TFDS."""
    name = section.source
    if name in digits.SOURCES:
        return digits.load(section, prepare)
    if name == "hardimagenet":
        from selfloop_jax.data.sources import hardimagenet

        return hardimagenet.load(section, prepare)
    if name == "folder":
        from selfloop_jax.data.sources import folder

        return folder.load(section, prepare)
    from selfloop_jax.data.sources import tfds as tfds_source

    if name == "mnist":
        return tfds_source.mnist(section, prepare)
    if name in ("cifar20", "cifar100"):
        return tfds_source.cifar(section, name == "cifar20", prepare)
    return tfds_source.named(section, prepare)


def _check_groups(source: Source) -> None:
    """Raises UsageError for a group to train on that has no test image: nothing could be said of it."""
    for g in np.setdiff1d(source.train.group, source.test.group):
        if g != UNKNOWN:
            raise UsageError(
                f"group {source.groups[g]} has training images but not a single test image"
            )


def _with_splits(source: Source, section: DataConfig, address: rng.KeyPath) -> Source:
    """Sets validation and reserve aside from `train`, every class and group in proportion, where missing."""
    train = source.train
    order = stratified_order(address, train.label * (len(source.groups) + 1) + train.group)
    parts, rest = {}, order
    for name, share in (
        ("validation", section.validation_share),
        ("reserve", section.reserve_share),
    ):
        if getattr(source, name) is None:
            count = round(share * len(train))
            parts[name], rest = train.take(np.sort(rest[:count])), rest[count:]
    return replace(source, train=train.take(np.sort(rest)), **parts)


def _one_group(source: Source) -> Source:
    """Without groups all images are of one: the loop runs, gaps are undefined."""

    def grouped(images: Images | None) -> Images | None:
        return None if images is None else replace(images, group=np.zeros(len(images), np.int32))

    names = ("train", "validation", "reserve", "test", "probe")
    return replace(
        source, groups=("all",), **{name: grouped(getattr(source, name)) for name in names}
    )


def _coloured(source: Source, section: DataConfig, seed: int) -> Dataset:
    """Gray images, coloured: the bias lies in the colours drawn, held-out images come in every colour."""
    if source.groups or any(
        (x.pixels != x.pixels[..., :1]).any() for x in (source.train, source.test)
    ):
        raise UsageError(
            f"data.colorize = {section.colorize}: allowed is none for data.source = {section.source}, "
            "whose images have groups or colours of their own"
        )
    colours = colorize.MODES[section.colorize]
    members = np.ones((len(source.classes), len(colours.groups)), bool)
    table = bias.group_table(section.bias, members)
    address: rng.KeyPath = (seed, "data", "colour")
    whole, kept = colorize.colorize(source.train, table, colours, address), source.train
    if section.train_size:
        kept = bias.subsample(
            source.train,
            None,
            section.train_size,
            (seed, "data", "subsample"),
            (source.classes, ()),
        )
    train = colorize.colorize(kept, table, colours, address)
    return Dataset(
        train=train,
        validation=colorize.every_colour(source.validation, colours),
        reserve=colorize.colorize(source.reserve, table, colours, address),
        test=colorize.every_colour(source.test, colours),
        classes=source.classes,
        groups=colours.groups,
        whole=whole,
        candidates=colorize.every_colour(_held_out(source, kept), colours),
        aligned_group=bias.aligned_groups(table),
        members=members,
        colours=colours,
        facts={**source.facts, "before_subsampling": {"train": len(source.train)}},
    )


def _subsampled(source: Source, section: DataConfig, seed: int) -> Dataset:
    """Images with groups of their own: the bias is put in by leaving images out of train and reserve."""
    classes, groups = len(source.classes), len(source.groups)
    joint = source.train.joint(classes, groups)
    members = joint > 0 if source.nested else np.ones_like(joint, bool)
    natural = section.bias.kind == "natural"
    for c in np.flatnonzero(joint.sum(axis=1) == 0) if not natural else ():
        raise UsageError(
            f"data.bias.kind = {section.bias.kind}: class {source.classes[c]} has no training image of known group; "
            "allowed is natural"
        )
    table = None if natural else bias.group_table(section.bias, members)
    names, address = (source.classes, source.groups), (seed, "data", "subsample")
    train = source.train
    if table is not None or section.train_size:
        train = bias.subsample(train, table, section.train_size, address, names)
    reserve = source.reserve
    if (
        table is not None
    ):  # a reserve that lacks a cell is empty: only pool.rule = fresh would miss it
        enough = bias.largest(reserve, table)
        reserve = (
            bias.subsample(reserve, table, 0, address, names) if enough else reserve.take(slice(0))
        )
    observed = joint / np.maximum(joint.sum(axis=1, keepdims=True), 1)
    aligned = (
        bias.aligned_groups(observed, NATURAL_MARGIN) if natural else bias.aligned_groups(table)
    )
    return Dataset(
        train=train,
        validation=source.validation,
        reserve=reserve,
        test=source.test,
        classes=source.classes,
        groups=source.groups,
        whole=source.train,
        candidates=_held_out(source, train),
        aligned_group=np.where(members.sum(axis=1) > 1, aligned, np.int32(UNKNOWN)),
        members=members,
        nested=source.nested,
        probe=source.probe,
        facts={
            **source.facts,
            "before_subsampling": {"train": len(source.train), "reserve": len(source.reserve)},
        },
    )


def _held_out(source: Source, train: Images) -> Images:
    """Real images that no arm trains on: the whole reserve, and training images that subsampling left out."""
    left_out = source.train.take(~np.isin(source.train.id, train.id))
    return concatenate([source.reserve, left_out])


def outline(section: DataConfig) -> Outline:
    """What can be said before the images of section `data` are on this machine."""
    colours = len(colorize.MODES[section.colorize].groups) if section.colorize != "none" else None
    known = {
        "mnist": Outline(10, colours or 1, 60_000, 10_000),
        "cifar20": Outline(20, 100, 50_000, 10_000),
        "cifar100": Outline(100, 1, 50_000, 10_000),
        "hardimagenet": Outline(15, section.hardimagenet.bands),
    }
    return known.get(section.source, Outline(groups=colours))
