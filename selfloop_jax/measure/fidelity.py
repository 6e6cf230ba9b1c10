"""How close generated images are to real ones, on feature vectors float32[N,D] of a frozen network.

Frechet distance (Heusel et al. 2017), kernel distance (Binkowski et al. 2018), precision and recall
(Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020), and a search for copies of
training images. None of these numbers means much alone: `report` puts each beside its *floor*, the
same number for as many real images that were held out.

All pairs are visited tile by tile, so no N x N matrix exists. The tiles are float64: |x|^2 + |y|^2
- 2xy then holds for near-duplicates too. They are compared as float32, so that equal distances
compare as equal whatever tile and order they were computed in.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from selfloop_jax.measure.wilson import wilson
from selfloop_jax.runtime import rng

NEIGHBOURS = 5  # k of precision, recall, density and coverage (Naeem et al. 2020)


TILE = 1024  # rows and columns: 8 MB of float64, about a core's cache


SMALL_TILE = 256  # for sets that fit: two edges only, so that `compile_tiles` can know all programs beforehand


ENOUGH = (
    2048  # images: below this many, or ten per feature, a Frechet distance is to a good part bias
)


@dataclass(frozen=True)
class Labelled:
    """Features float32[N,D] of N images with their label int[N] and group int[N] (-1 unknown)."""

    features: np.ndarray
    label: np.ndarray
    group: np.ndarray

    def shuffled(self, address: rng.KeyPath) -> "Labelled":
        """The same images in the address's order, so that the first n are a random subset."""
        rows = rng.permutation(address, len(self.features))
        return Labelled(self.features[rows], self.label[rows], self.group[rows])


def report(
    generated: Labelled,
    real: Labelled,
    held_out: Labelled,
    classes: int,
    groups: int,
    address: rng.KeyPath,
    k: int = 5,
) -> dict[str, Any]:
    """`summary` overall, per class and per group, each beside its floor, and `memorization` beside its own.

    `real` is what the generator was trained on and the reference of every number, `held_out` real
    images that it never saw, drawn as those were: with other shares of labels and groups (a
    balanced test set against a biased training set) floors and memorization would measure that
    difference too. A floor puts held-out images in place of generated ones. The larger of the two
    is cut to the size of the smaller (`count`), since the bias of most of these numbers depends on
    it; the images are drawn by `address`. Images of unknown group count overall and in their class.
    The floor of `memorization` asks one half of the held-out images, the other half being the base.
    `notes` are plain sentences on what to beware of.
    """
    generated = generated.shuffled((*address, "generated"))
    held_out = held_out.shuffled((*address, "held_out"))
    sets = (generated, real.shuffled((*address, "real")), held_out)
    features = tuple(one.features for one in sets)
    result = dict(zip(("overall", "floor"), _with_baseline(features, k), strict=True))
    notes = _notes("overall", [min(map(len, features))], features[0].shape[1], k)
    for place, name, count in (("per_class", "label", classes), ("per_group", "group", groups)):
        masks = [tuple(getattr(one, name) == value for one in sets) for value in range(count)]
        pairs = [
            _with_baseline([x[m] for x, m in zip(features, mask, strict=True)], k) for mask in masks
        ]
        result |= {
            place: [pair[0] for pair in pairs],
            f"{place}_floor": [pair[1] for pair in pairs],
        }
        notes += _notes(
            place, [int(min(m.sum() for m in mask)) for mask in masks], features[0].shape[1], k
        )
    result["memorization"] = _memorization_with_baseline(*features)
    result["notes"] = (
        _size_notes(*map(len, features)) + notes + _origin_notes(result["memorization"]["floor"])
    )
    return result


def _with_baseline(features: Sequence[np.ndarray], k: int) -> list[dict[str, float]]:
    """`summary` of as many generated and held-out images, from features of generated, real, held-out."""
    generated, real, held_out = features
    count = min(len(generated), len(held_out)) if len(held_out) else len(generated)
    return [summary(images[:count], real, k) for images in (generated, held_out)]


def _memorization_with_baseline(
    generated: np.ndarray, real: np.ndarray, held_out: np.ndarray
) -> dict[str, Any]:
    """`memorization` with bases as large as the held-out set, and under "floor" as large as half of it."""
    base = min(len(real), len(held_out))
    half = min(len(real), len(held_out) // 2)
    floor = memorization(held_out[len(held_out) // 2 :], real[:half], held_out[:half])
    return {**memorization(generated, real[:base], held_out[:base]), "floor": floor}


def _size_notes(generated: int, real: int, held_out: int) -> list[str]:
    """What was left out to make sets equal."""
    notes = []
    if held_out and generated != held_out:
        notes.append(
            f"sizes: of {generated} generated and {held_out} held-out images the larger set is cut to the"
            " smaller, overall and in every class and group"
        )
    if real > held_out:
        notes.append(
            f"memorization: {held_out} of {real} training images are searched, as many as are held out:"
            " copies of the others are not seen"
        )
    return notes


def _origin_notes(floor: dict[str, Any]) -> list[str]:
    """Whether held-out images look drawn as the training images were, from the floor of memorization."""
    if not (floor["high"] < 0.5 or floor["low"] > 0.5):
        return []
    return [
        f"memorization: even of held-out images a share of {floor['share_nearer']:.2f} is nearer to training"
        " images, not one half: the two real sets seem to differ in more than chance"
    ]


def _notes(place: str, sizes: list[int], features: int, k: int) -> list[str]:
    """What too few images do; sizes: the smallest of the three sets, overall or of every class or group."""
    notes = []
    enough = max(ENOUGH, 10 * features)
    few = [size for size in sizes if 2 <= size < enough]
    if few:
        span = " to ".join(map(str, sorted({min(few), max(few)})))
        notes.append(
            f"frechet, {place}: {span} images for {features} features, fewer than {enough}: biased upwards by"
            " small samples; compare with the floor only"
        )
    if few and min(few) <= features:
        notes.append(
            f"frechet, {place}: {min(few)} images for {features} features: their covariance is rank-deficient"
        )
    missing = [index for index, size in enumerate(sizes) if size <= k]
    if missing:
        which = "" if place == "overall" else f" {', '.join(map(str, missing))}"
        notes.append(
            f"{place}{which}: a set has no more than k = {k} images: undefined numbers are NaN"
        )
    return notes


def summary(generated: np.ndarray, real: np.ndarray, k: int = 5) -> dict[str, float]:
    """All distances between float32[M,D] and float32[N,D]; NaN where there are too few images for one.

    `frechet` and `kernel` need two images on either side, the others more than k. `count` is M.
    """
    return {
        "frechet": frechet(generated, real),
        "kernel": kernel_distance(generated, real),
        **manifold(real, generated, k),
        "count": len(generated),
    }


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance (squared) of Gaussians fitted to float32[M,D] and float32[N,D]; NaN below two rows.

    |mean_a - mean_b|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^(1/2), Heusel et al. 2017, equation 6, unbiased
    covariances. With S = R'R the last trace is the sum of the singular values of R_a R_b'. R is the QR factor
    of the centred rows: no covariance is formed and no root taken, so nothing becomes complex and a deficient
    rank costs no accuracy.
    """
    if min(len(a), len(b)) < 2:
        return math.nan
    a, b = _finite(a), _finite(b)
    shift = a.mean(axis=0) - b.mean(axis=0)
    root_a, root_b = _covariance_root(a), _covariance_root(b)
    overlap = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    distance = (shift**2).sum() + (root_a**2).sum() + (root_b**2).sum() - 2 * overlap
    return max(0.0, float(distance))


def _covariance_root(x: np.ndarray) -> np.ndarray:
    """float64[N,D] -> R float64[min(N,D),D] with R'R the unbiased covariance."""
    return np.linalg.qr((x - x.mean(axis=0)) / math.sqrt(len(x) - 1), mode="r")


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased MMD^2 with the kernel (x.y / D + 1)^3 over all pairs; may be negative; NaN below two rows.

    KID, Binkowski et al. 2018, section 4, without its random subsets. float32[M,D], float32[N,D].
    """
    if min(len(a), len(b)) < 2:
        return math.nan
    # With a last feature of 1 the kernel is (x.y)^3, and a row of padding, all zeros, adds exactly
    # nothing.
    a, b = (
        np.pad(_finite(x) / math.sqrt(x.shape[1]), [(0, 0), (0, 1)], constant_values=1.0)
        for x in (a, b)
    )
    across = sum(float(part) for _, _, part in _visit(_cubes, _blocks(a), _blocks(b)))
    return _mean_off_diagonal(a) + _mean_off_diagonal(b) - 2 * across / (len(a) * len(b))


def _mean_off_diagonal(x: np.ndarray) -> float:
    """Mean of (x_i.x_j)^3 over i != j; tiles below the diagonal are those above it."""
    blocks = _blocks(x)
    total = 0.0
    for i, block in enumerate(blocks):
        parts = [float(part) for _, _, part in _visit(_cubes, [block], blocks[i:])]
        total += parts[0] + 2 * sum(parts[1:])
    diagonal = ((x**2).sum(axis=1) ** 3).sum()
    return float(total - diagonal) / (len(x) * (len(x) - 1))


def manifold(real: np.ndarray, generated: np.ndarray, k: int) -> dict[str, float]:
    """Precision, recall, density and coverage of float32[M,D] against float32[N,D]; NaN unless M, N > k.

    An image's ball reaches to its k-th nearest neighbour in its own set, itself not counted, and is
    open, as in the authors' package prdc. precision: share of generated images in any real ball.
    recall: share of real images in any generated ball (Kynkaanniemi et al. 2019, section 2).
    density: real balls that a generated image lies in, over k. coverage: share of real balls with a
    generated image in them (Naeem et al. 2020, section 3).
    """
    if min(len(real), len(generated)) <= k:
        return dict.fromkeys(("precision", "recall", "density", "coverage"), math.nan)
    real, generated = _centred(real, generated)
    real_radii, generated_radii = _radii(real, k), _radii(generated, k)
    containing = np.zeros(len(generated), np.int64)
    recalled = np.zeros(len(real), bool)
    covered = np.zeros(len(real), bool)
    blocks = _blocks(real, real_radii), _blocks(generated, generated_radii)
    for rows, columns, (count, in_ball, has_any) in _visit(_in_balls, *blocks):
        containing[columns] += count[: _length(columns)]
        recalled[rows] |= in_ball[: _length(rows)]
        covered[rows] |= has_any[: _length(rows)]
    return {
        "precision": float((containing > 0).mean()),
        "recall": float(recalled.mean()),
        "density": float(containing.mean() / k),
        "coverage": float(covered.mean()),
    }


def _radii(x: np.ndarray, k: int) -> np.ndarray:
    """float32[N]: squared distance of each row to its k-th nearest other row, k < N."""
    best = np.full((len(x), k + 1), np.inf, np.float32)  # the row itself is the first
    blocks = _blocks(x)
    for rows, _, found in _visit(partial(_smallest, k + 1), blocks, blocks):
        both = np.concatenate([best[rows], found[: _length(rows)]], axis=1)
        best[rows] = np.partition(both, k, axis=1)[:, : k + 1]
    return best.max(axis=1)


def memorization(
    generated: np.ndarray, train: np.ndarray, held_out: np.ndarray
) -> dict[str, float]:
    """Are generated images nearer to training images than to as many real ones never trained on?

    Every image of float32[M,D] has a distance to its nearest row of each set, float32[N,D] both.
    `median_ratio` is the median of the first over the second (0/0 counts as 1); `share_nearer` the
    share of images for which the first is smaller, equality counting half, so that chance gives
    0.5; `low` and `high` its 95 % Wilson interval. Images whose nearest real image is the same one
    err together, and in many dimensions a few real images are nearest to most: the interval is that
    of `effective` independent images, (sum n)^2 / sum n^2 over the numbers n of images that share
    one (Kish 1965). That of M images did not hold 0.5 in 21 to 61 % of trials under chance alone
    (64 Gaussian features, 200 to 1,000 images). `count` is M, `base` is N. NaN without images.

    Raises:
      ValueError: sets of different size, of which the larger would be nearer by its size alone.
    """
    if len(train) != len(held_out):
        raise ValueError(
            f"train: {len(train)} rows, allowed are as many as held_out has, {len(held_out)}"
        )
    result = dict.fromkeys(("median_ratio", "share_nearer", "low", "high", "effective"), math.nan)
    if len(generated) and len(train):
        (in_train, to_train), (in_held_out, to_held_out) = (
            nearest(generated, s) for s in (train, held_out)
        )
        sharing = np.bincount(np.where(to_train <= to_held_out, in_train, len(train) + in_held_out))
        effective = len(generated) ** 2 / (sharing**2).sum()
        equal = to_train == to_held_out
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(equal, 1.0, to_train / to_held_out)
        share = float(np.where(equal, 0.5, to_train < to_held_out).mean())
        low, high = wilson(share * effective, effective)
        values = (float(np.median(ratio)), share, float(low), float(high), float(effective))
        result = dict(zip(result, values, strict=True))
    return {**result, "count": len(generated), "base": len(train)}


def nearest(queries: np.ndarray, base: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """index int64[M] of the row of float32[N,D] nearest to each of float32[M,D], and distance float64[M].

    Rows whose distances agree to float32, or lie within about 1e-7 of the rows' norms about the
    mean, are equally near: the first of them is taken. The distance to it is computed from the
    difference of the two, so that it is exactly 0 for a duplicate.

    Raises:
      ValueError: an empty base.
    """
    if not len(base):
        raise ValueError("base: no rows, allowed are 1 or more")
    best = np.full(len(queries), np.inf, np.float32)
    index = np.zeros(len(queries), np.int64)
    base_blocks, query_blocks = map(_blocks, _centred(base, queries))
    for rows, columns, (distance, column) in _visit(_closest, query_blocks, base_blocks):
        distance, column = distance[: _length(rows)], column[: _length(rows)]
        closer = distance < best[rows]
        best[rows][closer] = distance[closer]
        index[rows][closer] = columns.start + column[closer]
    distance = np.zeros(len(queries))
    for first in range(0, len(queries), TILE):
        rows = slice(first, first + TILE)
        difference = queries[rows].astype(np.float64) - base[index[rows]]
        distance[rows] = np.sqrt((difference**2).sum(axis=1))
    return index, distance


@cache
def compile_tiles(dimension: int, k: int) -> None:
    """Compiles every program that `report` and `nearest` may need, whatever the sizes of the sets."""
    sets = [np.zeros((count, dimension), np.float32) for count in (k + 2, SMALL_TILE + 1)]
    for a, b in itertools.product(sets, sets):
        manifold(a, b, k)
        kernel_distance(a, b)
        nearest(a, b)


class _Block(NamedTuple):
    """Some rows of a set on the device, padded to a tile's edge B."""

    at: slice
    arrays: tuple[
        jax.Array, ...
    ]  # points float64[B,D], |point|^2 float64[B], and radii float32[B] if any


def _blocks(points: np.ndarray, radii: np.ndarray | None = None) -> list[_Block]:
    """float64[N,D], float32[N] -> blocks; padding lies at infinite distance and has a ball of radius 0."""
    edge = SMALL_TILE if len(points) <= SMALL_TILE else TILE
    fills = [(points, 0.0), ((points**2).sum(axis=1), np.inf)]
    if radii is not None:
        fills.append((radii, 0.0))
    blocks = []
    for first in range(0, len(points), edge):
        at = slice(first, min(first + edge, len(points)))
        padded = [_padded(array[at], edge, fill) for array, fill in fills]
        with jax.enable_x64(True):
            blocks.append(_Block(at, jax.device_put(tuple(padded), _device())))
    return blocks


def _padded(array: np.ndarray, edge: int, fill: float) -> np.ndarray:
    """The array with rows of `fill` behind it, `edge` rows in all."""
    return np.pad(
        array, [(0, edge - len(array))] + [(0, 0)] * (array.ndim - 1), constant_values=fill
    )


def _device() -> jax.Device:
    """Where the tiles are computed: beside a TPU, which has no float64, on the host."""
    return jax.local_devices(backend="cpu" if jax.default_backend() == "tpu" else None)[0]


def _length(at: slice) -> int:
    return at.stop - at.start


def _visit(
    tile: Callable, rows: list[_Block], columns: list[_Block]
) -> Iterator[tuple[slice, slice, Any]]:
    """Runs a tile program over all pairs of blocks: which rows, which columns, results in NumPy."""
    for x in rows:
        for y in columns:
            with jax.enable_x64(
                True
            ):  # left before the caller goes on: the rest of the program is float32
                found = jax.device_get(tile(x.arrays, y.arrays))
            yield x.at, y.at, found


def _squared(x: tuple, y: tuple) -> jax.Array:
    """Squared distances float32[B,C]. What rounding cannot tell from 0 is 0: in every tile alike."""
    scale = x[1][:, None] + y[1][None, :]
    squared = scale - 2 * x[0] @ y[0].T
    # An inner product of D terms is off by D/2 eps |x||y| at most, so the sum of three by D eps
    # scale.
    noise = x[0].shape[1] * jnp.finfo(jnp.float64).eps * scale
    return jnp.where(squared < noise, 0, squared).astype(jnp.float32)


@partial(jax.jit, static_argnums=0)
def _smallest(count: int, x: tuple, y: tuple) -> jax.Array:
    """The `count` smallest squared distances of each row, fewer where the tile is narrower."""
    squared = _squared(x, y)
    return -jax.lax.top_k(-squared, min(count, squared.shape[1]))[0]


@jax.jit
def _closest(x: tuple, y: tuple) -> tuple[jax.Array, jax.Array]:
    """Smallest squared distance of each row, and the first column that has it."""
    squared = _squared(x, y)
    return squared.min(axis=1), squared.argmin(axis=1)


@jax.jit
def _in_balls(x: tuple, y: tuple) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Number of rows' balls a column is in; is a row in a column's ball; is a column in the row's ball."""
    squared = _squared(x, y)
    in_row_ball = squared < x[2][:, None]
    in_column_ball = squared < y[2][None, :]
    return in_row_ball.sum(axis=0), in_column_ball.any(axis=1), in_row_ball.any(axis=1)


@jax.jit
def _cubes(x: tuple, y: tuple) -> jax.Array:
    """Sum of (x_i.y_j)^3."""
    inner = x[0] @ y[0].T
    return (inner * inner * inner).sum()


def _finite(features: np.ndarray) -> np.ndarray:
    """The features as float64[N,D]."""
    if not np.isfinite(features).all():
        raise ValueError("features: NaN or infinite values, allowed are finite ones")
    return np.asarray(features, np.float64)


def _centred(reference: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 about the mean of the first: distances stay, norms and with them rounding shrink."""
    reference, other = _finite(reference), _finite(other)
    mean = reference.mean(axis=0)
    return reference - mean, other - mean
