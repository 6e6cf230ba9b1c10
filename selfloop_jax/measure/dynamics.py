"""Why the bias moves: from the shares in a pool to the shares drawn, to the next pool, to a classifier's gap.

A *share* is P(group | label), most often that of the aligned group. Two curves are measured apart
from the loop and taken as given: the response R, which maps the share in a generator's pool (and,
fine-tuned, the share expected of the generator it started from) to the share expected of it, and
the gap of a classifier over the share in its pool. The pool rules do the rest. docs/dynamics.md
derives them. NumPy and SciPy only.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special, stats

from selfloop_jax.config import PoolConfig
from selfloop_jax.runtime.rng import inner_uniforms, normals

RULES = ("replace", "real_plus_latest", "accumulate", "accumulate_subsample", "substitute", "fresh")


@dataclass(frozen=True)
class Sizes:
    """Images per class: one number for all classes alike, or an array that broadcasts against shares.

    n_real real training images, count drawn per generation, budget kept by accumulate_subsample;
    alpha and match_group as in substitute; n_real_fresh from the reserve and n_generated of the
    latest under fresh.
    """

    n_real: Any
    count: Any
    budget: Any = 0
    alpha: float = 0.0
    match_group: bool = False
    n_real_fresh: Any = 0
    n_generated: Any = 0


def expected_sizes(section: PoolConfig, real: np.ndarray, count: int) -> Sizes:
    """Expected sizes per class of section `pool`, for int[C] (or [C,1]) real images and `count` drawn in all.

    As under sample.request = real, everything has the classes of the real set.
    """
    share = real / real.sum()
    return Sizes(
        n_real=real,
        count=count * share,
        budget=section.budget * share,
        alpha=section.alpha,
        match_group=section.match_group,
        n_real_fresh=section.n_real * share,
        n_generated=section.n_generated * share,
    )


def pool_shares(rule: str, g: int, real: Any, drawn: Sequence[Any], sizes: Sizes) -> np.ndarray:
    """Expected shares in the pool of generation g, of the shape of `real`.

    real: shares in the real set, any shape (a table [C,G], aligned shares [C], one number); drawn:
    shares drawn by generations 0..g-1. Exact where the classes' sizes in the pool are fixed; under
    `fresh` and `substitute`, whose parts are random subsets, with the expected sizes as weights.
    """
    if rule not in RULES:
        raise ValueError(f"rule {rule}: allowed are {', '.join(RULES)}")
    if len(drawn) != g:
        raise ValueError(
            f"shares drawn by {len(drawn)} generations: the pool of generation {g} needs {g}"
        )
    if not g or (rule == "substitute" and sizes.match_group):
        return np.asarray(real, np.float64)
    latest = drawn[-1]
    if rule == "replace":
        return np.asarray(latest, np.float64)
    if rule == "real_plus_latest":
        return _mean([real, latest], [sizes.n_real, sizes.count])
    if rule == "substitute":
        return _mean([real, latest], [1 - sizes.alpha, sizes.alpha])
    if rule == "fresh":
        return _mean([real, latest], [sizes.n_real_fresh, sizes.n_generated])
    return _mean([real, *drawn], [sizes.n_real] + [sizes.count] * g)


def _mean(shares: Sequence[Any], weights: Sequence[Any]) -> np.ndarray:
    total = sum(np.asarray(s, np.float64) * w for s, w in zip(shares, weights, strict=True))
    return total / sum(weights)


@dataclass(frozen=True)
class Response:
    """logit R = a + b logit(pool share) [+ c logit(share expected of the previous generator)].

    coefficients float[2 or 3] with their covariance; correlation: that of two images drawn by one
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

    def effective(self, count: Any) -> np.ndarray:
        """Independent draws that scatter like `count` images of one generator (beta-binomial variance)."""
        count = np.asarray(count, np.float64)
        return count / (1 + np.maximum(count - 1, 0) * self.correlation)

    def __call__(
        self, pool: Any, previous: Any = None, coefficients: np.ndarray | None = None
    ) -> np.ndarray:
        """Share expected after training on `pool`; `coefficients` [..., 2 or 3] replace the fitted ones."""
        beta = np.moveaxis(self.coefficients if coefficients is None else coefficients, -1, 0)
        logit = beta[0] + beta[1] * _logit(pool, self.edge)
        return special.expit(
            logit + beta[2] * _logit(previous, self.edge) if self.fine_tuned else logit
        )


IDENTITY = Response(np.array([0.0, 1.0]), np.zeros((2, 2)))  # draws what the pool has


def _logit(share: Any, edge: float) -> np.ndarray:
    return special.logit(np.clip(np.asarray(share, np.float64), edge, 1 - edge))


def fit_response(
    pool_share: np.ndarray,
    drawn_share: np.ndarray,
    counts: np.ndarray,
    previous_share: np.ndarray | None = None,
) -> Response:
    """The response through a side study's generators, all float[P]: quasi-binomial regression of the logit.

    `counts` images were drawn from each (of the class, where shares are a class's).
    `previous_share` is what was expected of the generators that were fine-tuned, by their own
    response: what they drew is that and the noise of drawing, which would flatten the fit, and it
    is in the pool already. Drawn shares of 0 and 1 are fine; as regressors shares are read no
    closer to them than half an image of the largest count. The covariance is scaled by the Pearson
    dispersion where that exceeds 1, which is also where the correlation within a generator's draws
    is read off. ValueError with too few or too similar points, or where the drawn shares are all at
    0 and 1 and no finite curve fits best.
    """
    n = np.broadcast_to(np.asarray(counts, np.float64), np.shape(drawn_share))
    edge = 0.5 / n.max()
    columns = [np.ones(len(n)), _logit(pool_share, edge)]
    if previous_share is not None:
        columns.append(_logit(previous_share, edge))
    x, y = np.stack(columns, axis=1), np.asarray(drawn_share, np.float64)
    points, unknowns = x.shape
    if points <= unknowns or np.linalg.matrix_rank(x) < unknowns:
        raise ValueError(
            f"{points} points: a response needs more than {unknowns}, at different shares"
        )
    beta, information = _binomial_regression(x, y, n)
    mu = special.expit(x @ beta)
    pearson = np.sum(n * (y - mu) ** 2 / (mu * (1 - mu))) / (points - unknowns)
    dispersion = max(1.0, float(pearson))
    correlation = min(1.0, (dispersion - 1) / max(n.mean() - 1, 1))
    return Response(beta, dispersion * np.linalg.inv(information), float(correlation), edge)


def _binomial_regression(
    x: np.ndarray, y: np.ndarray, n: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Logistic regression by iterated weighted least squares: coefficients and their information matrix."""
    eta = special.logit((n * y + 0.5) / (n + 1))
    for _ in range(50):
        mu = special.expit(eta)
        weight = n * mu * (1 - mu)
        information = x.T @ (weight[:, None] * x)
        beta = np.linalg.solve(information, x.T @ (weight * eta + n * (y - mu)))
        change, eta = np.abs(x @ beta - eta).max(), x @ beta
        if np.abs(eta).max() > 30:
            break
        if change < 1e-10:
            return beta, information
    raise ValueError(
        "drawn shares: no finite curve fits them best; points strictly between 0 and 1 are needed"
    )


@dataclass(frozen=True)
class GapCurve:
    """Mean gap float[L] and its standard error over seeds at L measured shares in the pool, ascending."""

    share: np.ndarray
    gap: np.ndarray
    error: np.ndarray

    def __call__(self, share: Any) -> tuple[np.ndarray, np.ndarray]:
        """Gap and standard error by straight lines between measured shares; NaN outside them."""
        share = np.asarray(share, np.float64)
        right = np.clip(np.searchsorted(self.share, share), 1, len(self.share) - 1)
        weight = (share - self.share[right - 1]) / (self.share[right] - self.share[right - 1])
        inside = (share >= self.share[0]) & (share <= self.share[-1])
        ends = ((1 - weight, right - 1), (weight, right))
        gap = sum(w * self.gap[at] for w, at in ends)
        error = np.hypot(*(np.where(w == 0, 0, w * self.error[at]) for w, at in ends))
        return np.where(inside, gap, np.nan), np.where(inside, error, np.nan)


def gap_curve(share: np.ndarray, gap: np.ndarray) -> GapCurve:
    """The curve through runs on real images, float[P]: `share` is nominal, the same for all seeds of a level.

    No shape is assumed, since gaps level off. ValueError with fewer than two levels; the error of a
    level with a single seed is NaN.
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
class _Noise:
    """Uniform numbers by address, for `paths` simulated loops with shares of a given shape."""

    address: tuple[int | str, ...]
    shape: tuple[int, ...]  # paths, then that of a share

    def uniforms(self, *name: int | str) -> np.ndarray:
        return inner_uniforms((*self.address, *name), self.shape)

    def coefficients(self, response: Response) -> np.ndarray:
        """float[paths, 1..., 2 or 3] from their fitted normal distribution: one curve a path."""
        values, vectors = np.linalg.eigh(response.covariance)
        spread = (
            normals((*self.address, "coefficients", len(values)), (self.shape[0], len(values)))
            @ (vectors * np.sqrt(np.maximum(values, 0))).T
        )
        return (response.coefficients + spread).reshape(
            self.shape[0], *(1,) * (len(self.shape) - 1), -1
        )

    def subset(self, share: Any, n: Any, of: Any, *name: int | str) -> np.ndarray:
        """Share among n of `of` images, taken without replacement: the binomial of equal variance."""
        n, of = np.asarray(n, np.float64), np.asarray(of, np.float64)
        with np.errstate(divide="ignore"):
            effective = np.where(n < of, n * (of - 1) / np.maximum(of - n, 0), np.inf)
        return _binomial(self.uniforms(*name), share, effective)


def predict(
    rule: str,
    real: Any,
    sizes: Sizes,
    response: Response,
    generations: int,
    address: tuple[int | str, ...],
    *,
    later: Response | None = None,
    first_drawn: Any = None,
    weights: Any = None,
    condition_on: str = "label",
    paths: int = 2000,
    level: float = 0.95,
) -> tuple[Band, Band]:
    """Aligned shares in the pools and among the images drawn of generations 0..generations-1.

    real: aligned share in the real set, one number or float[C]; `sizes` are per class. `response`
    is that of generators trained from scratch; `later`, where given, that of generation 1 and
    after, which may be fine-tuned. `mean` iterates pool rule and response without noise. The
    interval is for one run: quantiles over `paths` simulated loops, each with coefficients from the
    responses' covariances, draws of `count` images (their scatter raised by the responses'
    correlation) and the subsets that the rule takes. `first_drawn` is the share that generation 0
    was seen to draw, where predictions start from there. `weights` float[C]: bands are of the
    classes' weighted mean instead of single classes. ValueError for generators conditioned on label
    and group, and where `response` needs a previous generator.
    """
    if condition_on != "label":
        raise ValueError(
            f"diffusion.condition_on = {condition_on}: the groups are imposed, not chosen by the "
            "generator, so there is nothing to predict; allowed is label"
        )
    if response.fine_tuned:
        raise ValueError(
            "response: generation 0 has no previous generator; pass a fine-tuned one as `later`"
        )
    real = np.asarray(real, np.float64)
    first = None if first_drawn is None else np.asarray(first_drawn, np.float64)
    of = [response] + [later or response] * (generations - 1)
    expected = _iterate(
        generations,
        first,
        real.shape,
        lambda g, drawn: pool_shares(rule, g, real, drawn, sizes),
        lambda g, *shares: of[g](*shares),
        lambda g, share: share,
    )
    noise = _Noise(address, (paths, *real.shape))
    curves = [noise.coefficients(response)] + [noise.coefficients(later or response)] * (
        generations - 1
    )
    draws = [np.maximum(one.effective(sizes.count), 1) for one in of]
    simulated = _iterate(
        generations,
        first,
        noise.shape,
        lambda g, drawn: _noisy_pool(rule, g, real, drawn, sizes, noise),
        lambda g, *shares: of[g](*shares, curves[g]),
        lambda g, share: _binomial(noise.uniforms("drawn", g), share, draws[g]),
    )
    ends = ((1 - level) / 2, (1 + level) / 2)
    bands = []
    for mean, loops in zip(expected, simulated, strict=True):
        if weights is not None:
            mean, loops = (np.average(x, axis=-1, weights=weights) for x in (mean, loops))
        bands.append(Band(mean, *np.quantile(loops, ends, axis=1)))
    return tuple(bands)


def _iterate(
    generations: int,
    first_drawn: np.ndarray | None,
    shape: tuple[int, ...],
    pool: Callable,
    expect: Callable,
    draw: Callable,
) -> tuple[np.ndarray, np.ndarray]:
    """Pool and drawn shares float[generations, *shape].

    Of `pool(g, drawn)`, `expect(g, pool, previous)`, `draw(g, expected)`: what a generator is
    expected to draw is its state, what it drew is that with noise and enters pools.
    """
    pools, drawn, expected = [], [], None
    for g in range(generations):
        pools.append(np.broadcast_to(pool(g, drawn), shape))
        expected = expect(g, pools[g], expected)
        given = not g and first_drawn is not None
        drawn.append(np.broadcast_to(first_drawn if given else draw(g, expected), shape))
    return np.stack(pools), np.stack(drawn)


def _noisy_pool(rule: str, g: int, real, drawn: list, sizes: Sizes, noise: _Noise) -> np.ndarray:
    """Shares of generation g's pool with the noise of the subsets that the rule takes."""
    if rule == "accumulate_subsample":
        whole = pool_shares(rule, g, real, drawn, sizes)
        return noise.subset(
            whole, sizes.budget, sizes.n_real + g * np.asarray(sizes.count), "subset", g
        )
    if rule == "fresh" and g:
        kept = _binomial(
            noise.uniforms("reserve", g), real, np.asarray(sizes.n_real_fresh, np.float64)
        )
        latest = noise.subset(drawn[-1], sizes.n_generated, sizes.count, "latest", g)
        return pool_shares(rule, 1, kept, [latest], sizes)
    if rule == "substitute" and g and not sizes.match_group:
        n = np.asarray(sizes.n_real, np.float64)
        swapped = n * _binomial(
            noise.uniforms("swapped"), sizes.alpha, n
        )  # the same in every generation
        kept = noise.subset(real, n - swapped, n, "kept")
        latest = noise.subset(drawn[-1], swapped, sizes.count, "latest", g)
        return _mean([kept, latest], [n - swapped, swapped])
    return pool_shares(rule, g, real, drawn, sizes)


def _binomial(uniform: np.ndarray, share: Any, n: Any) -> np.ndarray:
    """Shares among n independent draws by inversion; n is rounded, 0 or infinite n leaves the share."""
    random = np.isfinite(n) & (np.asarray(n) > 0)
    whole = np.maximum(np.rint(np.where(random, n, 1)), 1)
    return np.where(random, stats.binom.ppf(uniform, whole, share) / whole, share)


def naive(drawn: np.ndarray) -> np.ndarray:
    """The prediction to beat, float[S,generations,...]: every generation draws what generation 0 drew."""
    return np.broadcast_to(drawn[:, :1], drawn.shape)


def score(observed: np.ndarray, predicted: Band, naive: np.ndarray) -> dict[str, float]:
    """Mean absolute error of both predictions over seeds and generations, and coverage of the intervals.

    observed float[S,generations,...]; the others broadcast against it. Leave out a generation that
    was given. What has no prediction, or an interval without ends, is left out and counted as
    `undefined`.
    """
    columns = np.broadcast_arrays(observed, predicted.mean, predicted.low, predicted.high, naive)
    defined = ~np.isnan(np.array(columns)).any(axis=0)
    observed, mean, low, high, naive = (column[defined] for column in columns)
    if not observed.size:
        return {
            "error": math.nan,
            "error_naive": math.nan,
            "coverage": math.nan,
            "undefined": int(defined.size),
        }
    inside = (observed >= low - 1e-9) & (observed <= high + 1e-9)  # equal but for rounding
    return {
        "error": float(np.abs(observed - mean).mean()),
        "error_naive": float(np.abs(observed - naive).mean()),
        "coverage": float(inside.mean()),
        "undefined": int((~defined).sum()),
    }
