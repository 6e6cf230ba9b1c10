"""The recall of a subgroup over how many images of it, and of its class, a classifier trained on.

The state of a loop is n[c,g], the images of class c and group g in its pool. The law has two parts,
both fitted to classifiers of real images. The logit of a recall has a mean that is linear in
logarithms of counts, with one constant per class. And it scatters about that mean, most where a
subgroup has few images of its own while groups say much about classes: a classifier of such a pool
has no reason to get that subgroup right, nor to get it wrong. A gap is a range over groups, so it
grows with the scatter as much as with the mean. NumPy and SciPy only. docs/dynamics.md derives from
the law when a gap grows, falls and comes to rest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from selfloop_jax.runtime import rng

EDGE = 2e-3  # recalls nearer to 0 or 1 count as this far from it: their logits are infinite
SAMPLES = 64  # of the scatter, for the expected range
ROUNDS = 20  # of mean and scatter in turn, which converge within ten


def dependence(counts: np.ndarray) -> np.ndarray:
    """Mutual information of class and group in counts float64[...,C,G], nats, float64[...,1,1]."""
    total = counts.sum(axis=(-2, -1), keepdims=True)
    p = counts / np.maximum(total, np.finfo(float).tiny)
    independent = p.sum(axis=-1, keepdims=True) * p.sum(axis=-2, keepdims=True)
    # A subgroup without images adds nothing.
    ratio = np.divide(p, independent, out=np.ones_like(p), where=p > 0)
    return np.asarray((p * np.log(ratio)).sum(axis=(-2, -1), keepdims=True))


# What recalls and their scatter can depend on, of counts float64[...,C,G].
TERMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "own": np.log1p,
    "class": lambda n: np.log1p(n.sum(axis=-1, keepdims=True)),
    # How much of the group is the class's own.
    "purity": lambda n: np.log((1 + n) / (n.shape[-2] + n.sum(axis=-2, keepdims=True))),
    # A subgroup without images is taken for another class, the more so the more groups say.
    "shortcut": lambda n: dependence(n) / (1 + n),
    "dependence": dependence,
}
SCATTER = ("own", "dependence")


@dataclass(frozen=True)
class LearningCurve:
    """Logits of recalls: normal about a mean, with a variance that depends on the counts.

    Mean: constants[c] + sum of slopes[t] terms[t](n)[c,g]; log variance: scatter[0] + sum of
    scatter[1 + t] SCATTER[t](n)[c,g]. constants float64[C], slopes float64[T], scatter float64[3].
    """

    terms: tuple[str, ...]
    constants: np.ndarray
    slopes: np.ndarray
    scatter: np.ndarray

    def logit(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation, float64[...,C,G], after training on counts [...,C,G]."""
        counts = np.asarray(counts, np.float64)
        mean = self.constants[:, None] + _features(counts, self.terms) @ self.slopes
        log_variance = self.scatter[0] + _features(counts, SCATTER) @ self.scatter[1:]
        return mean, np.exp(log_variance / 2)

    def recall(self, counts: np.ndarray) -> np.ndarray:
        """Expected recalls float64[...,C,G], to about 0.01 (MacKay 1992)."""
        mean, deviation = self.logit(counts)
        return np.asarray(special.expit(mean / np.sqrt(1 + np.pi / 8 * deviation**2)))

    def gap(self, counts: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
        """Expected mean over classes of the largest minus the smallest recall, float64[...].

        Over the groups of bool[C,G] `known`, by default all; classes with fewer than two are left
        out, as in `equal_opportunity_difference_mean`.
        """
        mean, deviation = self.logit(counts)
        known = np.ones(mean.shape[-2:], bool) if known is None else known
        compared = known.sum(axis=1) > 1
        gap = np.zeros(mean.shape[:-2])
        # The same samples for all counts, so that differences of gaps have less noise.
        for sample in rng.normals((0, "learning curve"), (SAMPLES, *mean.shape[-2:])):
            recall = special.expit(mean + deviation * sample)
            high = np.where(known, recall, -np.inf).max(axis=-1)
            low = np.where(known, recall, np.inf).min(axis=-1)
            gap += (high - low)[..., compared].mean(axis=-1)
        return gap / SAMPLES


def fit(counts: np.ndarray, recall: np.ndarray, terms: Sequence[str]) -> LearningCurve:
    """Fits mean and variance to R classifiers in turn, towards the greatest likelihood.

    counts, recall: float64[R,C,G]; NaN recalls, of subgroups without test images, are left out.
    Raises ValueError where they are too few, or too similar, for the number of terms.
    """
    counts = np.asarray(counts, np.float64)
    target = special.logit(np.clip(recall, EDGE, 1 - EDGE))
    kept = np.isfinite(target)
    classes = recall.shape[1]
    constants = np.broadcast_to(np.eye(classes)[None, :, None], (*recall.shape, classes))
    x = np.concatenate([constants, _features(counts, terms)], axis=-1)[kept]
    z = _features(counts, SCATTER)[kept]
    z = np.concatenate([np.ones((len(z), 1)), z], axis=1)
    y = target[kept]
    # A class that no classifier was tested on keeps the constant 0.
    used = x.any(axis=0)
    if len(y) <= used.sum() or _rank(x[:, used]) < used.sum() or _rank(z) < z.shape[1]:
        raise ValueError("learning curve: too few classifiers, or too similar training sets")
    mean = np.zeros(len(used))
    scatter = np.zeros(z.shape[1])
    for _ in range(ROUNDS):
        weighted = x[:, used] * np.exp(-z @ scatter)[:, None]
        mean[used] = np.linalg.solve(weighted.T @ x[:, used], weighted.T @ y)
        squares = (y - x @ mean) ** 2
        scatter = _log_variance(z, squares, scatter)
    return LearningCurve(tuple(terms), mean[:classes], mean[classes:], scatter)


def _rank(x: np.ndarray) -> int:
    return int(np.linalg.matrix_rank(x))


def _log_variance(z: np.ndarray, squares: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Coefficients of log variance = z @ coefficients, by Fisher scoring for normal residuals."""
    # Towards the mean square first: from far below, a full step would overshoot.
    mean_square = max(float(squares.mean()), np.finfo(float).tiny)
    coefficients = start if start.any() else np.r_[np.log(mean_square), np.zeros(len(start) - 1)]
    least_squares = np.linalg.pinv(z)
    for _ in range(ROUNDS):
        step = least_squares @ (squares / np.exp(z @ coefficients) - 1)
        coefficients = coefficients + step / 2
    return coefficients


def left_out_error(
    counts: np.ndarray, recall: np.ndarray, labels: Sequence[str], terms: Sequence[str]
) -> tuple[float, float]:
    """Mean absolute errors of gap and mean recall, one label at a time left out of the fit.

    Raises ValueError as `fit` does.
    """
    gap, mean = [], []
    for label in dict.fromkeys(labels):
        out = np.array([other == label for other in labels])
        curve = fit(counts[~out], recall[~out], terms)
        for n, seen in zip(counts[out], recall[out], strict=True):
            known = np.isfinite(seen)
            gap.append(abs(float(curve.gap(n, known)) - observed_gap(seen)))
            mean.append(abs(float((curve.recall(n) - seen)[known].mean())))
    return float(np.mean(gap)), float(np.mean(mean))


def observed_gap(recall: np.ndarray) -> float:
    """Returns the mean over classes of the range of recalls float64[C,G], of which NaN are none."""
    compared = recall[np.isfinite(recall).sum(axis=1) > 1]
    return float(np.mean(np.nanmax(compared, axis=1) - np.nanmin(compared, axis=1)))


def quality(
    curve: LearningCurve, counts: np.ndarray, accuracy: float, known: np.ndarray | None = None
) -> float:
    """What one of these images counts in real ones: q with mean recall(q counts) = accuracy.

    Over the subgroups of bool[C,G] `known`, by default all, which count alike. Between 0.001 and
    10; NaN for an accuracy out of reach.
    """
    known = np.ones(counts.shape, bool) if known is None else known

    def mean(log_q: float) -> float:
        return float(curve.recall(np.exp(log_q) * counts)[known].mean())

    low, high = np.log(1e-3), np.log(10.0)
    if not mean(low) <= accuracy <= mean(high):
        return float("nan")
    # Between the two ends the mean recall passes the accuracy; halving finds where.
    for _ in range(50):
        middle = (low + high) / 2
        if mean(middle) < accuracy:
            low = middle
        else:
            high = middle
    return float(np.exp((low + high) / 2))


def _features(counts: np.ndarray, terms: Sequence[str]) -> np.ndarray:
    """float64[...,C,G,T]."""
    return np.stack([np.broadcast_to(TERMS[name](counts), counts.shape) for name in terms], axis=-1)
