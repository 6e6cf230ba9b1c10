"""Two loops without networks, through the pool rules of the real one: what theory says, they must do.

In `multinomial_loop` a generator is the P(group | label) of its pool, in `gaussian_loop` the
Gaussian fitted to it (MAD, arXiv 2307.01850, section 2; arXiv 2404.01413). Everything else is as in
a loop with networks: the same pools, generations numbered alike, every number keyed by its address.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from selfloop_jax.data.images import REAL, Images
from selfloop_jax.errors import UsageError
from selfloop_jax.loop import pool_rules
from selfloop_jax.runtime import rng
from selfloop_jax.runtime.rng import normals


def points(label: np.ndarray, group: np.ndarray, origin: int, first: int = 0) -> Images:
    """N images of one black pixel with ids from `first` on: what a loop without networks moves about."""
    label = np.asarray(label, np.int32)
    return Images(
        pixels=np.zeros((len(label), 1, 1, 3), np.uint8),
        label=label,
        group=np.asarray(group, np.int32),
        origin=np.full(len(label), origin, np.int32),
        id=first + np.arange(len(label), dtype=np.uint32),
        condition=label,
    )


def run(
    section: Any,
    address: rng.KeyPath,
    real: Images,
    reserve: Images,
    generations: int,
    generation: Callable[[int, Images], Images],
) -> None:
    """The loop: `generation(g, pool of g) -> images drawn by g`, under the rule of section `pool`."""
    drawn: list[Images] = []
    for g in range(generations):
        needed = [drawn[i] for i in pool_rules.source_generations(section, g)]
        drawn.append(
            generation(g, pool_rules.build(section, (*address, "pool"), g, real, reserve, needed))
        )


def multinomial_loop(
    section: Any,
    address: rng.KeyPath,
    real: Images,
    reserve: Images,
    generations: int,
    count: int,
    groups: int,
) -> tuple[np.ndarray, np.ndarray]:
    """P(group | label) float[generations,C,G] in the pools, and among the `count` images drawn from them.

    Labels are dealt like those of the real set, so a class's share of the images never drifts.
    UsageError where a pool lacks a class. NaN for a class of which nothing is drawn.
    """
    classes = int(real.label.max()) + 1
    pools, shares = [], []

    def generation(g: int, trained_on: Images) -> Images:
        pools.append(table(trained_on, classes, groups))
        drawn = _multinomial((*address, "generation", g), pools[-1], real, g, count)
        shares.append(table(drawn, classes, groups))
        return drawn

    run(section, address, real, reserve, generations, generation)
    return np.stack(pools), np.stack(shares)


def table(images: Images, classes: int, groups: int) -> np.ndarray:
    """P(group | label) float64[C,G] of a set; NaN for a class without images."""
    joint = images.joint(classes, groups)
    total = joint.sum(axis=1, keepdims=True)
    return np.divide(joint, total, out=np.full(joint.shape, np.nan), where=total > 0)


def _multinomial(
    address: rng.KeyPath, shares: np.ndarray, real: Images, g: int, count: int
) -> Images:
    ids = np.arange(count)
    label = real.label[rng.permutation((*address, "condition"), len(real))[ids % len(real)]]
    if np.isnan(shares[np.unique(label)]).any():
        raise UsageError(
            f"pool of generation {g}: a class has no image, so there is nothing to draw it from"
        )
    u = rng.uniforms((*address, "group"), ids)
    group = (u[:, None] >= np.cumsum(shares, axis=1)[label, :-1]).sum(axis=1)
    return points(label, group, g)


def gaussian_loop(
    section: Any,
    address: rng.KeyPath,
    n_real: int,
    generations: int,
    count: int,
    dimension: int,
    scale: float = 1.0,
    unbiased: bool = True,
    n_reserve: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means float[generations,D], traces of the covariance float[generations] and sizes of the pools.

    Real vectors are standard normal. The generator is the mean and the covariance of its pool
    (divided by n - 1, or by n where not `unbiased`); it draws with its covariance times `scale`.
    """
    everything = normals((*address, "real", "vectors"), (n_real + n_reserve, dimension))
    vectors, found = {REAL: everything}, []
    whole = points(np.zeros(len(everything)), np.zeros(len(everything)), REAL)
    real, reserve = whole.take(slice(n_real)), whole.take(slice(n_real, None))

    def generation(g: int, trained_on: Images) -> Images:
        x = look_up(vectors, trained_on)
        mean, covariance = (
            x.mean(axis=0),
            np.cov(x, rowvar=False, ddof=int(unbiased)).reshape(dimension, -1),
        )
        found.append((mean, np.trace(covariance), len(x)))
        z = normals((*address, "generation", g, "vectors"), (count, dimension))
        vectors[g] = mean + np.sqrt(scale) * z @ _root(covariance)
        return points(np.zeros(count), np.zeros(count), g)

    run(section, address, real, reserve, generations, generation)
    return tuple(np.stack(column) for column in zip(*found, strict=True))


def look_up(vectors: dict[int, np.ndarray], images: Images) -> np.ndarray:
    """float64[N,D]: the vector of every image, known by its (origin, id)."""
    found = np.empty((len(images), vectors[REAL].shape[1]))
    for origin in np.unique(images.origin):
        at = images.origin == origin
        found[at] = vectors[int(origin)][images.id[at]]
    return found


def _root(covariance: np.ndarray) -> np.ndarray:
    """Symmetric square root, which the covariance of fewer points than dimensions has as well."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
