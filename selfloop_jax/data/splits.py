"""Deterministic splits: stratified order and largest-remainder rounding."""

import numpy as np

from selfloop_jax.runtime import rng


def stratified_order(key_path: rng.KeyPath, label: np.ndarray) -> np.ndarray:
    """int64[N]: a keyed order, every stretch of which has the labels in their proportions."""
    shuffled = rng.permutation(key_path, len(label))
    place = np.zeros(len(label))
    for c in np.unique(label):
        # The images of a label, evenly over the whole order.
        rows = shuffled[label[shuffled] == c]
        place[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    # Labels with equally many images share places; then the lower row comes first, everywhere.
    return np.lexsort((np.arange(len(label)), place))


def largest_remainder(want: np.ndarray) -> np.ndarray:
    """int64 of the same shape and (rounded) sum: the largest remainders are rounded up."""
    # A number that is whole but for rounding must not lose an image to the remainders.
    floor = np.floor(want + 1e-9)
    missing = round(float(want.sum() - floor.sum()))
    # Stable, so that among equal remainders the first ones win on every machine.
    up = np.argsort(-(want - floor), axis=None, kind="stable")[:missing]
    result = floor.ravel().astype(np.int64)
    result[up] += 1
    return result.reshape(want.shape)
