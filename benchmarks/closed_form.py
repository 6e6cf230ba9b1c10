"""Two loops without networks, through the pool rules of the real one, against theory.

In `multinomial_loop` a generator is the P(group | label) of its pool, in `gaussian_loop` the
Gaussian fitted to it (MAD, arXiv 2307.01850, section 2; arXiv 2404.01413). Everything else is as in
a loop with networks: the same pools, generations numbered alike, numbers keyed by their key path.
"""

from collections.abc import Callable

import numpy as np

from selfloop_jax.config import PoolConfig
from selfloop_jax.data import pool_rules
from selfloop_jax.data.images import REAL, Images
from selfloop_jax.errors import UsageError
from selfloop_jax.runtime import rng
from selfloop_jax.runtime.rng import normals


def points(label: np.ndarray, group: np.ndarray, origin: int, first: int = 0) -> Images:
    """N images of one black pixel with ids from `first` on: all that such a loop needs."""
    label = np.asarray(label, np.int32)
    return Images(
        pixels=np.zeros((len(label), 1, 1, 3), np.uint8),
        label=label,
        group=np.asarray(group, np.int32),
        origin=np.full(len(label), origin, np.int32),
        id=first + np.arange(len(label), dtype=np.uint32),
        requested_label=label,
    )


def run(
    section: PoolConfig,
    key_path: rng.KeyPath,
    real: Images,
    reserve: Images,
    generations: int,
    generation: Callable[[int, Images], Images],
) -> None:
    """The loop: `generation(g, pool of g) -> images of g`, under the rule of section `pool`."""
    generated: list[Images] = []
    for g in range(generations):
        needed = [generated[i] for i in pool_rules.source_generations(section, g)]
        pool = pool_rules.build(section, (*key_path, "pool"), g, real, reserve, needed)
        generated.append(generation(g, pool))


def multinomial_loop(
    section: PoolConfig,
    key_path: rng.KeyPath,
    real: Images,
    reserve: Images,
    generations: int,
    count: int,
    groups: int,
) -> tuple[np.ndarray, np.ndarray]:
    """P(group | label) float[generations,C,G] in the pools and in `count` generated images.

    Labels are requested as in the real set, so a class's share of the images never drifts.
    UsageError where a pool lacks a class. NaN for a class of which nothing is generated.
    """
    classes = int(real.label.max()) + 1
    pools: list[np.ndarray] = []
    shares: list[np.ndarray] = []

    def generation(g: int, trained_on: Images) -> Images:
        pools.append(table(trained_on, classes, groups))
        generated = copies((*key_path, "generation", g), pools[-1], real, g, count)
        shares.append(table(generated, classes, groups))
        return generated

    run(section, key_path, real, reserve, generations, generation)
    return np.stack(pools), np.stack(shares)


def table(images: Images, classes: int, groups: int) -> np.ndarray:
    """P(group | label) float64[C,G] of a set; NaN for a class without images."""
    counts = images.counts(classes, groups)
    total = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)


def copies(key_path: rng.KeyPath, shares: np.ndarray, real: Images, g: int, count: int) -> Images:
    """`count` images of a copy machine: labels as in the real set, groups with these shares."""
    ids = np.arange(count)
    label = real.label[rng.permutation((*key_path, "condition"), len(real))[ids % len(real)]]
    if np.isnan(shares[np.unique(label)]).any():
        raise UsageError(
            f"pool of generation {g}: a class has no image, so there is nothing to learn it from"
        )
    u = rng.uniforms((*key_path, "group"), ids)
    group = (u[:, None] >= np.cumsum(shares, axis=1)[label, :-1]).sum(axis=1)
    return points(label, group, g)


def gaussian_loop(
    section: PoolConfig,
    key_path: rng.KeyPath,
    n_real: int,
    generations: int,
    count: int,
    dimension: int,
    scale: float = 1.0,
    unbiased: bool = True,
    n_reserve: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means float[generations,D], traces of the covariance float[generations], pool sizes.

    Real vectors are standard normal. The generator is the mean and the covariance of its pool
    (divided by n - 1, or by n where not `unbiased`); it samples with its covariance times `scale`.
    """
    everything = normals((*key_path, "real", "vectors"), (n_real + n_reserve, dimension))
    vectors = {REAL: everything}
    moments = []
    whole = points(np.zeros(len(everything)), np.zeros(len(everything)), REAL)
    real = whole.take(slice(n_real))
    reserve = whole.take(slice(n_real, None))

    def generation(g: int, trained_on: Images) -> Images:
        x = look_up(vectors, trained_on)
        mean = x.mean(axis=0)
        covariance = np.cov(x, rowvar=False, ddof=int(unbiased)).reshape(dimension, -1)
        moments.append((mean, np.trace(covariance), len(x)))
        z = normals((*key_path, "generation", g, "vectors"), (count, dimension))
        vectors[g] = mean + np.sqrt(scale) * z @ _root(covariance)
        return points(np.zeros(count), np.zeros(count), g)

    run(section, key_path, real, reserve, generations, generation)
    means, traces, sizes = (np.stack(column) for column in zip(*moments, strict=True))
    return means, traces, sizes


def look_up(vectors: dict[int, np.ndarray], images: Images) -> np.ndarray:
    """float64[N,D]: the vector of every image, known by its (origin, id)."""
    rows = np.empty((len(images), vectors[REAL].shape[1]))
    for origin in np.unique(images.origin):
        at = images.origin == origin
        rows[at] = vectors[int(origin)][images.id[at]]
    return rows


def _root(covariance: np.ndarray) -> np.ndarray:
    """Symmetric square root; a covariance of fewer points than dimensions has one, too."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
