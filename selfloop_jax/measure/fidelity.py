"""Closeness of generated to real images, on features float32[N,D] of a frozen network.

FID (Heusel et al. 2017), KID (Binkowski et al. 2018), precision and recall (Kynkaanniemi et al.
2019), density and coverage (Naeem et al. 2020), and a search for copies of training images. Whoever
reports a FID or KID names the network that the features come from. None of these numbers means much
alone: `report` gives each with its *baseline*, the same number for as many held-out real images.

All pairs are visited tile by tile, so no N x N matrix exists: 50,000 images against 50,000 fit a
laptop. The tiles are float64: |x|^2 + |y|^2 - 2xy then holds for near-duplicates too. They are
compared as float32, so that equal distances compare as equal whatever tile and order they were
computed in.
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

from selfloop_jax.measure.intervals import two_sided, wilson
from selfloop_jax.runtime import rng

NEIGHBOURS = 5  # the k of precision, recall, density and coverage, as in the literature

TILE = 1024  # rows and columns: 8 MB of float64, about a core's cache

# For sets that fit: two edges only, so that `compile_tiles` can know all programs beforehand.
SMALL_TILE = 256

# Images: below this many, or ten per feature, a FID is to a good part bias.
ENOUGH = 2048


@dataclass(frozen=True)
class FeatureSet:
    """Features float32[N,D] of images with their label int[N] and group int[N] (-1 unknown)."""

    features: np.ndarray
    label: np.ndarray
    group: np.ndarray

    def __len__(self) -> int:
        return len(self.features)

    def shuffled(self, key_path: rng.KeyPath) -> "FeatureSet":
        """The same images in the key path's order, so that the first n are a random subset."""
        rows = rng.permutation(key_path, len(self))
        return self.take(rows)

    def take(self, rows: np.ndarray) -> "FeatureSet":
        """The images of some rows (integers or a mask), in that order."""
        return FeatureSet(self.features[rows], self.label[rows], self.group[rows])


@dataclass(frozen=True)
class Report:
    """Numbers {key: {"value", "baseline", ...}} overall, by class and by group."""

    metrics: dict[str, dict[str, float]]
    by_class: list[dict[str, dict[str, float]]]
    by_group: list[dict[str, dict[str, float]]]
    notes: list[str]  # plain sentences on what to beware of


def report(
    generated: FeatureSet,
    real: FeatureSet,
    held_out: FeatureSet,
    classes: int,
    groups: int,
    key_path: rng.KeyPath,
    k: int = NEIGHBOURS,
    level: float = 0.95,
) -> Report:
    """`summary` overall, by class and by group, and the memorised share, with baselines.

    `real` is what the generator was trained on and the reference of every number, `held_out` real
    images that it never saw, sampled as those were: with other shares of labels and groups (a
    balanced test set against a biased training set) baselines and memorised share would measure
    that difference too. A baseline puts held-out images in place of generated ones. The larger of
    the two is cut to the size of the smaller, since the bias of most of these numbers depends on
    it; `key_path` decides which images stay. Images of unknown group count overall and in their
    class. The baseline of the memorised share asks one half of the held-out images, the other half
    being the base. level: of the memorised share's interval.
    """
    # Shuffled, so that a set cut to its first n images is a random subset.
    generated = generated.shuffled((*key_path, "generated"))
    held_out = held_out.shuffled((*key_path, "held_out"))
    sets = (generated, real.shuffled((*key_path, "real")), held_out)
    dimension = real.features.shape[1]
    copied, copied_baseline = _memorization_with_baseline(sets, level)
    notes = _size_notes(len(generated), len(real), len(held_out), parts=bool(classes or groups))
    notes += _notes("overall", [min(map(len, sets))], dimension, k)
    by: dict[str, list[dict[str, dict[str, float]]]] = {}
    for place, column, count in (("by_class", "label", classes), ("by_group", "group", groups)):
        by[place] = []
        sizes = []
        for value in range(count):
            # A part of a shuffled set is shuffled too, so it can be cut in the same way.
            inside = [one.take(getattr(one, column) == value) for one in sets]
            by[place].append(_with_baseline(inside, k))
            sizes.append(min(map(len, inside)))
        notes += _notes(place, sizes, dimension, k)
    metrics = _with_baseline(sets, k)
    metrics["memorized_share"] = {
        "value": copied["share_nearer"],
        "low": copied["low"],
        "high": copied["high"],
        "baseline": copied_baseline["share_nearer"],
    }
    notes += _origin_notes(copied_baseline)
    return Report(metrics, by["by_class"], by["by_group"], notes)


def _with_baseline(sets: Sequence[FeatureSet], k: int) -> dict[str, dict[str, float]]:
    """`summary` of as many generated and held-out images: {key: number}.

    sets: generated, real, held-out.
    """
    generated, real, held_out = (one.features for one in sets)
    # FID, precision and the others shift with the number of images, so both sets have as many.
    count = min(len(generated), len(held_out)) if len(held_out) else len(generated)
    value = summary(generated[:count], real, k)
    baseline = summary(held_out[:count], real, k)
    return {key: {"value": value[key], "baseline": baseline[key]} for key in value}


def _memorization_with_baseline(
    sets: Sequence[FeatureSet], level: float
) -> tuple[dict[str, float], dict[str, float]]:
    """`memorization` with bases of the held-out set's size; its baseline, of half of that.

    The baseline's interval, which a note rests on, is a 95 % one at every level.
    """
    generated, real, held_out = (one.features for one in sets)
    # Of two sets the larger has nearer neighbours by its size alone.
    base = min(len(real), len(held_out))
    half = min(len(real), len(held_out) // 2)
    # The second half asks, the first half is the base: no image is its own neighbour.
    baseline = memorization(held_out[len(held_out) // 2 :], real[:half], held_out[:half])
    return memorization(generated, real[:base], held_out[:base], level), baseline


def _size_notes(generated: int, real: int, held_out: int, parts: bool) -> list[str]:
    """What was left out to make sets equal, overall and in `parts`."""
    notes = []
    if held_out and generated != held_out:
        notes.append(
            f"sizes: of {generated} generated and {held_out} held-out images the larger set is cut "
            f"to the smaller{', overall and in every class and group' if parts else ''}"
        )
    if real > held_out:
        notes.append(
            f"memorized_share: {held_out} of {real} training images are searched, as many as are "
            "held out: copies of the others are not seen"
        )
    return notes


def _origin_notes(baseline: dict[str, float]) -> list[str]:
    """Whether held-out images look sampled as the training images were."""
    if not (baseline["high"] < 0.5 or baseline["low"] > 0.5):
        return []
    return [
        f"memorized_share: even of held-out images a share of {baseline['share_nearer']:.2f} is "
        "nearer to training images, not one half: the two real sets seem to differ in more than "
        "chance"
    ]


def _notes(place: str, sizes: list[int], dimension: int, k: int) -> list[str]:
    """What too few images do; sizes: of the smallest of the three sets, one for each part."""
    notes = []
    enough = max(ENOUGH, 10 * dimension)
    few = [size for size in sizes if 2 <= size < enough]
    if few:
        span = " to ".join(map(str, sorted({min(few), max(few)})))
        notes.append(
            f"fid, {place}: {span} images for {dimension} features, fewer than {enough}: biased "
            "upwards by small samples; compare with the baseline only"
        )
    if few and min(few) <= dimension:
        notes.append(
            f"fid, {place}: {min(few)} images for {dimension} features: their covariance is "
            "rank-deficient"
        )
    missing = [index for index, size in enumerate(sizes) if size <= k]
    if missing:
        which = "" if place == "overall" else f" {', '.join(map(str, missing))}"
        notes.append(
            f"{place}{which}: a set has no more than k = {k} images: undefined numbers are null"
        )
    return notes


def summary(generated: np.ndarray, real: np.ndarray, k: int = NEIGHBOURS) -> dict[str, float]:
    """FID, KID, precision, recall, density, coverage of float32[M,D] against float32[N,D].

    `fid` and `kid` need two images on either side, the others more than k; else they are NaN.
    """
    return {
        "fid": frechet(generated, real),
        "kid": kernel_distance(generated, real),
        **manifold(real, generated, k),
    }


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """FID: squared Frechet distance of Gaussians fitted to float32[M,D] and float32[N,D].

    |mean_a - mean_b|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^(1/2), Heusel et al. 2017, equation 6,
    unbiased covariances. With S = R'R the last trace is the sum of the singular values of R_a R_b'.
    R is the QR factor of the centred rows: no covariance is formed and no root taken, so nothing
    becomes complex and a deficient rank costs no accuracy. NaN below two rows.
    """
    if min(len(a), len(b)) < 2:
        return math.nan
    a = _finite(a)
    b = _finite(b)
    shift = a.mean(axis=0) - b.mean(axis=0)
    root_a = _covariance_root(a)
    root_b = _covariance_root(b)
    overlap = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    distance = (shift**2).sum() + (root_a**2).sum() + (root_b**2).sum() - 2 * overlap
    # Rounding may leave a distance of 0 slightly negative.
    return max(0.0, float(distance))


def _covariance_root(x: np.ndarray) -> np.ndarray:
    """float64[N,D] -> R float64[min(N,D),D] with R'R the unbiased covariance."""
    return np.asarray(np.linalg.qr((x - x.mean(axis=0)) / math.sqrt(len(x) - 1), mode="r"))


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """KID: unbiased MMD^2 of float32[M,D] and float32[N,D] with the kernel (x.y / D + 1)^3.

    Binkowski et al. 2018, section 4, over all pairs instead of random subsets. It may be negative;
    NaN below two rows.
    """
    if min(len(a), len(b)) < 2:
        return math.nan
    a = _with_one(a)
    b = _with_one(b)
    across = sum(float(part) for _, _, part in _visit(_cubes, _blocks(a), _blocks(b)))
    return _mean_off_diagonal(a) + _mean_off_diagonal(b) - 2 * across / (len(a) * len(b))


def _with_one(x: np.ndarray) -> np.ndarray:
    """float64[N,D+1]: x / sqrt(D) and a last feature of 1.

    The kernel is then (x.y)^3, and a row of padding, all zeros, adds exactly nothing.
    """
    return np.pad(_finite(x) / math.sqrt(x.shape[1]), [(0, 0), (0, 1)], constant_values=1.0)


def _mean_off_diagonal(x: np.ndarray) -> float:
    """Mean of (x_i.x_j)^3 over i != j; tiles below the diagonal are those above it."""
    blocks = _blocks(x)
    total = 0.0
    for i, block in enumerate(blocks):
        parts = [float(part) for _, _, part in _visit(_cubes, [block], blocks[i:])]
        total += parts[0] + 2 * sum(parts[1:])
    # The tiles on the diagonal hold i = j too, which the unbiased estimate leaves out.
    diagonal = ((x**2).sum(axis=1) ** 3).sum()
    return float(total - diagonal) / (len(x) * (len(x) - 1))


def manifold(real: np.ndarray, generated: np.ndarray, k: int) -> dict[str, float]:
    """Precision, recall, density and coverage of float32[M,D] against float32[N,D].

    NaN unless M, N > k. An image's ball reaches to its k-th nearest neighbour in its own set,
    itself not counted, and is open, as in the authors' package prdc. precision: share of generated
    images in any real ball. recall: share of real images in any generated ball (Kynkaanniemi et al.
    2019, section 2). density: real balls that a generated image lies in, over k. coverage: share of
    real balls with a generated image in them (Naeem et al. 2020, section 3).
    """
    if min(len(real), len(generated)) <= k:
        return dict.fromkeys(("precision", "recall", "density", "coverage"), math.nan)
    real, generated = _centred(real, generated)
    real_radii = _radii(real, k)
    generated_radii = _radii(generated, k)
    # Over the tiles counts add up, and a ball in any tile is enough for the other two.
    containing = np.zeros(len(generated), np.int64)
    recalled = np.zeros(len(real), bool)
    covered = np.zeros(len(real), bool)
    blocks = _blocks(real, real_radii), _blocks(generated, generated_radii)
    for rows, columns, (count, in_ball, has_any) in _visit(_in_balls, *blocks):
        # The rows behind `_length` are padding.
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
    for rows, _, smallest in _visit(partial(_smallest, k + 1), blocks, blocks):
        # The k + 1 smallest so far, with those of this tile.
        both = np.concatenate([best[rows], smallest[: _length(rows)]], axis=1)
        best[rows] = np.partition(both, k, axis=1)[:, : k + 1]
    # The largest of the k + 1 smallest distances: the row's own 0 is one of them.
    return best.max(axis=1)


def memorization(
    generated: np.ndarray, train: np.ndarray, held_out: np.ndarray, level: float = 0.95
) -> dict[str, float]:
    """Share of the images that are nearer to training images than to held-out real ones.

    Every image of float32[M,D] has a distance to its nearest row of each set, float32[N,D] both.
    `median_ratio` is the median of the first over the second (0/0 counts as 1); `share_nearer` the
    share of images for which the first is smaller, equality counting half, so that chance gives
    0.5; `low` and `high` its Wilson interval of that level. Images whose nearest real image is the
    same one err together, and in many dimensions a few real images are nearest to most: the
    interval is that of `effective` independent images, (sum n)^2 / sum n^2 over the numbers n of
    images that share one (Kish 1965). That of M images did not hold 0.5 in 21 to 61 % of trials
    under chance alone (64 Gaussian features, 200 to 1,000 images; at 95 %). `count` is M, `base` is
    N. NaN without images.

    Raises:
      ValueError: sets of different size, of which the larger would be nearer by its size alone.
    """
    if len(train) != len(held_out):
        raise ValueError(
            f"train: {len(train)} rows; must be {len(held_out)}, as many as held_out has"
        )
    if not len(generated) or not len(train):
        nothing = dict.fromkeys(
            ("median_ratio", "share_nearer", "low", "high", "effective"), math.nan
        )
        return nothing | {"count": len(generated), "base": len(train)}
    in_train, to_train = nearest(generated, train)
    in_held_out, to_held_out = nearest(generated, held_out)
    # The nearest image of either set, numbered over both: who shares one errs together.
    nearest_image = np.where(to_train <= to_held_out, in_train, len(train) + in_held_out)
    sharing = np.bincount(nearest_image)
    effective = len(generated) ** 2 / (sharing**2).sum()
    equal = to_train == to_held_out
    with np.errstate(divide="ignore", invalid="ignore"):
        # Equality is set apart first, because 0/0 would be NaN.
        ratio = np.where(equal, 1.0, to_train / to_held_out)
    share = float(np.where(equal, 0.5, to_train < to_held_out).mean())
    low, high = wilson(share * effective, effective, two_sided(level))
    return {
        "median_ratio": float(np.median(ratio)),
        "share_nearer": share,
        "low": float(low),
        "high": float(high),
        "effective": float(effective),
        "count": len(generated),
        "base": len(train),
    }


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
    base_blocks, query_blocks = map(_blocks, _centred(base, queries))
    for rows, columns, (squared, column) in _visit(_closest, query_blocks, base_blocks):
        squared = squared[: _length(rows)]
        column = column[: _length(rows)]
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


@cache
def compile_tiles(dimension: int, k: int = NEIGHBOURS) -> None:
    """Compiles every program that `report` and `nearest` need, for sets of any size."""
    # One set for each tile edge: all pairs of the two sets need all programs.
    sets = [np.zeros((count, dimension), np.float32) for count in (k + 2, SMALL_TILE + 1)]
    for a, b in itertools.product(sets, sets):
        manifold(a, b, k)
        kernel_distance(a, b)
        nearest(a, b)


class _Block(NamedTuple):
    """Some rows of a set on the device, padded to a tile's edge B."""

    at: slice
    # points float64[B,D], |point|^2 float64[B], and radii float32[B] if any
    arrays: tuple[jax.Array, ...]


def _blocks(points: np.ndarray, radii: np.ndarray | None = None) -> list[_Block]:
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
            blocks.append(_Block(at, jax.device_put(tuple(padded), _device())))
    return blocks


def _padded(array: np.ndarray, edge: int, fill: float) -> np.ndarray:
    """The array with rows of `fill` behind it, `edge` rows in all."""
    width = [(0, edge - len(array))] + [(0, 0)] * (array.ndim - 1)
    return np.pad(array, width, constant_values=fill)


def _device() -> jax.Device:
    """The device that computes the tiles: a TPU has no float64, so the host does it there."""
    return jax.local_devices(backend="cpu" if jax.default_backend() == "tpu" else None)[0]


def _length(at: slice) -> int:
    return at.stop - at.start


def _visit(
    tile: Callable, rows: list[_Block], columns: list[_Block]
) -> Iterator[tuple[slice, slice, Any]]:
    """Runs a tile program over all pairs of blocks; yields rows, columns and NumPy results."""
    for x in rows:
        for y in columns:
            # float64 is on for the tile alone: the rest of the program is float32.
            with jax.enable_x64(True):
                result = jax.device_get(tile(x.arrays, y.arrays))
            yield x.at, y.at, result


def _squared(x: tuple, y: tuple) -> jax.Array:
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
    squared = _squared(x, y)
    # `top_k` finds the largest, hence the two signs.
    return -jax.lax.top_k(-squared, min(count, squared.shape[1]))[0]


@jax.jit
def _closest(x: tuple, y: tuple) -> tuple[jax.Array, jax.Array]:
    """Smallest squared distance of each row, and the first column that has it."""
    squared = _squared(x, y)
    return squared.min(axis=1), squared.argmin(axis=1)


@jax.jit
def _in_balls(x: tuple, y: tuple) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rows' balls a column is in; is a row in any column's ball; is any column in its ball."""
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
        raise ValueError("features: NaN or infinite values; must be finite")
    return np.asarray(features, np.float64)


def _centred(reference: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 about the mean of the first.

    Distances stay as they are; norms and with them rounding errors shrink.
    """
    reference = _finite(reference)
    other = _finite(other)
    mean = reference.mean(axis=0)
    return reference - mean, other - mean
