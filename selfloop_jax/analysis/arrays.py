"""What the report draws from a run's arrays: a few images per class and group, and recalls."""

import numpy as np

from selfloop_jax.measure.test_set import TestSet

TILES = 3  # images shown per class


Arrays = dict[str, np.ndarray]


Tiles = tuple[np.ndarray, ...]  # per class or group uint8[k,H,W,3], k <= TILES


def tiles(arrays: Arrays, column: str, values: int) -> Tiles:
    """The first images of each class or group (`column`): by id, or as they lie where they have none."""
    found = arrays[column]
    rows = np.argsort(arrays.get("id", np.arange(len(found))), kind="stable")
    return tuple(arrays["pixels"][rows[found[rows] == value][:TILES]] for value in range(values))


def recall(arrays: Arrays, classes: int, groups: int) -> np.ndarray:
    """float64[C,G]: share of each subgroup that is predicted as its label, NaN where it is empty."""
    predicted = arrays["logits"].argmax(axis=1)
    return TestSet(arrays["label"], predicted, arrays["group"], classes, groups).recall
