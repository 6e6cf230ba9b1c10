"""Composition of the generated images, compared with that of the real ones. NumPy only.

All functions take tables of counts int[C,G], images by class and group. Distances between finite
tables are biased upwards, and an annotator of groups confuses them. So `null` gives distances at
equal sample size, and `corrected_shares` corrects shares for the annotator's errors.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from selfloop_jax.measure.intervals import Z, two_sided, wilson
from selfloop_jax.measure.null import QUANTILES
from selfloop_jax.runtime.rng import KeyPath, words

SMOOTHING = 0.5  # added to every subgroup before a divergence

# Held-out images added to each group's row of a confusion matrix, for its variance alone. Where no
# error was seen the plain estimate of the variance is 0: shares of a few per cent looked certain,
# and 95 % intervals covered 83 %.
PSEUDO = 2.0

EM_STEPS = 10_000
EM_GAP = 1e-10
EM_FLOOR = 1e-4  # share that EM starts from where the inverse is below it: from 0 it could not grow

NULL_KEYS = ("kl_to_real", "total_variation_to_real", "subgroup_coverage")


def summary(
    counts: np.ndarray,
    real: np.ndarray,
    groups_of_class: np.ndarray,
    aligned_group: np.ndarray,
    level: float = 0.95,
) -> dict[str, dict[str, float]]:
    """Distances of the generated counts from the real ones, coverage and bias-aligned share.

    counts, real: int[C,G], generated and real images of known group. groups_of_class bool[C,G]: the
    groups that a class has; the others take no part in a divergence. aligned_group int[C]: the
    group that the bias ties to a class, -1 for none. Returns {key: {"value", ...}} of METRICS; the
    share has an interval of that level, of the groups as they were read: an annotator's errors are
    no part of it.
    """
    values = _statistics(counts, real, groups_of_class)
    result = {key: {"value": value} for key, value in zip(NULL_KEYS, values, strict=True)}
    # Of a class that the bias ties to no group, no image is aligned.
    biased = np.flatnonzero(aligned_group >= 0)
    aligned = counts[biased, aligned_group[biased]].sum()
    total = counts[biased].sum()
    low, high = wilson(aligned, total, two_sided(level))
    result["bias_aligned_share"] = {
        "value": float(aligned / total) if total else math.nan,
        "low": float(low),
        "high": float(high),
    }
    return result


def kl(p: np.ndarray, q: np.ndarray) -> float:
    """KL(p || q) in nats of two tables of counts, 0.5 added to each entry; NaN if one is 0."""
    if not p.sum() or not q.sum():
        return math.nan
    # Without the 0.5 (Jeffreys prior) one subgroup that q lacks would make the divergence infinite.
    p = (p + SMOOTHING) / (p + SMOOTHING).sum()
    q = (q + SMOOTHING) / (q + SMOOTHING).sum()
    return float((p * np.log(p / q)).sum())


def total_variation(p: np.ndarray, q: np.ndarray) -> float:
    """Half the L1 distance of two tables of counts as shares; NaN where one is empty."""
    if not p.sum() or not q.sum():
        return math.nan
    return float(np.abs(p / p.sum() - q / q.sum()).sum() / 2)


def subgroup_coverage(counts: np.ndarray, real: np.ndarray, groups_of_class: np.ndarray) -> float:
    """Share of the subgroups with real images that have generated ones.

    NaN without real images. `null` says what as many images can be expected to reach.
    """
    present = groups_of_class & (real > 0)
    return float((counts[present] > 0).mean()) if present.any() else math.nan


def null(
    real: np.ndarray,
    counts: np.ndarray,
    groups_of_class: np.ndarray,
    key_path: KeyPath,
    replicates: int = 1000,
    confusion: Sequence[Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """Distances and coverage where groups are sampled from the real shares themselves.

    Classes are imposed when images are generated, so each replicate keeps the class histogram of
    `counts` and samples the groups within a class from P_real(group | class), the real counts taken
    as they are: they are what the generator has seen. It says nothing where groups were imposed
    too. Images of a class without real ones stay as they are.

    confusion: where an annotator read the groups of `counts`, its confusion matrix per class,
    int[K,K] of held-out images. Every replicate is then read with rates sampled anew from them, so
    that neither the annotator's errors nor the uncertainty of their rates are mistaken for a
    change. A group without held-out images counts as never mistaken.

    Returns {key: {"null", "p"}} for NULL_KEYS: 5, 50 and 95 % quantiles and the one-sided p-value,
    (1 + replicates at least as far out) / (1 + replicates), where further out is a larger distance,
    a smaller coverage. NaN where the number itself is.
    """
    sampled_from = np.where(groups_of_class, real, 0)
    # A class without real images has no shares to sample from.
    blank = sampled_from.sum(axis=1) == 0
    size = np.where(blank, 0, counts.sum(axis=1))
    rows = np.empty((replicates, len(NULL_KEYS)))
    for replicate in range(replicates):
        # One key path per replicate: number b is the same however many replicates there are.
        path = (*key_path, replicate)
        shares = sampled_from
        if confusion is not None:
            shares = _as_read(sampled_from, confusion, groups_of_class, (*path, "annotator"))
        sampled = _multinomial(shares, size, (*path, "drawn"))
        rows[replicate] = _statistics(
            np.where(blank[:, None], counts, sampled), real, groups_of_class
        )
    quantiles = np.quantile(rows, QUANTILES, axis=0).T.tolist()
    p = _p_values(_statistics(counts, real, groups_of_class), rows).tolist()
    return {key: {"null": quantiles[i], "p": p[i]} for i, key in enumerate(NULL_KEYS)}


def corrected_shares(
    counts: np.ndarray,
    confusion: Sequence[Any],
    groups_of_class: np.ndarray,
    aligned_group: np.ndarray,
    level: float = 0.95,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Group shares within each class, corrected for the errors of the annotator of groups.

    counts int[C,G]: generated images by class and group read; confusion: per class int[K,K], rows
    the true group, columns the group read, on held-out real images; groups_of_class bool[C,G];
    aligned_group int[C] (-1 none). With A[k,j] = P(reads j | true k) a class of true shares s is
    read as q = A^T s (Rogan and Gladen, Am J Epidemiol 1978, for two groups). `share` maximises the
    likelihood over the simplex, so it is the inverse where that lies inside. It takes errors on
    generated images to be those on real ones.

    `low`, `high` are score intervals of that level over the n generated and the held-out images,
    Wilson's where the annotator is known to be perfect. Near the boundary of the simplex `share` is
    biased towards its inside, by up to its own error, and its interval begins at 0 or ends at 1:
    read the interval there. Over the classes such biases would add up, while errors average out:
    the bias-aligned share therefore averages the inverses, cut to [0, 1] only at the end, and is
    not the average of `share`.

    Returns the table {`share`, `low`, `high`, `uncorrected` float64[C,G], NaN outside
    groups_of_class and in classes without images; `condition` float64[C]: that of A, inf with a
    group that has no held-out images, NaN without groups; `identified` bool[C]: whether the
    annotator distinguishes the groups beyond the error of its held-out images; where not, share,
    low and high are NaN}, and the bias-aligned share {"value", "low", "high"}, NaN where it rests
    on a class that is not identified.
    """
    # Five tables float64[C,G]; `inverse` keeps what lies outside [0, 1], `share` does not.
    share, inverse, below, above, uncorrected = np.full((5, *counts.shape), np.nan)
    condition = np.full(len(counts), np.nan)
    identified = np.zeros(len(counts), bool)
    for c, row in enumerate(groups_of_class):
        if not row.any():
            continue
        known = np.asarray(confusion[c])
        read = counts[c, row]
        condition[c] = _condition(known)
        identified[c] = _distinguishes(known)
        if read.sum():
            uncorrected[c, row] = read / read.sum()
        if read.sum() and identified[c]:
            # q = A^T s solved for s: the estimate of Rogan and Gladen, which may leave the simplex.
            inverse[c, row] = np.linalg.solve(_rates(known).T, uncorrected[c, row])
            share[c, row] = _maximum_likelihood(inverse[c, row], uncorrected[c, row], _rates(known))
            below[c, row], above[c, row] = _score_interval(
                share[c, row], known, read.sum(), two_sided(level)
            )
    table = {
        "share": share,
        "low": np.maximum(share - below, 0),
        "high": np.minimum(share + above, 1),
        "uncorrected": uncorrected,
        "condition": condition,
        "identified": identified,
    }
    # Weight 0 drops classes without an aligned group: their -1 indexes the last group below.
    weight = np.where(aligned_group >= 0, counts.sum(axis=1, where=groups_of_class), 0)
    own = (np.arange(len(counts)), aligned_group)
    return table, _corrected_aligned_share(weight, inverse[own], below[own], above[own])


def _statistics(counts: np.ndarray, real: np.ndarray, groups_of_class: np.ndarray) -> list[float]:
    """The numbers of NULL_KEYS."""
    return [
        kl(counts[groups_of_class], real[groups_of_class]),
        total_variation(counts, real),
        subgroup_coverage(counts, real, groups_of_class),
    ]


def _p_values(observed: list[float], rows: np.ndarray) -> np.ndarray:
    """float64[3] of observed statistics against their null, rows float64[R,3]."""
    outwards = np.array([1, 1, -1])
    # The same table summed in another order may differ by a rounding.
    further = (outwards * (rows - observed) >= -1e-12).sum(axis=0)
    # The observed table counts as one replicate, or p could be 0 (Phipson and Smyth 2010).
    return np.where(np.isnan(observed), np.nan, (1 + further) / (1 + len(rows)))


def _multinomial(shares: np.ndarray, count: np.ndarray, key_path: KeyPath) -> np.ndarray:
    """int64[R,K]: count[r] samples from each row of shares [R,K]; a row of zeros has count 0."""
    rows, columns = shares.shape
    # Inversion: row r owns the interval [r, r + 1), and its shares divide that interval.
    edges = np.cumsum(shares, axis=1)
    edges = edges / np.where(edges[:, -1:] > 0, edges[:, -1:], 1)
    row = np.repeat(np.arange(rows), count)
    # 32 bits of each word, so that row + uniform is exact and never rounds up into the next row.
    uniform = (words(key_path, len(row)) >> np.uint64(32)) * 2.0**-32
    all_edges = (np.arange(rows)[:, None] + edges).ravel()
    cell = np.searchsorted(all_edges, row + uniform, side="right")
    return np.bincount(cell, minlength=rows * columns).reshape(rows, columns)


def _as_read(
    real: np.ndarray, confusion: Sequence[Any], groups_of_class: np.ndarray, key_path: KeyPath
) -> np.ndarray:
    """float64[C,G]: real counts as read by an annotator whose rates are sampled anew."""
    read = np.zeros(real.shape)
    for c, row in enumerate(groups_of_class):
        if row.any():
            counts = np.asarray(confusion[c])
            # A row without held-out images gets no sample, and `_rates` makes it the identity
            # again.
            resampled = _multinomial(_rates(counts), counts.sum(axis=1), (*key_path, c))
            read[c, row] = real[c, row] @ _rates(resampled)
    return read


def _rates(counts: np.ndarray) -> np.ndarray:
    """P(column read | row true) of a confusion matrix; of an unseen row the identity."""
    held_out = counts.sum(axis=1, keepdims=True)
    return np.where(held_out > 0, counts / np.maximum(held_out, 1), np.eye(len(counts)))


def _smoothed(counts: np.ndarray) -> np.ndarray:
    """float64[K,K]: the rates that variances are taken at."""
    return (counts + PSEUDO / len(counts)) / (counts.sum(axis=1, keepdims=True) + PSEUDO)


def _condition(counts: np.ndarray) -> float:
    """Condition number of the rates; inf where they are singular or a row of them is unknown."""
    known = counts.sum(axis=1).all()
    return float(np.linalg.cond(_rates(counts))) if known else math.inf


def _distinguishes(counts: np.ndarray) -> bool:
    """Whether the smallest singular value of the rates is beyond its own 95 % sampling error.

    No fixed condition number says so: rates of a mere guesser are never quite singular. To first
    order the value u^T A v varies as A does; each row of A is multinomial.
    """
    held_out = counts.sum(axis=1)
    if not held_out.all():
        return False
    # The last singular vectors are the change of shares that moves what is read the least.
    left, values, right = np.linalg.svd(_rates(counts))
    u = left[:, -1]
    v = right[-1]
    rates = _smoothed(counts)
    # Var(u^T A v) = sum_k u_k^2 / n_k (E_k[v^2] - E_k[v]^2), E_k over row k of the rates.
    variance = (u**2 / held_out * (rates @ v**2 - (rates @ v) ** 2)).sum()
    return bool(values[-1] > Z * np.sqrt(variance))


def _maximum_likelihood(inverse: np.ndarray, read: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """The shares s of the simplex, float64[K], that maximise sum(read * log(rates^T s)).

    By EM (Vardi and Lee, JRSS B 1993). With g the gradient, log-likelihood per image is within
    max(g) - 1 of its maximum (Cover, 1984): the stopping rule. It starts at the inverse, which is
    the maximum if it lies inside.
    """
    # A share of exactly 0 would stay 0: an EM step multiplies.
    share = np.maximum(inverse, EM_FLOOR)
    share /= share.sum()
    for _ in range(EM_STEPS):
        expected = share @ rates
        # s_k <- s_k g_k with g_k = sum_j q_j A[k,j] / (A^T s)_j.
        gradient = rates @ np.divide(read, expected, out=np.zeros(len(read)), where=expected > 0)
        share = share * gradient
        if gradient.max() - 1 < EM_GAP:
            break
    return share / share.sum()


def _score_interval(
    share: np.ndarray, confusion: np.ndarray, generated: int, z: float
) -> tuple[np.ndarray, np.ndarray]:
    """How far the interval of each share reaches below and above it, float64[K] each.

    Of share k it holds all t with (share_k - t)^2 <= z^2 variance_k(t). The variance at t, not at
    the estimate, is what makes Wilson's interval cover near 0 and 1, and Fieller's where the rates
    are uncertain. It is a quadratic in t, fixed by three of its values.
    """
    # A class with one group has a share of 1, without an error.
    if len(share) == 1:
        return np.zeros(1), np.zeros(1)
    at0, middle, at1 = (
        _variance(_with_share_k(share, t), confusion, generated) for t in (0, 0.5, 1)
    )
    # variance(t) = square t^2 + linear t + at0, from its values at 0, 1/2 and 1.
    square = 2 * (at0 + at1 - 2 * middle)
    linear = at1 - at0 - square
    # The ends are the roots of a t^2 - 2 b t + c.
    a = 1 - z**2 * square
    b = share + z**2 * linear / 2
    c = share**2 - z**2 * at0
    bounded = a > 0  # else all t on one side at least belong to it
    a = np.where(bounded, a, 1)
    root = np.sqrt(np.maximum(b**2 - a * c, 0))
    below = np.maximum(share - (b - root) / a, 0)
    above = np.maximum((b + root) / a - share, 0)
    return np.where(bounded, below, np.inf), np.where(bounded, above, np.inf)


def _with_share_k(share: np.ndarray, value: float) -> np.ndarray:
    """The shares, in row k with the k-th set to `value` and the others in proportion."""
    own = np.eye(len(share))
    # `tiny` leaves proportions defined where all other shares are 0.
    others = np.where(own, 0, np.maximum(share, np.finfo(float).tiny))
    return value * own + (1 - value) * others / others.sum(axis=1, keepdims=True)


def _variance(shares: np.ndarray, confusion: np.ndarray, generated: int) -> np.ndarray:
    """Variance of the k-th share of the inverse if the truth is row k of shares [K,K].

    To first order in both samples: `generated` images multinomial over what is read, and each true
    group's held-out images over its row. With B the inverse of A^T: d s = B (d q - d A^T s).
    """
    inverse = np.linalg.inv(_rates(confusion)).T
    rates = _smoothed(confusion)
    read = shares @ rates
    # Var(sum_j B[k,j] q_j) = (sum_j B[k,j]^2 q_j - (sum_j B[k,j] q_j)^2) / n of one multinomial.
    sampled = (inverse**2 * read).sum(axis=1) - (inverse * read).sum(axis=1) ** 2
    # The same for every row of A, which true group i enters with weight s_i.
    confused = inverse**2 @ rates.T - (inverse @ rates.T) ** 2
    return sampled / generated + (shares**2 * confused / confusion.sum(axis=1)).sum(axis=1)


def _corrected_aligned_share(
    weight: np.ndarray, inverse: np.ndarray, below: np.ndarray, above: np.ndarray
) -> dict[str, float]:
    """The bias-aligned share from that of each class, float64[C] each.

    NaN where no class has weight. Classes are independent, so distances from share to end add in
    squares (MOVER; Zou and Donner, Stat Med 2008).
    """
    used = weight > 0
    if not used.any():
        return dict.fromkeys(("value", "low", "high"), math.nan)
    weight = weight[used] / weight[used].sum()
    share = weight @ inverse[used]
    ends = {
        "value": share,
        "low": share - np.sqrt(((weight * below[used]) ** 2).sum()),
        "high": share + np.sqrt(((weight * above[used]) ** 2).sum()),
    }
    return {name: float(np.clip(value, 0, 1)) for name, value in ends.items()}
