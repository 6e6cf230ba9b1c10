"""Distances between all rows of two sets of features, tile by tile.

No N x N matrix exists: 50,000 rows against 50,000 fit a laptop. The tiles are float64:
|x|^2 + |y|^2 - 2xy then holds for near-duplicates too. They are compared as float32, so that equal
distances compare as equal whatever tile and order they were computed in.
"""

import itertools
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

TILE = 1024  # rows and columns: 8 MB of float64, about a core's cache

# For sets that fit: two edges only, so that all programs can be compiled beforehand.
SMALL_TILE = 256


def nearest(queries: np.ndarray, base: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index int64[M] of, and distance float64[M] to, the row of base nearest to each query.

    queries float32[M,D], base float32[N,D]. Rows whose distances agree to float32, or lie within
    about 1e-7 of the rows' norms about the mean, are equally near: the first of them is taken. The
    distance to it is computed from the difference of the two, so that it is exactly 0 for a
    duplicate.

    Raises:
      ValueError: an empty base.
    """
    if not len(base):
        raise ValueError("base: no rows; must have 1 or more")
    # float32 like the tiles: distances that are equal there must compare as equal here.
    best = np.full(len(queries), np.inf, np.float32)
    index = np.zeros(len(queries), np.int64)
    base_blocks, query_blocks = map(to_blocks, centred(base, queries))
    for rows, columns, (squared, column) in visit(_closest, query_blocks, base_blocks):
        squared = squared[: length(rows)]
        column = column[: length(rows)]
        # Strictly closer, so that the first of equally near rows stays.
        closer = squared < best[rows]
        best[rows][closer] = squared[closer]
        index[rows][closer] = columns.start + column[closer]
    # The tiles round to float32: the distance reported is computed again, block by block.
    distance = np.zeros(len(queries))
    for first in range(0, len(queries), TILE):
        rows = slice(first, first + TILE)
        difference = queries[rows].astype(np.float64) - base[index[rows]]
        distance[rows] = np.sqrt((difference**2).sum(axis=1))
    return index, distance


def radii_of(x: np.ndarray, k: int) -> np.ndarray:
    """float32[N]: squared distance of each row to its k-th nearest other row, k < N."""
    best = np.full((len(x), k + 1), np.inf, np.float32)  # the row itself is the first
    blocks = to_blocks(x)
    for rows, _, smallest in visit(partial(_smallest, k + 1), blocks, blocks):
        # The k + 1 smallest so far, with those of this tile.
        both = np.concatenate([best[rows], smallest[: length(rows)]], axis=1)
        best[rows] = np.partition(both, k, axis=1)[:, : k + 1]
    # The largest of the k + 1 smallest distances: the row's own 0 is one of them.
    return best.max(axis=1)


def pairs_of_all_tiles(dimension: int, small: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of sets that between them use every size of tile; `small` is that of a small set."""
    sets = [np.zeros((count, dimension), np.float32) for count in (small, SMALL_TILE + 1)]
    return itertools.product(sets, sets)


@cache
def compile_nearest(dimension: int) -> None:
    """Compiles every program that `nearest` needs, for sets of any size."""
    for a, b in pairs_of_all_tiles(dimension, 1):
        nearest(a, b)


class Block(NamedTuple):
    """Some rows of a set on the device, padded to a tile's edge B."""

    at: slice
    # points float64[B,D], |point|^2 float64[B], and radii float32[B] if any
    arrays: tuple[jax.Array, ...]


def to_blocks(points: np.ndarray, radii: np.ndarray | None = None) -> list[Block]:
    """Blocks of points float64[N,D] with radii float32[N].

    Padding lies at infinite distance and has a ball of radius 0.
    """
    edge = SMALL_TILE if len(points) <= SMALL_TILE else TILE
    fills = [(points, 0.0), ((points**2).sum(axis=1), np.inf)]
    if radii is not None:
        fills.append((radii, 0.0))
    blocks = []
    for first in range(0, len(points), edge):
        at = slice(first, min(first + edge, len(points)))
        padded = [_padded(array[at], edge, fill) for array, fill in fills]
        with jax.enable_x64(True):
            blocks.append(Block(at, jax.device_put(tuple(padded), _device())))
    return blocks


def _padded(array: np.ndarray, edge: int, fill: float) -> np.ndarray:
    """The array with rows of `fill` behind it, `edge` rows in all."""
    width = [(0, edge - len(array))] + [(0, 0)] * (array.ndim - 1)
    return np.pad(array, width, constant_values=fill)


def _device() -> jax.Device:
    """The device that computes the tiles: a TPU has no float64, so the host does it there."""
    return jax.local_devices(backend="cpu" if jax.default_backend() == "tpu" else None)[0]


def length(at: slice) -> int:
    """Rows of a block; those behind them in a tile are padding."""
    return at.stop - at.start


def visit(
    tile: Callable, rows: list[Block], columns: list[Block]
) -> Iterator[tuple[slice, slice, Any]]:
    """Runs a tile program over all pairs of blocks; yields rows, columns and NumPy results."""
    for x in rows:
        for y in columns:
            # float64 is on for the tile alone: the rest of the program is float32.
            with jax.enable_x64(True):
                result = jax.device_get(tile(x.arrays, y.arrays))
            yield x.at, y.at, result


def squared_distances(x: tuple, y: tuple) -> jax.Array:
    """Squared distances float32[B,C]; 0 below the rounding error, in every tile alike."""
    scale = x[1][:, None] + y[1][None, :]
    squared = scale - 2 * x[0] @ y[0].T
    # An inner product of D terms is off by D/2 eps |x||y| at most, so the sum of three by D eps
    # scale.
    noise = x[0].shape[1] * jnp.finfo(jnp.float64).eps * scale
    return jnp.where(squared < noise, 0, squared).astype(jnp.float32)


@partial(jax.jit, static_argnums=0)
def _smallest(count: int, x: tuple, y: tuple) -> jax.Array:
    """The `count` smallest squared distances of each row, fewer where the tile is narrower."""
    squared = squared_distances(x, y)
    # `top_k` finds the largest, hence the two signs.
    return -jax.lax.top_k(-squared, min(count, squared.shape[1]))[0]


@jax.jit
def _closest(x: tuple, y: tuple) -> tuple[jax.Array, jax.Array]:
    """Smallest squared distance of each row, and the first column that has it."""
    squared = squared_distances(x, y)
    return squared.min(axis=1), squared.argmin(axis=1)


def finite(features: np.ndarray) -> np.ndarray:
    """The features as float64[N,D]."""
    if not np.isfinite(features).all():
        raise ValueError("features: NaN or infinite values; must be finite")
    return np.asarray(features, np.float64)


def centred(reference: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 about the mean of the first.

    Distances stay as they are; norms and with them rounding errors shrink.
    """
    reference = finite(reference)
    other = finite(other)
    mean = reference.mean(axis=0)
    return reference - mean, other - mean
