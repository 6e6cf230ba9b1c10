"""Did the loop change the bias? One of four answers per metric. NumPy and SciPy only.

They rest on one number per seed, the contrast d_s = [b_s(G) - b_s(0)] of the loop minus the same of
its control, of a bias b that the caller orients: larger is more biased. If the loop does nothing
that its control does not do as well, the two can be exchanged within a seed, d_s is as likely as
-d_s, and the sign-flip test of the mean is exact however the seeds scatter, random walks of the
bias included. What is tested is the end against the beginning across seeds: the generations of one
seed hang together and are no repetitions.
"""

import math
from collections.abc import Mapping

import numpy as np
from scipy import stats

from selfloop_jax.runtime.rng import words

MOST_SEEDS = 20  # 2^20 patterns of signs; of more seeds as many patterns are drawn


POWER = 0.8


def contrast(loop: np.ndarray, control: np.ndarray) -> np.ndarray:
    """float[S] of bias float[S,G+1] in the loop and in its control, seed by seed."""
    return (loop[:, -1] - loop[:, 0]) - (control[:, -1] - control[:, 0])


def sign_flip(d: np.ndarray) -> float:
    """Two-sided p of the mean of d float[S] over all 2^S patterns of signs: exact; never below 2 / 2^S.

    Above 20 seeds 2^20 - 1 patterns are drawn and the observed one counted in, which is valid too.
    ValueError where a contrast is not finite.
    """
    sums, least = _flipped(d)
    return float(np.mean(np.abs(sums) >= abs(sums[0]) - least))


def _positive(d: np.ndarray) -> float:
    """Exact one-sided p for a mean of d above 0; never below 1 / 2^S."""
    sums, least = _flipped(d)
    return float(np.mean(sums >= sums[0] - least))


def _flipped(d: np.ndarray) -> tuple[np.ndarray, float]:
    """Sums under patterns of signs, float64 of 2^S at most 2^20, as observed first; and rounding's reach."""
    d = np.asarray(d, np.float64)
    if d.ndim != 1 or not np.isfinite(d).all():
        raise ValueError(f"contrasts of shape {d.shape}: allowed are finite numbers, one per seed")
    sums = np.zeros(1) if len(d) <= MOST_SEEDS else np.zeros(2**MOST_SEEDS)
    for seed, value in enumerate(d):
        if len(d) <= MOST_SEEDS:
            sums = np.concatenate([sums + value, sums - value])
        else:
            minus = words(("sign flip", seed), len(sums)) & np.uint64(1)
            minus[0] = 0
            sums += np.where(minus, -value, value)
    return sums, 1e-12 * float(np.abs(d).sum())


def least_seeds(metrics: int, alpha: float) -> int:
    """Fewest seeds whose smallest p, 2 / 2^S, stays at or below alpha after Holm over that many metrics."""
    return math.ceil(math.log2(2 * metrics / alpha))


def holm(p: np.ndarray) -> np.ndarray:
    """Adjusted p-values float[M] (Holm 1979): at most alpha is the chance that any false one is <= alpha."""
    p = np.asarray(p, np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


def equivalent(d: np.ndarray, margin: float) -> float:
    """p for |mean| < margin: two one-sided sign-flip tests (Schuirmann 1987), the larger of their p-values.

    Exact where the contrasts scatter symmetrically about their mean.
    """
    d = np.asarray(d, np.float64)
    return max(_positive(d + margin), _positive(margin - d))


def interval(d: np.ndarray, level: float) -> tuple[float, float]:
    """Student-t interval of the mean over seeds: for the reader's eye, no verdict rests on it.

    NaN with fewer than two seeds.
    """
    if len(d) < 2:
        return math.nan, math.nan
    half = stats.t.ppf((1 + level) / 2, len(d) - 1) * np.std(d, ddof=1) / math.sqrt(len(d))
    return float(np.mean(d) - half), float(np.mean(d) + half)


def smallest_detectable(d: np.ndarray, metrics: int, alpha: float) -> float:
    """True mean contrast, in the metric's units, that as many seeds of this scatter find with 80 % power.

    At Holm's first level, alpha / metrics, by the t approximation. Where only contrasts of one sign
    in all seeds are significant that is too hopeful, and the chance of one sign among normal
    contrasts is used. Infinite where that many seeds can find nothing, NaN with fewer than two.
    """
    seeds, level = len(d), alpha / metrics
    if seeds < 2:
        return math.nan
    if seeds < least_seeds(metrics, alpha):
        return math.inf
    spread = float(np.std(d, ddof=1))
    if 4 / 2**seeds > level:
        return spread * float(stats.norm.ppf(POWER ** (1 / seeds)))
    quantiles = stats.t.ppf(1 - level / 2, seeds - 1) + stats.t.ppf(POWER, seeds - 1)
    return spread * float(quantiles) / math.sqrt(seeds)


def verdicts(
    contrasts: Mapping[str, np.ndarray],
    margins: Mapping[str, float] | None = None,
    alpha: float = 0.05,
) -> dict[str, dict[str, float | int | str]]:
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
                f"margin {name} = {margin}: allowed are positive numbers for {list(contrasts)}"
            )
    values = {name: np.asarray(d, np.float64) for name, d in contrasts.items()}
    kept = {name: d[~np.isnan(d)] for name, d in values.items()}
    change = _tested({name: sign_flip(d) for name, d in kept.items()})
    none = _tested({name: equivalent(kept[name], margin) for name, margin in margins.items()})
    found = {}
    for name, d in kept.items():
        row = _summary(d, len(kept), alpha) | {"dropped": len(values[name]) - len(d)}
        row["p"], row["p_holm"] = change[name]
        row["p_equivalence"], row["p_equivalence_holm"] = none.get(name, (math.nan, math.nan))
        verdict, why = _decide(row, len(kept), margins.get(name), alpha)
        found[name] = row | {"verdict": verdict, "reason": why + _dropped(row["dropped"])}
    return found


def _tested(p: dict[str, float]) -> dict[str, tuple[float, float]]:
    """Every p-value with its adjusted one."""
    return dict(zip(p, zip(p.values(), holm(list(p.values())).tolist(), strict=True), strict=True))


def _summary(d: np.ndarray, metrics: int, alpha: float) -> dict[str, float | int]:
    low, high = interval(d, 1 - alpha)
    mean = float(np.mean(d)) if len(d) else math.nan
    detectable = smallest_detectable(d, metrics, alpha)
    return {
        "mean": mean,
        "low": low,
        "high": high,
        "seeds": len(d),
        "smallest_detectable": detectable,
    }


def _decide(row: dict, metrics: int, margin: float | None, alpha: float) -> tuple[str, str]:
    """Verdict and reason, without the full stop."""
    seeds, said = row["seeds"], f"{row['mean']:+.3g} over {_seeds(row['seeds'])}"
    if seeds < least_seeds(1, alpha):
        return "not distinguishable", _too_few(seeds, 1, alpha)
    changed = row["p_holm"] <= alpha
    within = row["p_equivalence_holm"] <= alpha  # NaN without a margin: never
    if changed and within:
        return "no change", (
            f"a real change of {said} (adjusted p = {row['p_holm']:.3g}) that lies within the margin of "
            f"{margin:g} (adjusted p = {row['p_equivalence_holm']:.3g})"
        )
    if changed:
        verdict = "amplification" if row["mean"] > 0 else "attenuation"
        return verdict, f"loop minus control changed by {said} (adjusted p = {row['p_holm']:.3g})"
    if within:
        proof = f"(adjusted p = {row['p_equivalence_holm']:.3g})"
        return "no change", f"{said}, within the margin of {margin:g} fixed beforehand {proof}"
    short = (
        "no margin was fixed"
        if margin is None
        else f"not shown to lie within the margin of {margin:g}"
    )
    if seeds < least_seeds(metrics, alpha):
        return "not distinguishable", f"{_too_few(seeds, metrics, alpha)}; {short}"
    power = f"80 % power starts at {row['smallest_detectable']:.3g}"
    return "not distinguishable", f"{said} (adjusted p = {row['p_holm']:.3g}; {power}); {short}"


def _too_few(seeds: int, metrics: int, alpha: float) -> str:
    family = f" with {metrics} metrics" if metrics > 1 else ""
    return f"{_seeds(seeds)}{family}: {least_seeds(metrics, alpha)} are the least that can reach {alpha:g}"


def _dropped(count: int) -> str:
    if not count:
        return "."
    return f"; {_seeds(count)} without a value {'was' if count == 1 else 'were'} left out."


def _seeds(count: int) -> str:
    return f"{count} seed" if count == 1 else f"{count} seeds"


def slope(b: np.ndarray, variance: np.ndarray) -> tuple[float, float]:
    """Persistence of the bias float[S,G+1]: slope of b(g+1) on b(g), and again with the noise of b removed.

    Pairs are taken within seeds and pooled with one intercept; an intercept per seed would pull a
    random walk's slope far below 1 by itself (Nickell 1981). `variance` float[S,G+1] is that of the
    measurement noise of b which two generations do not share (a test set read in every generation
    is shared by all of them). It inflates the regressor's variance and so flattens the slope
    (errors in variables); the second number subtracts it. Descriptive only: docs/dynamics.md says
    why. NaN where no variance is left.
    """
    now, later = b[:, :-1].ravel(), b[:, 1:].ravel()
    centred = now - now.mean()
    covariance, observed = np.mean(centred * (later - later.mean())), np.mean(centred**2)
    noise = np.mean(variance[:, :-1]) * (1 - 1 / len(now))
    raw, corrected = (
        float(covariance / v) if v > 0 else math.nan for v in (observed, observed - noise)
    )
    return raw, corrected
