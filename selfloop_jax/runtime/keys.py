"""Typed JAX keys made from the key paths of `rng.py`."""

import hashlib
import operator

import jax
import numpy as np

from selfloop_jax.runtime.rng import KeyPath


def _number(part: int | str) -> int:
    """uint32 of one part of a key path: an integer is itself, a name the head of its sha256."""
    if isinstance(part, str):
        # Not Python's hash, which changes from process to process.
        return int.from_bytes(hashlib.sha256(part.encode()).digest()[:4], "little")
    # `index` takes NumPy's integers and refuses floats, which would be truncated in silence.
    number = operator.index(part)
    if not 0 <= number < 2**32:
        raise ValueError(f"key path part {part} is not in [0, 2**32)")
    return number


def key(path: KeyPath) -> jax.Array:
    """Typed threefry key of a key path: its seed's key with every further part folded in."""
    # The implementation is named, because JAX's default can be changed by an environment variable.
    result = jax.random.key(_number(path[0]), impl="threefry2x32")
    for part in path[1:]:
        result = jax.random.fold_in(result, np.uint32(_number(part)))
    return result
