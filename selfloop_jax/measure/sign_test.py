"""Verdicts: an exact test, over seeds, of whether a loop changed the bias.

A verdict rests on one number per seed, the contrast d_s = [b_s(G) - b_s(0)] of the loop minus the
same of its control, of a bias b that the caller orients: larger is more biased. If the loop does
nothing that its control does not do as well, the two can be exchanged within a seed, d_s is as
likely as -d_s, and the sign-flip test of the mean is exact however the seeds scatter, random walks
of the bias included. The test compares the end with the beginning across seeds: the generations of
one seed depend on each other and are no repetitions. NumPy and SciPy only.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from selfloop_jax.runtime.rng import words

MOST_SEEDS = 20  # 2^20 patterns of signs; of more seeds as many patterns are sampled

POWER = 0.8


def sign_flip(d: np.ndarray) -> float:
    """Exact two-sided p of the mean of d float[S] over all 2^S patterns of signs.

    It is never below 2 / 2^S. Above 20 seeds 2^20 - 1 patterns are sampled and the observed one
    counted in, which is valid too. ValueError where a contrast is not finite.
    """
    # Every pattern of signs is equally likely under the null; `least` lets ties count.
    sums, least = _flipped(d)
    return float(np.mean(np.abs(sums) >= abs(sums[0]) - least))


def _positive(d: np.ndarray) -> float:
    """Exact one-sided p for a mean of d above 0; never below 1 / 2^S."""
    sums, least = _flipped(d)
    return float(np.mean(sums >= sums[0] - least))


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


def equivalent(d: np.ndarray, margin: float) -> float:
    """p for |mean| < margin: the larger p of two one-sided sign-flip tests (Schuirmann 1987).

    Exact where the contrasts scatter symmetrically about their mean.
    """
    d = np.asarray(d, np.float64)
    return max(_positive(d + margin), _positive(margin - d))


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


def verdicts(
    contrasts: Mapping[str, np.ndarray],
    margins: Mapping[str, float] | None = None,
    alpha: float = 0.05,
) -> dict[str, dict[str, Any]]:
    """The verdict on every metric of one family.

    contrasts: float[S] per metric, larger is more biased; NaN where a seed has none: dropped and
    counted. margins: for the metrics that have one, the largest contrast that counts as no change.
    It must have been fixed before the contrasts were seen.

    Returns per metric mean, low, high (t interval at level 1 - alpha), seeds, dropped, p, p_holm,
    p_equivalence and p_equivalence_holm (NaN without a margin), smallest_detectable, verdict and
    the reason in one sentence. The chance of any false amplification or attenuation in the family
    is at most alpha, and so, separately, is that of any false "no change".
    """
    margins = margins or {}
    for name, margin in margins.items():
        if name not in contrasts or not margin > 0:
            raise ValueError(
                f"margin {name} = {margin}: must be positive, and for one of {list(contrasts)}"
            )
    values = {name: np.asarray(d, np.float64) for name, d in contrasts.items()}
    kept = {name: d[~np.isnan(d)] for name, d in values.items()}
    # Two questions, two families: Holm is applied to each by itself.
    change = _tested({name: sign_flip(d) for name, d in kept.items()})
    none = _tested({name: equivalent(kept[name], margin) for name, margin in margins.items()})
    rows = {}
    for name, d in kept.items():
        row = _summary(d, len(kept), alpha) | {"dropped": len(values[name]) - len(d)}
        row["p"], row["p_holm"] = change[name]
        row["p_equivalence"], row["p_equivalence_holm"] = none.get(name, (math.nan, math.nan))
        verdict, why = _decide(row, len(kept), margins.get(name), alpha)
        rows[name] = row | {"verdict": verdict, "reason": why + _dropped(row["dropped"])}
    return rows


def _tested(p: dict[str, float]) -> dict[str, tuple[float, float]]:
    """Every p-value with its adjusted one."""
    adjusted = holm(list(p.values())).tolist()
    return {name: (p[name], adjusted[i]) for i, name in enumerate(p)}


def _summary(d: np.ndarray, metrics: int, alpha: float) -> dict[str, Any]:
    """What is reported of the contrasts d float[S] in addition to their tests."""
    low, high = interval(d, 1 - alpha)
    return {
        "mean": float(np.mean(d)) if len(d) else math.nan,
        "low": low,
        "high": high,
        "seeds": len(d),
        "smallest_detectable": smallest_detectable(d, metrics, alpha),
    }


def _decide(
    row: dict[str, Any], metrics: int, margin: float | None, alpha: float
) -> tuple[str, str]:
    """Verdict and reason, without the full stop."""
    seeds = row["seeds"]
    # With fewer seeds not even a single metric could be significant.
    if seeds < least_seeds(1, alpha):
        return "not distinguishable", _too_few(seeds, 1, alpha)
    mean = f"{row['mean']:+.3g} over {_seeds(seeds)}"
    p_change = f"(adjusted p = {row['p_holm']:.3g})"
    p_margin = f"(adjusted p = {row['p_equivalence_holm']:.3g})"
    changed = row["p_holm"] <= alpha
    within = row["p_equivalence_holm"] <= alpha  # NaN without a margin: never
    # Both tests are significant: there is a change, and it lies within the margin.
    if changed and within:
        return "no change", (
            f"a real change of {mean} {p_change} that lies within the margin of {margin:g} "
            f"{p_margin}"
        )
    if changed:
        verdict = "amplification" if row["mean"] > 0 else "attenuation"
        return verdict, f"loop minus control changed by {mean} {p_change}"
    if within:
        return "no change", f"{mean}, within the margin of {margin:g} fixed beforehand {p_margin}"
    if margin is None:
        missing = "no margin was fixed"
    else:
        missing = f"not shown to lie within the margin of {margin:g}"
    if seeds < least_seeds(metrics, alpha):
        return "not distinguishable", f"{_too_few(seeds, metrics, alpha)}; {missing}"
    power = f"80 % power starts at {row['smallest_detectable']:.3g}"
    reason = f"{mean} (adjusted p = {row['p_holm']:.3g}; {power}); {missing}"
    return "not distinguishable", reason


def _too_few(seeds: int, metrics: int, alpha: float) -> str:
    family = f" with {metrics} metrics" if metrics > 1 else ""
    least = least_seeds(metrics, alpha)
    return f"{_seeds(seeds)}{family}: at least {least} are needed to reach {alpha:g}"


def _dropped(count: int) -> str:
    if not count:
        return "."
    return f"; {_seeds(count)} without a value {'was' if count == 1 else 'were'} left out."


def _seeds(count: int) -> str:
    return f"{count} seed" if count == 1 else f"{count} seeds"
