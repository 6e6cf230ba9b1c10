"""What a source of real images gives to `dataset`, before colours and bias."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from selfloop_jax.config import DataConfig
from selfloop_jax.data.images import Images
from selfloop_jax.data.splits import stratified_order
from selfloop_jax.errors import UsageError
from selfloop_jax.runtime.log import say

TFDS = "tfds:"  # how data.source names a data set of TFDS


@dataclass(frozen=True)
class Source:
    """Real images in four fixed, disjoint splits, with the names of their classes and groups.

    A source that has train and test alone takes the others from `four_splits`. Groups are () where
    the images have none: then all are -1. nested: each group lies within one class. probe, where
    given, is a further held-out set with masks, for `measure/foreground.py`. provenance goes into
    the record as it is: JSON alone, and under `stand_in` what replaces the official pixels, or
    None.
    """

    train: Images
    validation: Images
    reserve: Images
    test: Images
    classes: tuple[str, ...]
    groups: tuple[str, ...] = ()
    nested: bool = False
    probe: Images | None = None
    provenance: dict[str, Any] = field(default_factory=dict)


def say_no_groups(section: DataConfig, groups: Sequence[str]) -> None:
    """Says, before images are decoded, that a source has no groups and gets no colours.

    A study of groups that has lost its groups would be found only after the training.
    """
    if not groups and section.colorize == "none":
        say(f"no groups: {section.source} gives none, so no gap between groups can be measured")


def four_splits(
    section: DataConfig,
    train: Images,
    test: Images,
    validation: Images | None = None,
    reserve: Images | None = None,
) -> dict[str, Any]:
    """The four splits, Images by name.

    Where validation or reserve are missing, they are set aside from `train`, in the shares of
    section `data`, every class and group in proportion. They depend on the name of the source and
    on no seed.
    """
    # One number per subgroup; unknown groups, -1, have their own.
    subgroup = train.label * (int(train.group.max(initial=0)) + 2) + train.group
    rest = stratified_order((0, "split", section.source), subgroup)
    if validation is None:
        # Every stretch of the stratified order has the subgroups in proportion.
        count = round(section.validation_share * len(train))
        validation = train.take(np.sort(rest[:count]))
        rest = rest[count:]
    if reserve is None:
        count = round(section.reserve_share * len(train))
        reserve = train.take(np.sort(rest[:count]))
        rest = rest[count:]
    kept = train.take(np.sort(rest))
    return {"train": kept, "validation": validation, "reserve": reserve, "test": test}


@dataclass(frozen=True)
class Outline:
    """What is known of a source whose images cannot be read yet; None: unknown."""

    classes: int | None = None
    groups: int | None = None
    train: int | None = None  # images before any are set aside
    test: int | None = None


class Missing(UsageError):
    """The data are not ready on this machine; `field` of the config says where they are.

    `outline` is what the source could say of them all the same.
    """

    def __init__(self, field: str, message: str, outline: Outline | None = None):
        super().__init__(message)
        self.field = field
        self.outline = outline
