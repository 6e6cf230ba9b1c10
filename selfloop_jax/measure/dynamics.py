"""Forecast of a loop's bias: from shares in a pool to those generated, to the next pool.

A *share* is P(group | class), most often that of the bias-aligned group. Two curves are measured
apart from the loop and taken as given: the response R, which maps the share in a generator's pool
(and, fine-tuned, the share expected of the generator it started from) to the share expected of it,
and the gap of a classifier over the share in its pool. The pool rules do the rest
(`data/pool_rules.py`). docs/dynamics.md derives them. NumPy and SciPy only.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import special

from selfloop_jax.config import PoolConfig
from selfloop_jax.data import pool_rules
from selfloop_jax.data.pool_rules import FloatOrArray, ShareInputs, Sizes
from selfloop_jax.runtime import rng

LEVEL = 0.95  # of the intervals


def expected_sizes(real: np.ndarray, count: int) -> Sizes:
    """Expected images per class, of int[C] (or [C,1]) real and `count` generated ones in all.

    As under sample.request = real, every set has the classes of the real one.
    """
    class_share = real / real.sum()
    return Sizes(real, count * class_share, class_share)


@dataclass(frozen=True)
class Response:
    """logit R = a + b logit(pool share) [+ c logit(share expected of the one before)].

    coefficients float[2 or 3] with their covariance; correlation: that of two images of one
    generator (0: generators trained alike differ by chance alone). Shares are read no closer to 0
    and 1 than `edge`.
    """

    coefficients: np.ndarray
    covariance: np.ndarray
    correlation: float = 0.0
    edge: float = 1e-12

    @property
    def fine_tuned(self) -> bool:
        """Whether the share expected of the previous generator counts."""
        return len(self.coefficients) == 3

    def effective(self, count: FloatOrArray) -> np.ndarray:
        """Independent images that scatter like `count` of one generator (beta-binomial)."""
        count = np.asarray(count, np.float64)
        return count / (1 + np.maximum(count - 1, 0) * self.correlation)

    def __call__(
        self,
        pool: FloatOrArray,
        previous: FloatOrArray | None = None,
        coefficients: np.ndarray | None = None,
    ) -> np.ndarray:
        """Share expected after training on `pool`.

        `coefficients` [..., 2 or 3] replace the fitted ones. ValueError where the share of the
        previous generator is needed and missing.
        """
        # Coefficients come first, so that [paths, 1, ...] of them broadcast against shares.
        beta = np.moveaxis(self.coefficients if coefficients is None else coefficients, -1, 0)
        logit = beta[0] + beta[1] * _logit(pool, self.edge)
        if self.fine_tuned:
            if previous is None:
                raise ValueError("response of a fine-tuned generator: no previous generator")
            logit = logit + beta[2] * _logit(previous, self.edge)
        return special.expit(logit)


def _logit(share: FloatOrArray, edge: float) -> np.ndarray:
    return special.logit(np.clip(np.asarray(share, np.float64), edge, 1 - edge))


def fit_response(
    pool_share: np.ndarray,
    generated_share: np.ndarray,
    counts: np.ndarray | int,
    previous_share: np.ndarray | None = None,
) -> Response:
    """The response of a side study's generators: quasi-binomial regression of the logit.

    All are float[P], a generator (or a class of it) each: the share in its pool, the share among
    the `counts` images that it generated, and of fine-tuned ones `previous_share`, what was
    expected of the generator before by its own response. (What that one generated is its
    expectation with noise, which would flatten the fit, and it is in the pool already.)

    Generated shares of 0 and 1 are fine; as regressors shares are read no closer to them than half
    an image of the largest count. The covariance is scaled by the Pearson dispersion where that
    exceeds 1, which is also where the correlation within a generator's images is read off.
    ValueError with too few or too similar points, or where the generated shares are all at 0 and 1
    and no finite curve fits best.
    """
    n = np.broadcast_to(np.asarray(counts, np.float64), np.shape(generated_share))
    # logit(0) is infinite: a share of 0 is read as half an image of the largest set.
    edge = 0.5 / n.max()
    columns = [np.ones(len(n)), _logit(pool_share, edge)]
    if previous_share is not None:
        columns.append(_logit(previous_share, edge))
    x = np.stack(columns, axis=1)
    y = np.asarray(generated_share, np.float64)
    points, unknowns = x.shape
    if points <= unknowns or np.linalg.matrix_rank(x) < unknowns:
        raise ValueError(
            f"{points} points: a response needs more than {unknowns}, at different shares"
        )
    beta, information = _binomial_regression(x, y, n)

    # Pearson's statistic over its degrees of freedom is 1 for binomial counts; for beta-binomial
    # ones it is 1 + (n - 1) times the correlation.
    mu = special.expit(x @ beta)
    pearson = np.sum(n * (y - mu) ** 2 / (mu * (1 - mu))) / (points - unknowns)
    dispersion = max(1.0, float(pearson))
    # Solved for the correlation at the mean count.
    correlation = min(1.0, (dispersion - 1) / max(n.mean() - 1, 1))
    return Response(beta, dispersion * np.linalg.inv(information), float(correlation), edge)


def _binomial_regression(
    x: np.ndarray, y: np.ndarray, n: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients and information matrix of a logistic regression.

    By iterated weighted least squares (McCullagh and Nelder 1989, section 2.5).
    """
    # The empirical logit, which is finite for shares of 0 and 1 too.
    eta = special.logit((n * y + 0.5) / (n + 1))
    for _ in range(50):
        mu = special.expit(eta)
        weight = n * mu * (1 - mu)
        information = x.T @ (weight[:, None] * x)
        # The working response eta + (y - mu) / (mu (1 - mu)), times its weight: no division by 0.
        beta = np.linalg.solve(information, x.T @ (weight * eta + n * (y - mu)))
        change = np.abs(x @ beta - eta).max()
        eta = x @ beta
        if np.abs(eta).max() > 30:  # it runs off to infinity
            break
        if change < 1e-10:
            return beta, information
    raise ValueError(
        "generated shares: no finite curve fits them best; points strictly between 0 and 1 are "
        "needed"
    )


# The response of a copy machine: it generates the shares of its pool, by chance.
COPY = Response(np.array([0.0, 1.0]), np.zeros((2, 2)))


@dataclass(frozen=True)
class GapCurve:
    """Mean gap float[L], and its standard error over seeds, at L ascending pool shares."""

    share: np.ndarray
    gap: np.ndarray
    error: np.ndarray

    def __call__(self, share: FloatOrArray) -> tuple[np.ndarray, np.ndarray]:
        """Gap and standard error by straight lines between measured shares; NaN outside them."""
        share = np.asarray(share, np.float64)
        # The segment with the share in it; a share outside all of them becomes NaN below.
        right = np.clip(np.searchsorted(self.share, share), 1, len(self.share) - 1)
        left = right - 1
        weight = (share - self.share[left]) / (self.share[right] - self.share[left])
        gap = (1 - weight) * self.gap[left] + weight * self.gap[right]
        # A level with a single seed has no error, which must not spoil its neighbours' own.
        error = np.hypot(
            np.where(weight == 1, 0, (1 - weight) * self.error[left]),
            np.where(weight == 0, 0, weight * self.error[right]),
        )
        inside = (share >= self.share[0]) & (share <= self.share[-1])
        return np.where(inside, gap, np.nan), np.where(inside, error, np.nan)


def gap_curve(share: np.ndarray, gap: np.ndarray) -> GapCurve:
    """The curve through runs on real images, float[P].

    `share` is nominal, the same for all seeds of a level. No shape is assumed, since gaps level
    off. ValueError with fewer than two levels; the error of a level with a single seed is NaN.
    """
    levels = np.unique(share)
    if len(levels) < 2:
        raise ValueError(f"{len(levels)} level of bias: a gap curve needs two or more")
    at = [np.asarray(gap, np.float64)[share == level] for level in levels]
    error = [np.std(x, ddof=1) / np.sqrt(len(x)) if len(x) > 1 else np.nan for x in at]
    return GapCurve(levels, np.array([x.mean() for x in at]), np.array(error))


@dataclass(frozen=True)
class Band:
    """A prediction with the ends of its interval, each float[generations, ...]."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Loop:
    """A loop to be forecast.

    pool: section of the config; real: aligned share in the real set, one number or float[C]; sizes:
    per class; response: of generators trained from scratch; later: of generation 1 and after, which
    may be fine-tuned, where it is another; reserve: aligned share in the reserve, where rules take
    new real images from, None where it is not known.
    """

    pool: PoolConfig
    real: FloatOrArray
    sizes: Sizes
    response: Response
    later: Response | None = None
    reserve: FloatOrArray | None = None

    def response_of(self, g: int) -> Response:
        """The response of generation g's generator."""
        return self.later if g and self.later else self.response

    def shares(self, g: int, generated: list[np.ndarray]) -> ShareInputs:
        """What the pool of generation g is made of."""
        return ShareInputs(self.pool, g, self.real, generated, self.sizes, self.reserve)


@dataclass(frozen=True)
class Noise:
    """Random numbers, keyed by name, of `paths` simulated loops.

    shape: paths, then that of a share.
    """

    key_path: rng.KeyPath
    shape: tuple[int, ...]

    def coefficients(self, response: Response) -> np.ndarray:
        """float[paths, 1..., 2 or 3] from their fitted normal distribution: one curve a path."""
        # A root by eigenvalues: unlike Cholesky's it exists for a singular covariance too.
        values, vectors = np.linalg.eigh(response.covariance)
        paths = self.shape[0]
        # The key path has no generation in it: a path keeps its curve through all generations.
        normal = rng.normals((*self.key_path, "coefficients", len(values)), (paths, len(values)))
        spread = normal @ (vectors * np.sqrt(np.maximum(values, 0))).T
        ones = (1,) * (len(self.shape) - 1)
        return (response.coefficients + spread).reshape(paths, *ones, -1)

    def binomial(self, share: FloatOrArray, n: FloatOrArray, *name: int | str) -> np.ndarray:
        """Share among n independent images, by inversion.

        n is rounded; where it is 0 or infinite the share stays as it is.
        """
        from scipy import stats  # here, because it takes a second to import and few runs need it

        uniform = rng.inner_uniforms((*self.key_path, *name), self.shape)
        random = np.isfinite(n) & (np.asarray(n) > 0)
        # `ppf` needs n >= 1; where nothing is random its result is replaced.
        whole = np.maximum(np.rint(np.where(random, n, 1)), 1)
        return np.where(random, stats.binom.ppf(uniform, whole, share) / whole, share)

    def subset(
        self, share: FloatOrArray, n: FloatOrArray, of: FloatOrArray, *name: int | str
    ) -> np.ndarray:
        """Share among n of `of` images, without replacement: the binomial of equal variance."""
        n = np.asarray(n, np.float64)
        of = np.asarray(of, np.float64)
        # The hypergeometric variance p (1-p) (of-n) / (n (of-1)) is the binomial one at this n.
        with np.errstate(divide="ignore"):
            effective = np.where(n < of, n * (of - 1) / np.maximum(of - n, 0), np.inf)
        return self.binomial(share, effective, *name)


def predict(
    loop: Loop,
    generations: int,
    key_path: rng.KeyPath,
    first: FloatOrArray | None = None,
    weights: np.ndarray | None = None,
    paths: int = 2000,
) -> tuple[Band, Band]:
    """Aligned shares in the pools, and among the images, of generations 0..generations-1.

    `mean` iterates pool rule and response without noise. The interval is for one run: quantiles
    over `paths` simulated loops, each with coefficients from the responses' covariances, generated
    sets whose scatter is raised by the responses' correlation, and the subsets that the rule takes.
    `first` is the share that generation 0 was seen to generate, where predictions start from there.
    `weights` float[C]: bands are of the classes' weighted mean instead of single classes.
    ValueError where the response of generation 0 needs a previous generator.
    """
    given = None if first is None else np.asarray(first, np.float64)
    expected = _expected(loop, generations, given)
    simulated = _simulated(loop, generations, given, Noise(key_path, (paths, *np.shape(loop.real))))
    pools, generated = (
        _band(mean, loops, weights) for mean, loops in zip(expected, simulated, strict=True)
    )
    return pools, generated


def _expected(
    loop: Loop, generations: int, first: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Shares float[generations,...] in the pools and generated, without noise."""
    pools: list[np.ndarray] = []
    generated: list[np.ndarray] = []
    expected = None
    for g in range(generations):
        pools.append(pool_rules.expected_share(loop.shares(g, generated)))
        # Of generation 0 the observed share enters pools, but the next generator starts from the
        # expected one.
        expected = loop.response_of(g)(pools[g], expected)
        generated.append(expected if g or first is None else first)
    return np.stack(pools), np.stack(generated)


def _simulated(
    loop: Loop, generations: int, first: np.ndarray | None, noise: Noise
) -> tuple[np.ndarray, np.ndarray]:
    """Shares float[generations,paths,...] in the pools and generated.

    A generator's state is the share expected of it; what it generates is that with noise, and that
    alone enters pools.
    """
    pools: list[np.ndarray] = []
    generated: list[np.ndarray] = []
    expected = None
    for g in range(generations):
        response = loop.response_of(g)
        pool = pool_rules.sampled_share(loop.shares(g, generated), noise)
        # The pool of generation 0 is the real set: one share for all paths.
        pools.append(np.broadcast_to(pool, noise.shape))
        expected = response(pools[g], expected, noise.coefficients(response))
        if g or first is None:
            count = np.maximum(response.effective(loop.sizes.generated), 1)
            generated.append(noise.binomial(expected, count, "drawn", g))
        else:
            generated.append(np.broadcast_to(first, noise.shape))
    return np.stack(pools), np.stack(generated)


def _band(mean: np.ndarray, loops: np.ndarray, weights: np.ndarray | None) -> Band:
    """mean float[generations,...] with quantiles of loops float[generations,paths,...]."""
    if weights is not None:
        mean = np.average(mean, axis=-1, weights=weights)
        loops = np.average(loops, axis=-1, weights=weights)
    # Axis 1 is that of the simulated paths.
    low, high = np.quantile(loops, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=1)
    return Band(mean, low, high)


def score(
    observed: np.ndarray, predicted: Band, rivals: Mapping[str, FloatOrArray]
) -> dict[str, float]:
    """Mean absolute errors of a prediction and of simpler ones, and coverage of the intervals.

    Over seeds and generations: observed float[S,generations,...]; the others broadcast against it.
    Leave out a generation that was given. What has no prediction, or an interval without ends, is
    left out and counted as `undefined`. A rival's error is called `error_` and its name.
    """
    every = (observed, predicted.mean, predicted.low, predicted.high, *rivals.values())
    columns = np.broadcast_arrays(*every)
    defined = ~np.isnan(np.array(columns)).any(axis=0)
    observed, mean, low, high, *others = (column[defined] for column in columns)

    def error(values: np.ndarray) -> float:
        return float(np.abs(observed - values).mean()) if observed.size else math.nan

    inside = (observed >= low - 1e-9) & (observed <= high + 1e-9)  # equal but for rounding
    return {
        "error": error(mean),
        **{f"error_{name}": error(x) for name, x in zip(rivals, others, strict=True)},
        "coverage": float(inside.mean()) if observed.size else math.nan,
        "undefined": int((~defined).sum()),
    }
