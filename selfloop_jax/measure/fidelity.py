"""Closeness of generated to real images, on features float32[N,D] of a frozen network.

FID (Heusel et al. 2017), KID (Binkowski et al. 2018), precision and recall (Kynkaanniemi et al.
2019), density and coverage (Naeem et al. 2020). Whoever reports a FID or KID names the network that
the features come from. None of these numbers means much alone: `report` gives each with its
*baseline*, the same number for as many other real images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import jax
import numpy as np

from selfloop_jax.measure import distances
from selfloop_jax.runtime import rng

NEIGHBOURS = 5  # the k of precision, recall, density and coverage, as in the literature

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

    def halves(self, key_path: rng.KeyPath) -> tuple["FeatureSet", "FeatureSet"]:
        """Two random halves, of which the first may have one image more."""
        shuffled = self.shuffled(key_path)
        half = (len(self) + 1) // 2
        return shuffled.take(np.arange(half)), shuffled.take(np.arange(half, len(self)))

    def take(self, rows: np.ndarray) -> "FeatureSet":
        """The images of some rows (integers or a mask), in that order."""
        return FeatureSet(self.features[rows], self.label[rows], self.group[rows])


@dataclass(frozen=True)
class Report:
    """Numbers {key: {"value", "baseline"}} overall, by class and by group."""

    metrics: dict[str, dict[str, float]]
    by_class: list[dict[str, dict[str, float]]]
    by_group: list[dict[str, dict[str, float]]]
    notes: list[str]  # plain sentences on what to beware of


def report(
    generated: FeatureSet,
    reference: FeatureSet,
    baseline: FeatureSet,
    classes: int,
    groups: int,
    key_path: rng.KeyPath,
    k: int = NEIGHBOURS,
) -> Report:
    """`summary` of generated images against real ones, overall, by class and by group.

    `reference` and `baseline` are real images, sampled alike, with as many of each label and group
    in proportion. Neither may be what the features were trained on: a classifier squeezes its own
    training images together, so that even real images look imprecise against them. A baseline puts
    those images in place of generated ones. The larger of the two is cut to the size of the
    smaller, since the bias of most of these numbers depends on it; `key_path` decides which images
    stay. Images of unknown group count overall and in their class.
    """
    # Shuffled, so that a set cut to its first n images is a random subset.
    generated = generated.shuffled((*key_path, "generated"))
    baseline = baseline.shuffled((*key_path, "baseline"))
    sets = (generated, reference, baseline)
    dimension = reference.features.shape[1]
    notes = _size_notes(len(generated), len(baseline), parts=bool(classes or groups))
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
    return Report(_with_baseline(sets, k), by["by_class"], by["by_group"], notes)


def _with_baseline(sets: Sequence[FeatureSet], k: int) -> dict[str, dict[str, float]]:
    """`summary` of as many generated and other real images: {key: number}.

    sets: generated, reference, baseline.
    """
    generated, reference, others = (one.features for one in sets)
    # FID, precision and the others shift with the number of images, so both sets have as many.
    count = min(len(generated), len(others)) if len(others) else len(generated)
    value = summary(generated[:count], reference, k)
    baseline = summary(others[:count], reference, k)
    return {key: {"value": value[key], "baseline": baseline[key]} for key in value}


def _size_notes(generated: int, baseline: int, parts: bool) -> list[str]:
    """What was left out to make sets equal, overall and in `parts`."""
    if not baseline or generated == baseline:
        return []
    where = ", overall and in every class and group" if parts else ""
    return [
        f"sizes: of {generated} generated images and {baseline} real ones for the baseline the "
        f"larger set is cut to the smaller{where}"
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
    a = distances.finite(a)
    b = distances.finite(b)
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
    across = sum(
        float(part)
        for _, _, part in distances.visit(_cubes, distances.to_blocks(a), distances.to_blocks(b))
    )
    return _mean_off_diagonal(a) + _mean_off_diagonal(b) - 2 * across / (len(a) * len(b))


def _with_one(x: np.ndarray) -> np.ndarray:
    """float64[N,D+1]: x / sqrt(D) and a last feature of 1.

    The kernel is then (x.y)^3, and a row of padding, all zeros, adds exactly nothing.
    """
    return np.pad(
        distances.finite(x) / math.sqrt(x.shape[1]), [(0, 0), (0, 1)], constant_values=1.0
    )


def _mean_off_diagonal(x: np.ndarray) -> float:
    """Mean of (x_i.x_j)^3 over i != j; tiles below the diagonal are those above it."""
    blocks = distances.to_blocks(x)
    total = 0.0
    for i, block in enumerate(blocks):
        parts = [float(part) for _, _, part in distances.visit(_cubes, [block], blocks[i:])]
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
    real, generated = distances.centred(real, generated)
    real_radii = distances.radii_of(real, k)
    generated_radii = distances.radii_of(generated, k)
    # Over the tiles counts add up, and a ball in any tile is enough for the other two.
    containing = np.zeros(len(generated), np.int64)
    recalled = np.zeros(len(real), bool)
    covered = np.zeros(len(real), bool)
    blocks = distances.to_blocks(real, real_radii), distances.to_blocks(generated, generated_radii)
    for rows, columns, (count, in_ball, has_any) in distances.visit(_in_balls, *blocks):
        # The rows behind `length` are padding.
        containing[columns] += count[: distances.length(columns)]
        recalled[rows] |= in_ball[: distances.length(rows)]
        covered[rows] |= has_any[: distances.length(rows)]
    return {
        "precision": float((containing > 0).mean()),
        "recall": float(recalled.mean()),
        "density": float(containing.mean() / k),
        "coverage": float(covered.mean()),
    }


@cache
def compile_tiles(dimension: int, k: int = NEIGHBOURS) -> None:
    """Compiles every program that `report` needs, for sets of any size."""
    for a, b in distances.pairs_of_all_tiles(dimension, k + 2):
        manifold(a, b, k)
        kernel_distance(a, b)


@jax.jit
def _in_balls(x: tuple, y: tuple) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rows' balls a column is in; is a row in any column's ball; is any column in its ball."""
    squared = distances.squared_distances(x, y)
    in_row_ball = squared < x[2][:, None]
    in_column_ball = squared < y[2][None, :]
    return in_row_ball.sum(axis=0), in_column_ball.any(axis=1), in_row_ball.any(axis=1)


@jax.jit
def _cubes(x: tuple, y: tuple) -> jax.Array:
    """Sum of (x_i.y_j)^3."""
    inner = x[0] @ y[0].T
    return (inner * inner * inner).sum()
