"""What was drawn, held against the real pool: histograms and distances between joint distributions.

Distances between finite tables are biased upwards, and an annotator of groups confuses them. So the
plain numbers have their nulls at equal n (`null`), and shares can be corrected for the annotator
(`corrected_shares`).
"""

import numpy as np

from selfloop_jax.measure.wilson import Z, wilson
from selfloop_jax.runtime.rng import KeyPath, words

SMOOTHING = 0.5  # added to every cell before a divergence


QUANTILES = (0.05, 0.5, 0.95)


# Held-out images added to each group's row of a confusion matrix, for its variance alone: where no
# error was seen its plain estimate is 0, and shares of few per cent looked certain (intervals of 95
# % covered 83 %).
PSEUDO = 2.0


EM_STEPS, EM_GAP = 10_000, 1e-10


EM_FLOOR = 1e-4  # share that EM starts from where the inverse is below it: from 0 it could not grow


def summary(
    label: np.ndarray,
    group: np.ndarray,
    real_joint: np.ndarray,
    aligned_group: np.ndarray,
    members: np.ndarray,
) -> dict[str, object]:
    """Histograms of N generated images and their distance from the real joint.

    label, group int32[N] (-1 unknown), real_joint int[C,G], aligned_group int32[C] (-1 none) -> a
    dictionary ready for the record. Images of unknown group count in the class histogram only.
    members bool[C,G]: the cells that can be; the others take no part in a divergence.
    """
    classes, groups = real_joint.shape
    known = group >= 0
    cell = label[known] * groups + group[known]
    joint = np.bincount(cell, minlength=classes * groups).reshape(classes, groups)
    biased = known & (aligned_group[label] >= 0)
    share = (group[biased] == aligned_group[label[biased]]).mean() if biased.any() else float("nan")
    return {
        "count": len(label),
        "class_histogram": np.bincount(label, minlength=classes),
        "group_histogram": joint.sum(axis=0),
        "joint": joint,
        "unknown_group": int((~known).sum()),
        "kl_to_real": kl(joint[members], real_joint[members]),
        "total_variation_to_real": total_variation(joint, real_joint),
        "bias_aligned_share": float(share),
    }


def kl(p: np.ndarray, q: np.ndarray) -> float:
    """KL(p || q) in nats between two tables of counts, 0.5 added to every cell; NaN where one is empty."""
    if not p.sum() or not q.sum():
        return float("nan")
    p, q = (p + SMOOTHING) / (p + SMOOTHING).sum(), (q + SMOOTHING) / (q + SMOOTHING).sum()
    return float((p * np.log(p / q)).sum())


def total_variation(p: np.ndarray, q: np.ndarray) -> float:
    """Half the L1 distance between two tables of counts as shares; NaN where one is empty."""
    if not p.sum() or not q.sum():
        return float("nan")
    return float(np.abs(p / p.sum() - q / q.sum()).sum() / 2)


def cell_coverage(joint: np.ndarray, real_joint: np.ndarray, members: np.ndarray) -> float:
    """Share of the cells with real images that also have generated ones; NaN without real images.

    joint, real_joint int[C,G] counts, members bool[C,G]. `null` gives what n images can be expected
    to reach.
    """
    cells = members & (real_joint > 0)
    return float((joint[cells] > 0).mean()) if cells.any() else float("nan")


def aligned_interval(joint: np.ndarray, aligned_group: np.ndarray) -> tuple[float, float]:
    """Wilson's interval of `bias_aligned_share`, from joint int[C,G] and aligned_group int[C] (-1 none).

    It is that of the groups as they were read: an annotator's errors are no part of it.
    """
    biased = np.flatnonzero(aligned_group >= 0)
    return wilson(joint[biased, aligned_group[biased]].sum(), joint[biased].sum())


def null(
    real_joint: np.ndarray,
    joint: np.ndarray,
    members: np.ndarray,
    address: KeyPath,
    replicates: int = 1000,
    confusion: list[np.ndarray] | None = None,
) -> dict[str, object]:
    """What the distances and the coverage are when groups are drawn from the real shares themselves.

    real_joint, joint int[C,G]: counts of real and of drawn images of known group; members
    bool[C,G]. Classes are imposed when images are drawn, so each replicate keeps the class
    histogram of `joint` and draws the groups within a class from P_real(group | class), the real
    counts taken as they are: they are what the generator has seen. It says nothing where groups
    were imposed too. Images of a class without real ones stay as they are.

    confusion: where an annotator read the groups of `joint`, its counts per class
    (`annotate.confusion`). Every replicate is then read with rates drawn anew from them, lest the
    annotator's errors and the uncertainty of their rates pass for drift. A group without held-out
    images counts as never mistaken.

    Returns: Of `kl_to_real`, `total_variation_to_real`, `cell_coverage` the 5, 50 and 95 %
      quantiles, and under `<name>_p` the one-sided p value, (1 + replicates at least as far out) /
      (1 + replicates), where further out is a larger distance, a smaller coverage. NaN where the
      number itself is.
    """
    real = np.where(members, real_joint, 0)
    blank = real.sum(axis=1) == 0
    count = np.where(blank, 0, joint.sum(axis=1))
    rows = np.empty((replicates, 3))
    for replicate in range(replicates):
        place = (*address, replicate)
        seen = (
            real if confusion is None else _as_read(real, confusion, members, (*place, "annotator"))
        )
        drawn = np.where(blank[:, None], joint, _multinomial(seen, count, (*place, "drawn")))
        rows[replicate] = _statistics(drawn, real_joint, members)
    names = ("kl_to_real", "total_variation_to_real", "cell_coverage")
    quantiles = np.quantile(rows, QUANTILES, axis=0).T.tolist()
    p = _p_values(_statistics(joint, real_joint, members), rows).tolist()
    return dict(zip(names, quantiles, strict=True)) | {
        f"{n}_p": v for n, v in zip(names, p, strict=True)
    }


def corrected_shares(
    joint: np.ndarray,
    confusion: list[np.ndarray],
    members: np.ndarray,
    aligned_group: np.ndarray | None = None,
) -> dict[str, object]:
    """Group shares within each class, corrected for the errors of the annotator that read the groups.

    joint int[C,G]: drawn images by class and group read; confusion: per class int[K,K], rows the
    true group, columns the group read, on held-out real images; members bool[C,G]; aligned_group
    int[C] (-1 none). With A[k,j] = P(reads j | true k) a class of true shares s is read as q = A^T
    s (Rogan and Gladen, Am J Epidemiol 1978, for two groups). `share` maximises the likelihood over
    the simplex, so it is the inverse where that lies inside. It takes errors on generated images to
    be those on real ones.

    `low`, `high` are 95 % score intervals over the n drawn and the held-out images, Wilson's where
    the annotator is known to be perfect. Near the boundary of the simplex `share` is biased towards
    its inside, by up to its own error, and its interval begins at 0 or ends at 1: read the interval
    there. Over the classes such biases would add up, errors average out: `aligned` therefore
    averages the inverses, cut to [0, 1] only in the end, and is not the average of `share`.

    Returns: `share`, `low`, `high`, `uncorrected` float[C,G], NaN outside members and in classes
      without images; `condition` float[C]: that of A, inf with a group that has no held-out images,
      NaN without groups; `identified` bool[C]: whether the annotator tells the groups apart beyond
      the error of its held-out images. Where not, share, low and high are NaN. `aligned`: the four
      of the bias-aligned share, NaN where it rests on a class that is not identified.
    """
    share, inverse, below, above, uncorrected = np.full((5, *joint.shape), np.nan)
    condition, identified = np.full(len(joint), np.nan), np.zeros(len(joint), bool)
    for c, row in enumerate(members):
        if not row.any():
            continue
        counts, read = np.asarray(confusion[c]), joint[c, row]
        condition[c], identified[c] = _condition(counts), _tells_apart(counts)
        if read.sum():
            uncorrected[c, row] = read / read.sum()
        if read.sum() and identified[c]:
            inverse[c, row] = np.linalg.solve(_rates(counts).T, uncorrected[c, row])
            share[c, row] = _maximum_likelihood(
                inverse[c, row], uncorrected[c, row], _rates(counts)
            )
            below[c, row], above[c, row] = _score_interval(share[c, row], counts, read.sum())
    aligned = np.full(len(joint), -1) if aligned_group is None else aligned_group
    weight = np.where(aligned >= 0, joint.sum(axis=1, where=members), 0)
    cells = [
        table[np.arange(len(joint)), aligned] for table in (inverse, below, above, uncorrected)
    ]
    return {
        "share": share,
        "low": np.maximum(share - below, 0),
        "high": np.minimum(share + above, 1),
        "uncorrected": uncorrected,
        "condition": condition,
        "identified": identified,
        "aligned": _aligned(weight, *cells),
    }


def _statistics(joint: np.ndarray, real_joint: np.ndarray, members: np.ndarray) -> list[float]:
    """The two distances as `composition` takes them, and the coverage."""
    return [
        kl(joint[members], real_joint[members]),
        total_variation(joint, real_joint),
        cell_coverage(joint, real_joint, members),
    ]


def _p_values(found: list[float], rows: np.ndarray) -> np.ndarray:
    """float64[3] of the statistics found against their null, rows float[R,3]."""
    outwards = np.array([1, 1, -1])
    # the same table summed in another order may differ by a rounding
    further = (outwards * (rows - found) >= -1e-12).sum(axis=0)
    return np.where(np.isnan(found), np.nan, (1 + further) / (1 + len(rows)))


def _multinomial(shares: np.ndarray, count: np.ndarray, address: KeyPath) -> np.ndarray:
    """int64[R,K]: of each row of shares [R,K], in proportion, count[r] draws; a row of zeros has count 0."""
    rows, columns = shares.shape
    edges = np.cumsum(shares, axis=1)
    edges = edges / np.where(edges[:, -1:] > 0, edges[:, -1:], 1)
    row = np.repeat(np.arange(rows), count)
    # 32 bits of each word, so that row + uniform is exact and never rounds up into the next row
    uniform = (words(address, len(row)) >> np.uint64(32)) * 2.0**-32
    cell = np.searchsorted((np.arange(rows)[:, None] + edges).ravel(), row + uniform, side="right")
    return np.bincount(cell, minlength=rows * columns).reshape(rows, columns)


def _as_read(
    real: np.ndarray, confusion: list[np.ndarray], members: np.ndarray, address: KeyPath
) -> np.ndarray:
    """float64[C,G]: real counts as an annotator reads them whose rates are drawn anew from its counts."""
    seen = np.zeros(real.shape)
    for c, row in enumerate(members):
        if row.any():
            counts = np.asarray(confusion[c])
            redrawn = _multinomial(_rates(counts), counts.sum(axis=1), (*address, c))
            seen[c, row] = real[c, row] @ _rates(redrawn)
    return seen


def _rates(counts: np.ndarray) -> np.ndarray:
    """float64[K,K] of a confusion matrix int[K,K]: P(column read | row true), 1 on the diagonal if unseen."""
    held_out = counts.sum(axis=1, keepdims=True)
    return np.where(held_out > 0, counts / np.maximum(held_out, 1), np.eye(len(counts)))


def _smoothed(counts: np.ndarray) -> np.ndarray:
    """float64[K,K]: the rates that variances are taken at."""
    return (counts + PSEUDO / len(counts)) / (counts.sum(axis=1, keepdims=True) + PSEUDO)


def _condition(counts: np.ndarray) -> float:
    """Condition number of the rates; inf where they are singular or a row of them is unknown."""
    known = counts.sum(axis=1).all()
    return float(np.linalg.cond(_rates(counts))) if known else float("inf")


def _tells_apart(counts: np.ndarray) -> bool:
    """Whether the smallest singular value of the rates is beyond its own 95 % sampling error.

    No fixed condition number says so: rates of a mere guesser are never quite singular. To first
    order the value u^T A v varies as A does; each row of A is multinomial.
    """
    held_out = counts.sum(axis=1)
    if not held_out.all():
        return False
    left, values, right = np.linalg.svd(_rates(counts))
    u, v, rates = left[:, -1], right[-1], _smoothed(counts)
    variance = (u**2 / held_out * (rates @ v**2 - (rates @ v) ** 2)).sum()
    return bool(values[-1] > Z * np.sqrt(variance))


def _maximum_likelihood(inverse: np.ndarray, read: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """float64[K]: the shares s of the simplex that maximise sum(read * log(rates^T s)), by EM.

    Vardi and Lee, JRSS B 1993. With g the gradient, log-likelihood per image is within max(g) - 1
    of its maximum (Cover, 1984): the stopping rule. Begun at the inverse, which is the maximum if
    it lies inside.
    """
    share = np.maximum(inverse, EM_FLOOR)
    share /= share.sum()
    for _ in range(EM_STEPS):
        expected = share @ rates
        gradient = rates @ np.divide(read, expected, out=np.zeros(len(read)), where=expected > 0)
        share = share * gradient
        if gradient.max() - 1 < EM_GAP:
            break
    return share / share.sum()


def _score_interval(
    share: np.ndarray, counts: np.ndarray, drawn: int
) -> tuple[np.ndarray, np.ndarray]:
    """How far below and above share_k all t reach with (share_k - t)^2 <= Z^2 variance_k(t), float64[K] each.

    The variance at t, not at the estimate, is what makes Wilson's interval cover near 0 and 1, and
    Fieller's where the rates are uncertain. It is a quadratic in t, fixed by three of its values.
    """
    if len(share) == 1:
        return np.zeros(1), np.zeros(1)
    at0, middle, at1 = (_variance(_with_share_k(share, t), counts, drawn) for t in (0, 0.5, 1))
    square = 2 * (at0 + at1 - 2 * middle)
    linear = at1 - at0 - square
    a, b, c = 1 - Z**2 * square, share + Z**2 * linear / 2, share**2 - Z**2 * at0
    bounded = a > 0  # else all t on one side at least belong to it
    a, root = np.where(bounded, a, 1), np.sqrt(np.maximum(b**2 - a * c, 0))
    below, above = np.maximum(share - (b - root) / a, 0), np.maximum((b + root) / a - share, 0)
    return np.where(bounded, below, np.inf), np.where(bounded, above, np.inf)


def _with_share_k(share: np.ndarray, value: float) -> np.ndarray:
    """float64[K,K]: in row k the shares with the k-th set to `value`, the others in proportion."""
    own = np.eye(len(share))
    others = np.where(own, 0, np.maximum(share, np.finfo(float).tiny))
    return value * own + (1 - value) * others / others.sum(axis=1, keepdims=True)


def _variance(shares: np.ndarray, counts: np.ndarray, drawn: int) -> np.ndarray:
    """float64[K]: variance of the k-th share of the inverse if the truth is row k of shares [K,K].

    To first order in both samples: `drawn` images multinomial over what is read, and each true
    group's held-out images over its row. With B the inverse of A^T: d s = B (d q - d A^T s).
    """
    inverse, rates = np.linalg.inv(_rates(counts)).T, _smoothed(counts)
    read = shares @ rates
    sampled = (inverse**2 * read).sum(axis=1) - (inverse * read).sum(axis=1) ** 2
    confused = inverse**2 @ rates.T - (inverse @ rates.T) ** 2
    return sampled / drawn + (shares**2 * confused / counts.sum(axis=1)).sum(axis=1)


def _aligned(
    weight: np.ndarray,
    inverse: np.ndarray,
    below: np.ndarray,
    above: np.ndarray,
    uncorrected: np.ndarray,
) -> dict[str, float]:
    """The bias-aligned share from the cells of the C classes, each weighted; NaN where all weights are 0.

    Classes are independent, so distances from share to end add in squares (MOVER; Zou and Donner,
    Stat Med 2008).
    """
    used = weight > 0
    if not used.any():
        return dict.fromkeys(("share", "low", "high", "uncorrected"), float("nan"))
    weight = weight[used] / weight[used].sum()
    share = weight @ inverse[used]
    low = share - np.sqrt(((weight * below[used]) ** 2).sum())
    high = share + np.sqrt(((weight * above[used]) ** 2).sum())
    corrected = {"share": share, "low": low, "high": high}
    return {name: float(np.clip(value, 0, 1)) for name, value in corrected.items()} | {
        "uncorrected": float(weight @ uncorrected[used])
    }
