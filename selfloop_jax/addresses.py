"""Random words by address, on the host and without jax: what `rng` builds on.

An address is a seed and a path of names and numbers: `(seed, "generation", 2, "diffusion", "noise")`. The
same address gives the same numbers whatever was drawn before, so nothing random is ever stored.
"""

import hashlib
import operator

import numpy as np
from scipy.special import ndtri

Address = tuple[int | str, ...]


def words(address: Address, count: int) -> np.ndarray:
    """uint64[count] words of an address: Philox's raw output, which NumPy keeps fixed (NEP 19).

    Word i does not depend on `count`.
    """
    parts = tuple(part if isinstance(part, str) else operator.index(part) for part in address)
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(count)


def inner_uniforms(address: Address, shape: tuple[int, ...]) -> np.ndarray:
    """float64[shape] strictly between 0 and 1, where quantiles are finite."""
    return ((words(address, int(np.prod(shape))) >> np.uint64(12)) + 0.5).reshape(shape) * 2.0**-52


def normals(address: Address, shape: tuple[int, ...]) -> np.ndarray:
    """float64[shape] standard normals."""
    return ndtri(inner_uniforms(address, shape))
