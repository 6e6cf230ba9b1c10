"""What the report draws from a run's arrays: a few images per class, and the recall of each subgroup."""

import numpy as np

from selfloop_jax.measure.fairness import recalls

TILES = 3  # images shown per class

Arrays = dict[str, np.ndarray]
Tiles = tuple[np.ndarray, ...]  # per class uint8[k,H,W,3], k <= TILES


def tiles(arrays: Arrays, classes: int) -> Tiles:
    """The first images of each class: by id, or as they lie where they have none."""
    label = arrays["label"]
    rows = np.argsort(arrays.get("id", np.arange(len(label))), kind="stable")
    return tuple(arrays["pixels"][rows[label[rows] == c][:TILES]] for c in range(classes))


def recall(arrays: Arrays, classes: int, groups: int) -> np.ndarray:
    """float64[C,G]: share of each subgroup that is predicted as its label, NaN where it is empty."""
    predicted = arrays["logits"].argmax(axis=1)
    return recalls(arrays["label"], predicted, arrays["group"], classes, groups)[0]
