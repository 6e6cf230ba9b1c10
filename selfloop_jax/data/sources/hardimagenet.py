"""Hard ImageNet: 15 classes with strong spurious cues, object masks and a ranking.

Moayeri, Singla and Feizi, "Hard ImageNet: Segmentations for Objects with Strong Spurious Cues",
NeurIPS 2022 Datasets and Benchmarks. Nothing is downloaded: ImageNet needs its own licence.

    <images_dir>/{train,val}/<wnid>/<file>.JPEG    a whole ImageNet, of which the rest is not
                                                   touched, or the 15 classes alone
    <masks_dir>/{train,val}/<wnid>_<file>.JPEG     hardImageNet/ of the publication
    <meta_dir>/{hard_imagenet_idx,idx_to_wnid,paths_by_rank}.pkl    hardImageNet/meta/
    <masks_dir>/paths_by_rank2.pkl                 the ranking that the public code reads; used
                                                   where meta/ has none

An image belongs to the data set where it has a mask, or without masks where it has a rank; it is
called by its mask's name. Groups are bands of a class's images. By rank (of the strength of the
spurious cue) only training images have them: the test set is held out of those, and the validation
set, with its masks, is the probe. By the object's area all images have them: the validation set is
the test set as well as the probe.
"""

import contextlib
import fnmatch
import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from selfloop_jax.config import DataConfig
from selfloop_jax.data import cache, decode
from selfloop_jax.data.images import REAL, UNKNOWN, Images
from selfloop_jax.data.sources.base import Missing, Outline, Source, four_splits
from selfloop_jax.data.sources.pickles import load_plain
from selfloop_jax.errors import UsageError
from selfloop_jax.runtime.log import say

# ImageNet index, wnid and name, in the order of the published labels.
CLASSES = (
    (537, "n03218198", "dog sled"),
    (379, "n02492660", "howler monkey"),
    (785, "n04162706", "seat belt"),
    (795, "n04228054", "ski"),
    (837, "n04356056", "sunglasses"),
    (433, "n02807133", "swimming cap"),
    (416, "n02777292", "balance beam"),
    (602, "n03535780", "horizontal bar"),
    (706, "n03899768", "patio"),
    (746, "n04019541", "puck"),
    (655, "n03770439", "miniskirt"),
    (810, "n04264628", "space bar"),
    (890, "n04540053", "volleyball"),
    (981, "n09835506", "baseball player"),
    (801, "n04251144", "snorkel"),
)


NAMES = {wnid: name for _, wnid, name in CLASSES}


SIDES = range(16, 225, 8)


# The marker of images that are not the real ones, in images_dir; its first line says what they are.
STAND_IN = "STAND-IN"


BAD_LISTED = 100


@dataclass(frozen=True)
class Split:
    """One split: names of all its images, and K of them decoded, the groups not yet given.

    kept: names of the K; area float32[K]: the object's share of each, None without masks; bad: the
    others, [path, reason]; converted: as in decode.Decoded.
    """

    listed: list[str]
    images: Images
    kept: list[str]
    area: np.ndarray | None
    bad: list[list[str]]
    converted: dict[str, int]


@dataclass(frozen=True)
class Grouped:
    """The images with their groups: what is trained and tested on, and what has masks.

    provenance: what the record says of the groups.
    """

    train: Images
    test: Images
    probe: Images | None
    groups: tuple[str, ...]
    provenance: dict[str, Any]


def load(section: DataConfig, prepare: bool) -> Source:
    """The source of section `data`; ids are places in the sorted names, train first.

    Raises Missing where a folder is not set or not there, or, unless `prepare`, images are not
    decoded yet; UsageError on what does not fit: a class without images, a bad image under
    on_bad_image = refuse, too few images for the hold-out, a class without an object in any
    validation mask, a damaged pickle.
    """
    _check(section)
    fields = section.hardimagenet
    by_rank = fields.group == "rank"
    wnids, class_order = _classes(fields.meta_dir)
    ranked = _ranking_file(section) if by_rank else None
    ranking = _ranking(ranked, wnids) if ranked else {}
    if fields.masks_dir:
        names = {split: _masked(section, split, wnids) for split in ("train", "val")}
    else:
        # Without masks the ranking alone says which images belong to the data set, and it has train
        # only.
        names = {"train": sorted(itertools.chain(*ranking.values()))}
    outline = _outline(section, names, ranking)

    splits: dict[str, Split] = {}
    first = 0
    for split, listed in names.items():
        splits[split] = _split(section, split, listed, first, wnids, None if prepare else outline)
        first += len(listed)
    if by_rank:
        assert ranked is not None
        grouped = _by_rank(section, splits["train"], splits.get("val"), wnids, ranking, ranked.name)
    else:
        grouped = _by_area(section, splits["train"], splits["val"], wnids)
    return Source(
        **four_splits(section, grouped.train, grouped.test),
        classes=tuple(NAMES[wnid] for wnid in wnids),
        groups=grouped.groups,
        probe=grouped.probe,
        provenance={
            **grouped.provenance,
            "class_order": class_order,
            **_provenance(section, grouped, splits),
        },
    )


def _folder(section: DataConfig, field: str) -> Path:
    return Path(os.path.expanduser(getattr(section.hardimagenet, field)))


def _named(section: DataConfig, field: str) -> str:
    """A field with its value, as errors begin with it."""
    return f"data.hardimagenet.{field} = {getattr(section.hardimagenet, field)}"


@contextlib.contextmanager
def _reading(section: DataConfig, field: str) -> Iterator[None]:
    """UsageError naming the field of a folder that cannot be read."""
    try:
        yield
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        raise UsageError(f"{_named(section, field)}: {where}{error.strerror}") from error


def _outline(
    section: DataConfig, names: dict[str, list[str]], ranking: dict[str, list[str]]
) -> Outline:
    """What is known of the images before they are decoded, as if none were bad."""
    fields = section.hardimagenet
    train = len(names["train"])
    test = len(names.get("val", ()))
    if fields.group == "rank":
        # By rank the test images are held out of the training images.
        test = len(CLASSES) * fields.bands * fields.holdout
        train = len(set(names["train"]) & set(itertools.chain(*ranking.values()))) - test
    return Outline(len(CLASSES), fields.bands, train, test)


def _check(section: DataConfig) -> None:
    """Raises Missing or UsageError for what the section and the folders' names already show."""
    fields = section.hardimagenet
    if not fields.images_dir:
        wanted = "the folder with {train,val}/<wnid>/ of ImageNet or of Hard ImageNet's 15 classes"
        field = "data.hardimagenet.images_dir"
        raise Missing(field, f"{field} = '': must be {wanted}")
    for name in ("images_dir", "masks_dir", "meta_dir"):
        value = getattr(fields, name)
        if value and not os.path.isdir(os.path.expanduser(value)):
            raise Missing(
                f"data.hardimagenet.{name}",
                f"{_named(section, name)}: no such folder",
            )
    if section.image_size not in SIDES:
        rule = f"a multiple of 8 from {SIDES[0]} to {SIDES[-1]} for data.source = hardimagenet"
        raise UsageError(f"data.image_size = {section.image_size}: must be {rule}")
    if fields.group == "rank" and not fields.meta_dir:
        without = "without a ranking (data.hardimagenet.meta_dir = '')"
        raise UsageError(f"data.hardimagenet.group = rank: must be mask_area {without}")
    if fields.group == "mask_area" and not fields.masks_dir:
        without = "an image directory without masks (data.hardimagenet.masks_dir = '')"
        raise UsageError(f"data.hardimagenet.group = mask_area: must be rank for {without}")


def _classes(meta_dir: str) -> tuple[list[str], str]:
    """The 15 wnids in the order of the labels, and what says so."""
    # The published order of the labels decides, where it is there.
    path = Path(os.path.expanduser(meta_dir)) / "hard_imagenet_idx.pkl"
    if not meta_dir or not os.path.exists(path):
        return list(NAMES), "built-in"
    # It maps all of ImageNet; without it the built-in rows are enough for the 15 classes.
    table = path.with_name("idx_to_wnid.pkl")
    to_wnid = {index: wnid for index, wnid, _ in CLASSES}
    if os.path.exists(table):
        to_wnid = load_plain(table)
    try:
        wnids = [to_wnid[index] for index in load_plain(path)]
        fits = all(isinstance(wnid, str) for wnid in wnids) and sorted(wnids) == sorted(NAMES)
    except (TypeError, LookupError):
        fits = False
    if not fits:
        raise UsageError(
            f"{path}: damaged; must list the ImageNet indices of Hard ImageNet's 15 classes"
        )
    return wnids, path.name


def _ranking_file(section: DataConfig) -> Path:
    """The pickle with the ranking: that of meta/, else the one beside it or beside the masks."""
    first, second = "paths_by_rank.pkl", "paths_by_rank2.pkl"
    meta = _folder(section, "meta_dir")
    places = [meta / first, meta / second, meta.parent / second]
    if section.hardimagenet.masks_dir:
        places.append(_folder(section, "masks_dir") / second)
    there = [path for path in places if path.exists()]
    if not there:
        raise UsageError(f"{places[0]}: No such file or directory")
    if len(there) > 1 and not there[0].samefile(there[-1]):
        say(f"{there[-1]}: not read, because the ranking is that of {there[0]}")
    return there[0]


def _ranking(path: Path, wnids: list[str]) -> dict[str, list[str]]:
    """Names of each class's training images in the order of their rank.

    The pickle holds a dictionary of ImageNet index -> list of `train/<wnid>/<file>`. Neither it nor
    the public code says at which end the spurious cue is strong.
    """
    lists = load_plain(path)
    fits = isinstance(lists, dict) and all(isinstance(ranked, list) for ranked in lists.values())
    entries = list(itertools.chain(*lists.values())) if fits else []
    if not fits or not all(isinstance(entry, str) and entry.isprintable() for entry in entries):
        raise UsageError(
            f"{path}: damaged; must be a dictionary of lists of paths train/<wnid>/<file>"
        )
    paths = [entry.split("/")[-2:] for entry in entries]
    names = dict.fromkeys("_".join(path) for path in paths if len(path) == 2)  # each once, in order
    ranking: dict[str, list[str]] = {wnid: [] for wnid in wnids}
    for name in names:
        if _wnid(name) in ranking:
            ranking[_wnid(name)].append(name)
    _check_classes(itertools.chain(*ranking.values()), wnids, f"{path}: no ranks")
    return ranking


def _masked(section: DataConfig, split: str, wnids: list[str]) -> list[str]:
    """Names of a split's masks, sorted."""
    folder = _folder(section, "masks_dir") / split
    with _reading(section, "masks_dir"):
        found = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    names = [
        name for name in found if fnmatch.fnmatchcase(name, "n*_*.JPEG") and _wnid(name) in NAMES
    ]
    _check_classes(names, wnids, f"{_named(section, 'masks_dir')}: no masks in {split}/")
    return names


def _wnid(name: str) -> str:
    return name.split("_")[0]


def _check_classes(names: Iterable[str], wnids: list[str], complaint: str) -> None:
    """UsageError on the first class that none of the images is of."""
    present = {_wnid(name) for name in names}
    for wnid in wnids:
        if wnid not in present:
            raise UsageError(
                f"{complaint} for {wnid} ({NAMES[wnid]}); all 15 classes must be there"
            )


def _check_folders(section: DataConfig, split: str, wnids: list[str]) -> None:
    folder = _folder(section, "images_dir") / split
    with _reading(section, "images_dir"):
        if os.path.isdir(folder):
            os.listdir(folder)
    for wnid in wnids:
        if not os.path.isdir(folder / wnid):
            raise UsageError(
                f"{_named(section, 'images_dir')}: no folder {split}/{wnid} ({NAMES[wnid]}); "
                "all 15 classes must be there"
            )


def _split(
    section: DataConfig,
    split: str,
    names: list[str],
    first: int,
    wnids: list[str],
    outline: Outline | None,
) -> Split:
    """One split from the cache, into which it is decoded first unless it is there.

    Ids count from `first`. With an `outline` nothing is decoded: Missing brings it instead.
    """
    _check_folders(section, split, wnids)
    root = _folder(section, "images_dir")
    side = section.image_size
    # <wnid>_<file> is a mask's name; its image lies in <split>/<wnid>/<file>.
    paths = ["/".join((split, *name.split("_", 1))) for name in names]
    masks = _folder(section, "masks_dir") / split if section.hardimagenet.masks_dir else None
    key = {
        "image_size": side,
        "on_bad_image": section.on_bad_image,
        "images": cache.stamps(root, paths),
        "masks": cache.stamps(masks, names) if masks else None,
    }

    def make() -> cache.Entry:
        if outline is not None:
            field = "data.hardimagenet.images_dir"
            raise Missing(field, f"{field} = {root}: not decoded yet at {side} pixels", outline)
        return _decode(section, split, paths, [masks / name for name in names] if masks else None)

    # Three channels and a mask; the rest bounds `kept` and `area`.
    nbytes = len(names) * (side * side * 4 + 16)
    arrays, decoding = cache.cached(section.cache_dir, f"hardimagenet-{split}", key, nbytes, make)
    kept = arrays["kept"]
    label = np.array([wnids.index(_wnid(name)) for name in names], np.int32)
    images = Images(
        pixels=arrays["pixels"],
        label=label[kept],
        group=np.full(len(kept), UNKNOWN, np.int32),
        origin=np.full(len(kept), REAL, np.int32),
        id=(first + kept).astype(np.uint32),
        mask=arrays.get("masks"),
    )
    kept_names = [names[i] for i in kept]
    where = _named(section, "images_dir")
    _check_classes(kept_names, wnids, f"{where}: no usable {split} images")
    if images.mask is not None:
        pairs = zip(kept_names, images.mask, strict=True)
        # A class whose masks are all black would have nothing to ablate.
        with_object = (name for name, mask in pairs if mask.any())
        where = _named(section, "masks_dir")
        _check_classes(with_object, wnids, f"{where}: no object in any {split} mask")
    return Split(
        listed=names,
        images=images,
        kept=kept_names,
        area=arrays.get("area"),
        bad=decoding["bad"],
        converted=decoding["converted"],
    )


def _decode(
    section: DataConfig, split: str, paths: list[str], masks: list[Path] | None
) -> cache.Entry:
    """What the cache holds of a split.

    The areas of all masks, and the masks of validation images alone.
    """
    root = _folder(section, "images_dir")

    decoded = decode.decode_all(
        [root / path for path in paths],
        section.image_size,
        masks,
        section.on_bad_image,
        _named(section, "images_dir"),
        "imagenet",
        paths.__getitem__,
    )
    arrays = {"pixels": decoded.pixels, "kept": decoded.kept}
    if decoded.masks is not None:
        arrays["area"] = (decoded.masks > 0).mean(axis=(1, 2), dtype=np.float64).astype(np.float32)
        # Of training images only the area is needed; their masks would take a third of the pixels'
        # space.
        if split == "val":
            arrays["masks"] = decoded.masks
    bad = [[paths[i], reason] for i, reason in decoded.bad]
    return arrays, {"bad": bad, "converted": decoded.converted}


def _by_rank(
    section: DataConfig,
    train: Split,
    val: Split | None,
    wnids: list[str],
    ranking: dict[str, list[str]],
    file: str,
) -> Grouped:
    """Groups by rank, of the ranking in `file`, counted among all images listed.

    So an image that is skipped moves no other to another band.
    """
    bands = section.hardimagenet.bands
    listed = set(train.listed)
    band: dict[str, int] = {}
    for ranked in ranking.values():
        # A ranked image without a mask is not in the data set and takes no place in a band.
        own = [name for name in ranked if name in listed]
        band.update({name: place * bands // len(own) for place, name in enumerate(own)})
    group = np.array([band.get(name, UNKNOWN) for name in train.kept], np.int32)
    images = replace(train.images, group=group)
    groups = _band_names(bands, "first", "last")
    held = _holdout(images, train.kept, section.hardimagenet.holdout, wnids, groups)
    return Grouped(
        train=images.take(np.flatnonzero((group != UNKNOWN) & ~held)),
        test=images.take(np.flatnonzero(held)),
        probe=None if val is None else val.images,
        groups=groups,
        provenance={
            "group_definition": f"{bands} equal bands of each class's training images in the "
            f"order of {file}, which does not say at which end the spurious cue is "
            "strong",
            "without_rank": len(listed) - len(band),
            "ranked_without_mask": sum(map(len, ranking.values())) - len(band),
        },
    )


def _holdout(
    images: Images, names: list[str], count: int, wnids: list[str], groups: tuple[str, ...]
) -> np.ndarray:
    """bool[N]: `count` images of every class and group, chosen by their names for good.

    No seed enters, nor the place in the listing, which depends on the other images: with masks
    fewer are listed.
    """
    # A hash puts the names in an order that is as good as random, and the same everywhere.
    lots = np.array([hashlib.sha256(os.fsencode(f"hold-out/{name}")).hexdigest() for name in names])
    held = np.zeros(len(images), bool)
    for (label, wnid), (group, name) in itertools.product(enumerate(wnids), enumerate(groups)):
        rows = np.flatnonzero((images.label == label) & (images.group == group))
        # At least one image of each class and band must be left to train on.
        if len(rows) <= count:
            raise UsageError(
                f"data.hardimagenet.holdout = {count}: must be below the number of images in every "
                f"class and band, but {NAMES[wnid]}, {name} has only {len(rows)}"
            )
        held[rows[np.argsort(lots[rows])[:count]]] = True
    return held


def _by_area(section: DataConfig, train: Split, val: Split, wnids: list[str]) -> Grouped:
    """Groups by the object's share of the image, cut at quantiles.

    Those of each class's training images.
    """
    bands = section.hardimagenet.bands
    levels = np.arange(1, bands) / bands
    areas = [_areas(train)[train.images.label == c] for c in range(len(wnids))]
    # From training images alone, so that the test set does not decide on its own groups.
    cuts = [np.quantile(area, levels) for area in areas]

    def grouped(split: Split) -> Images:
        pairs = zip(split.images.label, _areas(split), strict=True)
        group = [np.searchsorted(cuts[c], area, side="right") for c, area in pairs]
        return replace(split.images, group=np.array(group, np.int32))

    held_out = grouped(val)
    return Grouped(
        train=grouped(train),
        test=held_out,
        probe=held_out,
        groups=_band_names(bands, "small", "large"),
        provenance={
            "group_definition": f"{bands} bands by the object's share of the image as decoded, "
            "cut at the quantiles of each class's training images"
        },
    )


def _areas(split: Split) -> np.ndarray:
    """The objects' shares of the images; `_check` has seen that there are masks."""
    assert split.area is not None
    return split.area


def _band_names(bands: int, first: str, last: str) -> tuple[str, ...]:
    """The groups' names, from one end to the other."""
    inner = [f"middle {i}" for i in range(1, bands - 1)]
    return (first, *(["middle"] if len(inner) == 1 else inner), last)


def _provenance(section: DataConfig, grouped: Grouped, splits: dict[str, Split]) -> dict[str, Any]:
    """What a record says of the images, whatever the groups."""
    bad = []
    converted: Counter[str] = Counter()
    for split in splits.values():
        bad += split.bad
        converted.update(split.converted)
    images: dict[str, Any] = {"train": len(grouped.train), "test": len(grouped.test)}
    if grouped.probe is not None:
        images["probe"] = len(grouped.probe)
    images["listed"] = {name: len(split.listed) for name, split in splits.items()}
    marker = _folder(section, "images_dir") / STAND_IN
    stand_in = None
    if marker.exists():
        stand_in = marker.read_text(errors="replace").partition("\n")[0]
    return {
        "images": images,
        "bad_images": bad[:BAD_LISTED],
        "bad_image_count": len(bad),
        "converted": dict(converted),
        "stand_in": stand_in,
    }
