"""Makes weights and images by formula from names and shapes, with NumPy alone."""

import hashlib

import numpy as np


def numbers(name, count):
    """Returns float64[count] in [0, 1) from Philox, keyed by the name's sha256."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    return (np.random.Philox(key=key).random_raw(count) >> np.uint64(11)) * 2.0**-53


def tensor(name, shape, least=0.25):
    """Returns float32: He-uniform kernels, positive scales and variances, the rest near 0.

    least: the smallest scale. At 0.75 the mean is 1, and a deep network's output still depends on
    its input.
    """
    uniform = numbers(name, int(np.prod(shape))).reshape(shape)
    if len(shape) > 1:
        return np.float32((2 * uniform - 1) * np.sqrt(6 / np.prod(shape[1:])))
    if name.endswith("running_var"):
        return np.float32(0.5 + uniform)
    if name.endswith("weight"):
        return np.float32(least + 0.5 * uniform)
    return np.float32(0.4 * uniform - 0.2)


def images(count, side):
    """Returns images uint8[count,side,side,3]."""
    return np.uint8(256 * numbers("images", count * side * side * 3)).reshape(count, side, side, 3)
