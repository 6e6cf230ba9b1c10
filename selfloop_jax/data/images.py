"""The one type for a set of images, and the order in which training reads it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import numpy as np

from selfloop_jax.runtime import rng

REAL = -1


UNKNOWN = -1


@dataclass(frozen=True)
class Images:
    """A set of N images; (origin, id) is an image's identity everywhere.

    pixels uint8[N,H,W,3]; label int32[N]; group int32[N], -1 unknown; origin int32[N], -1 real, g
    drawn by the generator of generation g; id uint32[N], never reused within its origin. Beside
    them, where known: source_id uint32[N], the image that several were made from; condition
    int32[N], the class that the generator was asked for; masks uint8[N,H,W], 255 on the object and
    0 elsewhere.
    """

    pixels: np.ndarray
    label: np.ndarray
    group: np.ndarray
    origin: np.ndarray
    id: np.ndarray
    source_id: np.ndarray | None = None
    condition: np.ndarray | None = None
    masks: np.ndarray | None = None

    def __post_init__(self):
        kinds = {"pixels": np.uint8, "id": np.uint32, "source_id": np.uint32, "masks": np.uint8}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            if value.dtype != kinds.get(field.name, np.int32) or len(value) != len(self.pixels):
                raise ValueError(f"Images.{field.name}: {value.dtype}[{len(value)}] does not fit")

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, index: np.ndarray) -> "Images":
        """The images at `index` (integers or a mask), in that order."""
        present = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v[index] for k, v in present.items() if v is not None})

    def joint(self, num_classes: int, num_groups: int) -> np.ndarray:
        """int64[C,G]: images per (label, group); unknown groups are left out."""
        known = self.group >= 0
        cell = self.label[known] * num_groups + self.group[known]
        return np.bincount(cell, minlength=num_classes * num_groups).reshape(
            num_classes, num_groups
        )


def concatenate(parts: Sequence[Images]) -> Images:
    """One set after the other; what only some sets have beside the five columns is kept where all have it."""
    columns = {}
    for field in fields(Images):
        values = [getattr(part, field.name) for part in parts]
        columns[field.name] = None if any(v is None for v in values) else np.concatenate(values)
    return Images(**columns)


def batch_indices(address: rng.KeyPath, size: int, batch: int, step: int) -> np.ndarray:
    """int32[batch]: what step `step` reads of a set of `size` images; a function of its arguments alone.

    Epoch e is the permutation of (address, e); batches run over epoch after epoch, so a ragged tail
    carries into the next one and every image is read once per epoch.
    """
    first, last = step * batch, (step + 1) * batch
    epochs = range(first // size, (last - 1) // size + 1)
    order = np.concatenate([_epoch(address, size, epoch) for epoch in epochs])
    start = first - epochs[0] * size
    return order[start : start + batch]


@lru_cache(maxsize=4)
def _epoch(address: rng.KeyPath, size: int, epoch: int) -> np.ndarray:
    """int32[size]; cached, since every batch of an epoch asks for it."""
    return rng.permutation((*address, epoch), size).astype(np.int32)
