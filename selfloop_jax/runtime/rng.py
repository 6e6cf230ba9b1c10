"""Counter-based random numbers keyed by a path, on the host (NumPy only).

A key path is a seed followed by names and numbers: `(seed, "generation", 2, "diffusion", "noise")`.
The same path gives the same numbers whatever was sampled before, so nothing random is ever stored.
`keys.py` makes JAX keys of the same paths.
"""

import hashlib
import operator

import numpy as np
from scipy.special import ndtri

KeyPath = tuple[int | str, ...]


def words(path: KeyPath, count: int) -> np.ndarray:
    """uint64[count] words of a key path: Philox's raw output, which NumPy keeps fixed (NEP 19).

    Word i does not depend on `count`.
    """
    # `index` makes NumPy's integers Python's, so that both have the same repr and the same words.
    parts = tuple(part if isinstance(part, str) else operator.index(part) for part in path)
    digest = hashlib.sha256(repr(parts).encode()).digest()
    # The key of Philox has 128 bits.
    return np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(count)


def inner_uniforms(path: KeyPath, shape: tuple[int, ...]) -> np.ndarray:
    """float64[shape] strictly between 0 and 1, where quantiles are finite."""
    # 52 random bits plus one half: exact in float64, and never 0 or 1.
    return ((words(path, int(np.prod(shape))) >> np.uint64(12)) + 0.5).reshape(shape) * 2.0**-52


def normals(path: KeyPath, shape: tuple[int, ...]) -> np.ndarray:
    """float64[shape] standard normals."""
    return ndtri(inner_uniforms(path, shape))


def uniforms(path: KeyPath, ids: np.ndarray) -> np.ndarray:
    """float64[N] in [0, 1): one number per id, which does not depend on the other ids."""
    if not len(ids):
        return np.zeros(0)
    # Word i belongs to id i. The 53 bits that stay are what a float64 in [0, 1) holds exactly.
    return (words(path, int(ids.max()) + 1)[ids] >> np.uint64(11)) * 2.0**-53


def permutation(path: KeyPath, count: int) -> np.ndarray:
    """int64[count]: the argsort of the path's words."""
    # Stable, because equal words must have one order everywhere, however rare they are.
    return np.argsort(words(path, count), kind="stable")
