"""Weights and images by formula, the same with and without PyTorch: NumPy alone, from names and shapes."""

import hashlib

import numpy as np


def numbers(name, count):
    """float64[count] in [0, 1): Philox's words, keyed by the head of the name's sha256."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    return (np.random.Philox(key=key).random_raw(count) >> np.uint64(11)) * 2.0**-53


def tensor(name, shape):
    """float32: He-uniform kernels; scales and variances around one half to one; the rest around zero."""
    uniform = numbers(name, int(np.prod(shape))).reshape(shape)
    if len(shape) > 1:
        return np.float32((2 * uniform - 1) * np.sqrt(6 / np.prod(shape[1:])))
    if name.endswith("running_var"):
        return np.float32(0.5 + uniform)
    if name.endswith("weight"):
        return np.float32(0.25 + 0.5 * uniform)
    return np.float32(0.4 * uniform - 0.2)


def images(count, side):
    """uint8[count,side,side,3]."""
    return np.uint8(256 * numbers("images", count * side * side * 3)).reshape(count, side, side, 3)
