"""Random numbers by address, never by sequence.

An address is a seed and a path of names and numbers: `(seed, "generation", 2, "diffusion", "noise")`. The
same address gives the same numbers whatever was drawn before, on whatever number of devices, so nothing
random is ever stored. Device code takes a `key`, host code takes counter-based `words` (`addresses.py`).
"""

import hashlib
import operator

import jax
import numpy as np

from selfloop_jax.addresses import Address, words

__all__ = ["Address", "key", "permutation", "uniforms", "words"]


def _number(part: int | str) -> int:
    """uint32 of one part of an address: an integer is itself, a name the head of its sha256."""
    if isinstance(part, str):
        return int.from_bytes(hashlib.sha256(part.encode()).digest()[:4], "little")
    number = operator.index(part)
    if not 0 <= number < 2**32:
        raise ValueError(f"address part {part} is not in [0, 2**32)")
    return number


def key(address: Address) -> jax.Array:
    """Typed threefry key of an address: its seed's key with every further part folded in."""
    result = jax.random.key(_number(address[0]), impl="threefry2x32")
    for part in address[1:]:
        result = jax.random.fold_in(result, np.uint32(_number(part)))
    return result


def uniforms(address: Address, ids: np.ndarray) -> np.ndarray:
    """float64[N] in [0, 1): one number per id, the same for an id in whatever company it comes."""
    if not len(ids):
        return np.zeros(0)
    return (words(address, int(ids.max()) + 1)[ids] >> np.uint64(11)) * 2.0**-53


def permutation(address: Address, count: int) -> np.ndarray:
    """int64[count]: the argsort of the address's words."""
    return np.argsort(words(address, count), kind="stable")
