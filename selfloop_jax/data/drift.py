"""Neutral drift: the subgroups that a perfect copy machine loses by chance alone.

A copy machine generates the composition of its pool, by chance: labels are requested, so their
numbers are given, and the groups within a label are multinomial. Under `replace` that is the
Wright-Fisher model with several alleles: a subgroup without an image in one generation never comes
back. A loop whose coverage lies above this null keeps subgroups that a copy would have lost, one
below it loses more than chance takes. Pools follow from the pool rules themselves
(`data/pool_rules.py`), with the noise of the subsets that a rule takes. NumPy and SciPy only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from selfloop_jax.config import PoolConfig
from selfloop_jax.data import pool_rules
from selfloop_jax.data.pool_rules import FloatOrArray, ShareInputs, Sizes
from selfloop_jax.runtime import rng

MOST_SUMMED = 1000  # images of a class up to which probabilities are summed, which is faster


@dataclass(frozen=True)
class CopyLoop:
    """A loop whose generator is a copy machine, in the sizes of an observed run.

    pool: section of the config; real: the real images, int[C,G]; generated: images of each class in
    each generation, int[generations,C]; reserve: the real images that a rule may take anew,
    int[C,G], or None where they are not known; mixing: probability that an image has the group of
    an image of any class of the pool in place of one of its own class. A copy machine has none;
    with some it is the Wright-Fisher model with migration between classes.
    """

    pool: PoolConfig
    real: np.ndarray
    generated: np.ndarray
    reserve: np.ndarray | None = None
    mixing: float = 0.0


def coverage(loop: CopyLoop, key_path: rng.KeyPath, loops: int = 400) -> np.ndarray:
    """Returns the subgroup coverage of simulated copy machines, float64[loops,generations].

    The share of the subgroups with real images that have a generated one, as in
    `composition.subgroup_coverage`. NaN where there are no real images at all.
    """
    if not loop.real.any():
        return np.full((loops, len(loop.generated)), np.nan)
    covered = []
    for counts in generated_counts(loop, key_path, loops):
        covered.append((counts > 0)[:, loop.real > 0].mean(axis=1))
    return np.stack(covered, axis=1)


def generated_counts(loop: CopyLoop, key_path: rng.KeyPath, loops: int) -> np.ndarray:
    """Returns the images that simulated copy machines generate, int64[generations,loops,C,G].

    A class without real images gets none. The sets of a shorter run begin those of a longer one
    whose generations are of one size.
    """
    # A class without real images has no shares.
    known = loop.real.sum(axis=1) > 0
    real = loop.real[known]
    real_share = _shares(real, real)
    reserve = None if loop.reserve is None else _shares(loop.reserve[known], real_share)
    noise = TableNoise(key_path, loops)
    found = np.zeros((len(loop.generated), loops, *loop.real.shape), np.int64)
    generated: list[FloatOrArray] = []
    for g, of_class in enumerate(loop.generated[:, known]):
        shares = ShareInputs(loop.pool, g, real_share, generated, _sizes(loop, known), reserve)
        pool = pool_rules.sampled_share(shares, noise)
        if loop.mixing:
            pool = mixed(pool, real.sum(axis=1), loop.mixing)
        counts = noise.counts(pool, _column(of_class), "generated", g)
        found[g][:, known] = counts
        generated.append(_shares(counts, pool))
    return found


def mixed(shares: np.ndarray, sizes: np.ndarray, mixing: float) -> np.ndarray:
    """Returns P(group | class) [...,C,G] of a generator that mixes classes of these sizes [C]."""
    weights = sizes / max(sizes.sum(), 1)
    every = (shares * weights[:, None]).sum(axis=-2, keepdims=True)
    return np.asarray((1 - mixing) * shares + mixing * every)


def pool_counts(
    loop: CopyLoop, key_path: rng.KeyPath, loops: int, quality: Sequence[float] = ()
) -> np.ndarray:
    """Returns the expected images in the pools of copies, float64[generations,loops,C,G].

    quality: what an image of each generation counts in real ones, 1 by default. A class without
    real images has none. Raises ValueError for a rule without `weights`.
    """
    generations = len(loop.generated)
    copies = generated_counts(loop, key_path, loops)
    worth = [q * of for q, of in zip(quality or [1.0] * generations, copies, strict=True)]
    pools = [expected_pool(loop, g, worth) for g in range(generations)]
    # Generation 0 has the same pool in every loop.
    return np.stack([np.broadcast_to(pool, copies.shape[1:]) for pool in pools])


def expected_pool(loop: CopyLoop, g: int, generated: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the expected images in the pool of generation g, float64[...,C,G].

    Of the loop's real images and of the counts `generated`, [...,C,G] of each earlier generation,
    which take the place of the loop's own. Raises ValueError for a rule without `weights`.
    """
    rule = pool_rules.POOL_RULES[loop.pool.rule]
    if not rule.weighted:
        raise ValueError(f"pool.rule = {loop.pool.rule}: says not how many images it takes")
    sizes = _sizes(loop, np.ones(len(loop.real), bool))
    of_real, *of_generated = pool_rules.weights(loop.pool, g, sizes)
    known = loop.real.sum(axis=1, keepdims=True) > 0
    source = loop.reserve if rule.takes_reserve and g and loop.reserve is not None else loop.real
    pool = of_real * _shares(source, np.where(known, loop.real, 1)) * known
    size = np.maximum(np.asarray(sizes.generated), np.finfo(float).tiny)
    for weight, counts in zip(of_generated, generated, strict=False):
        # What the pool takes of a set, over what the set has.
        pool = pool + weight / size * counts
    return np.asarray(pool)


def _sizes(loop: CopyLoop, known: np.ndarray) -> Sizes:
    """Images per class of the `known` classes, [C,1]."""
    real = loop.real.sum(axis=1)
    return Sizes(
        real=_column(real[known]),
        # The rules weight all generations alike; what is sampled has each one's own size.
        generated=_column(loop.generated[:, known].mean(axis=0)),
        class_share=_column(real[known] / max(real.sum(), 1)),
    )


def _column(values: np.ndarray) -> np.ndarray:
    """[C,1] of [C]: one number per class, for all of its groups."""
    return np.asarray(values, np.float64)[:, None]


def _shares(counts: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """P(group | class) of counts [...,C,G]; of a class without images the shares of `empty`."""
    total = counts.sum(axis=-1, keepdims=True)
    share = counts / np.maximum(total, 1)
    return np.where(total > 0, share, empty / empty.sum(axis=-1, keepdims=True))


@dataclass(frozen=True)
class TableNoise:
    """The noise of pool rules on tables of shares, [C,G] or [loops,C,G]: see `pool_rules.Noise`.

    A share of one number is no table: its noise is one number per class.
    """

    key_path: rng.KeyPath
    loops: int

    def binomial(self, share: FloatOrArray, n: FloatOrArray, *name: int | str) -> np.ndarray:
        """Shares among n independent images of each class; n is rounded, and where 0 keeps them."""
        if np.ndim(share):
            return _shares(self.counts(np.asarray(share), n, *name), np.asarray(share))
        whole = np.rint(np.asarray(n, np.float64))
        hits = self._binomial((self.loops, *whole.shape[-2:]), whole, share, *name)
        return np.where(whole > 0, hits / np.maximum(whole, 1), share)

    def subset(
        self, share: FloatOrArray, n: FloatOrArray, of: FloatOrArray, *name: int | str
    ) -> np.ndarray:
        """Shares among n of `of` images of each class.

        Each image stays with probability n / of: a subgroup is left empty about as often as by a
        subset of exactly n, whatever the size, and the mean composition is the same.
        """
        share = np.asarray(share)
        of = np.asarray(of, np.float64)
        kept = np.clip(np.asarray(n, np.float64) / np.maximum(of, 1), 0, 1)
        shape = (self.loops, *share.shape[-2:])
        return _shares(self._binomial(shape, np.rint(share * of), kept, *name), share)

    def counts(self, share: np.ndarray, n: FloatOrArray, *name: int | str) -> np.ndarray:
        """Multinomial counts int[loops,C,G] of n images per class, [C,1] or [loops,C,1]."""
        shape = (self.loops, *share.shape[-2:])
        share = np.broadcast_to(share, shape)
        left = np.rint(np.broadcast_to(np.asarray(n, np.float64), (*shape[:-1], 1)))[..., 0]
        # The share of this and all later groups.
        rest = np.cumsum(share[..., ::-1], axis=-1)[..., ::-1]
        counts = np.zeros(shape, np.int64)
        for k in range(shape[-1]):
            # Group after group, each binomial among the images that are left.
            p = share[..., k] / np.maximum(rest[..., k], np.finfo(float).tiny)
            # The last group takes all: rounding of the sums must not leave images without one.
            p = np.where(rest[..., k] - share[..., k] <= 1e-12, 1, p)
            taken = self._binomial(shape[:-1], left, p, *name, k)
            counts[..., k] = taken
            left = left - taken
        return counts

    def _binomial(
        self, shape: tuple[int, ...], n: np.ndarray, p: FloatOrArray, *name: int | str
    ) -> np.ndarray:
        """Binomial numbers by inversion, float64 of that shape; n and p broadcast against it."""
        n = np.broadcast_to(np.asarray(n, np.float64), shape)
        p = np.broadcast_to(p, shape)
        uniform = rng.inner_uniforms((*self.key_path, *name), shape)
        random = (n > 0) & (p > 0) & (p < 1)
        hits = np.where(p >= 1, n, 0.0)
        hits[random] = _quantile(uniform[random], n[random], p[random])
        return hits


def _quantile(u: np.ndarray, n: np.ndarray, p: np.ndarray) -> np.ndarray:
    """The smallest k with P(X <= k) >= u for binomial X, float64[N]; 0 < p < 1, n > 0 whole."""
    if n.max(initial=0) > MOST_SUMMED:
        from scipy import stats  # here, because it takes a second to import and few runs need it

        return np.asarray(stats.binom.ppf(u, n, p))
    # Of failures where they are rarer: the sum starts at (1 - p)^n, which must not vanish.
    flipped = p > 0.5
    p = np.where(flipped, 1 - p, p)
    u = np.where(flipped, 1 - u, u)
    odds = p / (1 - p)
    mass = (1 - p) ** n
    total = mass.copy()
    below = np.zeros(len(u))
    for k in range(1, int(n.max(initial=0)) + 1):
        more = np.where(flipped, total <= u, total < u)
        if not more.any():
            break
        below += more
        mass *= np.maximum(n - k + 1, 0) / k * odds
        total += mass
    below = np.minimum(below, n)
    return np.where(flipped, n - below, below)
