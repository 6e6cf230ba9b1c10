"""What a source of real images hands over, before colour or bias: its contract with `dataset`."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from selfloop_jax.data.images import Images
from selfloop_jax.errors import UsageError

TFDS = "tfds:"  # how data.source names a data set of TFDS


@dataclass(frozen=True)
class Source:
    """Real images with the names of their classes and groups.

    A source with fixed splits of its own gives all four; one with train and test alone leaves
    `validation` and `reserve` to be set aside from `train`. Groups are () where the images have
    none: then all are -1. `probe`, where given, is a further held-out set with masks, for the
    ablations of `measure/spurious.py`. `facts` goes into the record as it is: JSON alone.
    """

    train: Images
    test: Images
    classes: tuple[str, ...]
    groups: tuple[str, ...] = ()
    nested: bool = False
    validation: Images | None = None
    reserve: Images | None = None
    probe: Images | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outline:
    """What is known of a source whose images cannot be read yet; None: unknown."""

    classes: int | None = None
    groups: int | None = None
    train: int | None = None  # images before any are set aside
    test: int | None = None


class Missing(UsageError):
    """The data are not ready on this machine; `field` of the config says where they are.

    `outline` is what the source could tell of them all the same.
    """

    def __init__(self, field: str, message: str, outline: Outline | None = None):
        super().__init__(message)
        self.field = field
        self.outline = outline


def is_nested(occurs: np.ndarray) -> bool:
    """Whether each group lies within one of several classes; bool[C,G]: which cells have images."""
    classes, groups = occurs.shape
    return bool(classes > 1 and groups > 0 and (occurs.sum(axis=0) <= 1).all())
