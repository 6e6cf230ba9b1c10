"""Exact tests, over seeds, of whether a loop changed the bias.

They rest on one number per seed, a contrast d_s of a loop and its control in a bias b that the
caller orients: larger is more biased. The null of every test is that the two can be exchanged
within a seed: then d_s is as likely as -d_s, and a sign-flip test of the mean is exact however the
seeds scatter, random walks of the bias included. The tests compare ends across seeds: the
generations of one seed depend on each other and are no repetitions.

"Mean contrast 0" is a wider null than "can be exchanged", and there the test is not exact: of
contrasts of six seeds that have mean 0 and are skewed, a test at 5 % calls 10 % significant where
they are lognormal with a logarithm of standard deviation 1, and a quarter where one seed in five
has -0.2 and the others +0.05. A verdict is about the usual sign of the contrasts as much as about
their mean: look at the seeds. NumPy and SciPy only.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from selfloop_jax.runtime.rng import words

MOST_SEEDS = 20  # 2^20 patterns of signs; of more seeds as many patterns are sampled
MOST_JOINT = 14  # the same of a joint test, whose patterns are kept for all contrasts at once

POWER = 0.8
MOST_NEEDED = 100  # seeds; beyond that a number would say no more than "many"


def sign_flip(d: np.ndarray) -> float:
    """Exact two-sided p of the mean of d float[S] over all 2^S patterns of signs.

    It is never below 2 / 2^S. Above 20 seeds 2^20 - 1 patterns are sampled and the observed one
    counted in, which is valid too. ValueError where a contrast is not finite.
    """
    # Every pattern of signs is equally likely under the null; `least` lets ties count.
    sums, least = _flipped(d)
    return float(np.mean(np.abs(sums) >= abs(sums[0]) - least))


def _flipped(d: np.ndarray) -> tuple[np.ndarray, float]:
    """Sums under all patterns of signs, the observed one first, and how far rounding reaches."""
    d = np.asarray(d, np.float64)
    if d.ndim != 1 or not np.isfinite(d).all():
        raise ValueError(f"contrasts of shape {d.shape}: must be finite numbers, one per seed")
    # Each seed doubles the patterns, so the first one always is the observed one.
    sums = np.zeros(1) if len(d) <= MOST_SEEDS else np.zeros(2**MOST_SEEDS)
    for seed, value in enumerate(d):
        if len(d) <= MOST_SEEDS:
            sums = np.concatenate([sums + value, sums - value])
        else:
            # One random bit per pattern.
            minus = words(("sign flip", seed), len(sums)) & np.uint64(1)
            minus[0] = 0
            sums += np.where(minus, -value, value)
    return sums, 1e-12 * float(np.abs(d).sum())


def joint_sign_flip(contrasts: np.ndarray, one_sided: bool = False) -> np.ndarray:
    """Adjusted p-values float[M] of M contrasts float[M,S] of the same S seeds.

    Two-sided for a mean of 0, or one-sided for a mean of at most 0.
    All contrasts of a seed change sign together, so whatever they have in common, say images or the
    runs of a control, counts as it is: single-step min-p (Westfall and Young 1993, algorithm 2.5).
    The chance that any p-value of a true null is adjusted to alpha or less is at most alpha. NaN:
    that contrast lacks the seed. Above 14 seeds 2^14 - 1 patterns are sampled.
    """
    contrasts = np.asarray(contrasts, np.float64)
    known = np.where(np.isnan(contrasts), 0.0, contrasts)
    sums = _signs(known.shape[1]) @ known.T  # [patterns, M], the observed pattern first
    if not one_sided:
        sums = np.abs(sums)
    least = 1e-12 * np.abs(known).sum(axis=1)
    p = np.empty_like(sums)
    for m, column in enumerate(sums.T):
        # How many patterns are at least as far from 0 as each one.
        p[:, m] = len(column) - np.searchsorted(np.sort(column), column - least[m])
    p /= len(p)
    smallest = p.min(axis=1)
    return np.array([np.mean(smallest <= observed * (1 + 1e-12)) for observed in p[0]])


def _signs(seeds: int) -> np.ndarray:
    """float64[P,S] of 1 and -1: all patterns of signs, or a sample; the first has no -1."""
    if seeds <= MOST_JOINT:
        minus = np.arange(2**seeds)[:, None] >> np.arange(seeds) & 1 == 1
    else:
        random = words(("joint sign flip",), 2**MOST_JOINT * seeds).reshape(-1, seeds)
        minus = random & np.uint64(1) == 1
        minus[0] = False
    return np.where(minus, -1.0, 1.0)


def least_seeds(metrics: int, alpha: float) -> int:
    """Fewest seeds S whose smallest p, 2 / 2^S, is at most alpha after Holm over the metrics."""
    return math.ceil(math.log2(2 * metrics / alpha))


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adjusted p-values float[M] (Holm 1979).

    The chance that any p-value of a true hypothesis is adjusted to alpha or less is at most alpha.
    """
    p = np.asarray(p, np.float64)
    order = np.argsort(p, kind="stable")
    # The smallest p times M, the next times M - 1, ...; no one falls below its predecessor.
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


def equivalent(contrasts: np.ndarray, margins: np.ndarray) -> np.ndarray:
    """p for |mean| < margin, float[M], of contrasts and margins float[M,S].

    The larger p of two one-sided sign-flip tests (Schuirmann 1987), adjusted as `joint_sign_flip`
    does over both tests of all contrasts. Exact where contrasts scatter symmetrically about their
    mean; of skewed ones a mean that lies on the margin can pass far more often than at the level.
    """
    p = joint_sign_flip(np.concatenate([contrasts + margins, margins - contrasts]), one_sided=True)
    return np.maximum(*np.split(p, 2))


def beyond(contrasts: np.ndarray, margins: np.ndarray) -> np.ndarray:
    """p for |mean| > margin, float[M]: the smaller p of the two opposite tests, likewise."""
    p = joint_sign_flip(np.concatenate([contrasts - margins, -contrasts - margins]), one_sided=True)
    return np.minimum(*np.split(p, 2))


def interval(d: np.ndarray, level: float) -> tuple[float, float]:
    """Student-t interval of the mean over seeds, for display only: no verdict uses it.

    NaN with fewer than two seeds.
    """
    if len(d) < 2:
        return math.nan, math.nan
    quantile = special.stdtrit(len(d) - 1, (1 + level) / 2)  # of Student's t
    half = quantile * np.std(d, ddof=1) / math.sqrt(len(d))
    return float(np.mean(d) - half), float(np.mean(d) + half)


def smallest_detectable(d: np.ndarray, metrics: int, alpha: float) -> float:
    """True mean contrast that as many seeds with this scatter would find with 80 % power.

    In the metric's units, at Holm's first level, alpha / metrics, by the t approximation. Where
    only contrasts of one sign in all seeds are significant that is too hopeful, and the chance of
    one sign among normal contrasts is used. Infinite where that many seeds can find nothing, NaN
    with fewer than two.
    """
    seeds = len(d)
    level = alpha / metrics
    if seeds < 2:
        return math.nan
    if seeds < least_seeds(metrics, alpha):
        return math.inf
    spread = float(np.std(d, ddof=1))
    # The second smallest p is 4 / 2^S: beyond the level, only S equal signs are significant.
    if 4 / 2**seeds > level:
        # S normal contrasts are all above 0 with probability Phi(mean / spread)^S.
        return spread * float(special.ndtri(POWER ** (1 / seeds)))
    quantiles = special.stdtrit(seeds - 1, 1 - level / 2) + special.stdtrit(seeds - 1, POWER)
    return spread * float(quantiles) / math.sqrt(seeds)


def seeds_needed(d: np.ndarray, distance: float, contrasts: int, alpha: float) -> float:
    """Seeds that tell a mean from a bound `distance` away with 80 % power; infinite above 100.

    For contrasts that scatter as d float[S] does, in a family of that many, by the t approximation
    at level alpha / contrasts. Never below the number that always suffices for p <= alpha, which is
    all that can be said where the seeds are too few for any test: so few do not show the scatter.
    """
    least = least_seeds(contrasts, alpha)
    if len(d) < least_seeds(1, alpha):
        return least
    spread = float(np.std(d, ddof=1))
    for seeds in range(least, MOST_NEEDED + 1):
        quantile = special.stdtrit(seeds - 1, 1 - alpha / contrasts / 2)
        found = quantile + special.stdtrit(seeds - 1, POWER)
        if spread * float(found) / math.sqrt(seeds) <= distance:
            return seeds
    return math.inf
