"""The recall of a subgroup over how many images of it, and of its class, a classifier trained on.

The state of a loop is n[c,g], the images of class c and group g in its pool. The law: logit recall
is linear in logarithms of counts, with one constant per class, fitted to classifiers of real
images. A gap is a range over groups, and the range over noisy recalls is larger than that of their
means, so that what classifiers of equal counts scatter by belongs to the law. NumPy and SciPy only.
docs/dynamics.md derives from it when a gap grows, falls and comes to rest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from selfloop_jax.runtime import rng

EDGE = 1e-3  # recalls nearer to 0 or 1 count as this far from it: their logits are infinite
SAMPLES = 64  # of the scatter, for the expected range

# What a recall can depend on, of counts float64[...,C,G].
TERMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "own": np.log1p,
    "class": lambda n: np.broadcast_to(np.log1p(n.sum(axis=-1, keepdims=True)), n.shape),
    # How much of the group is the class's own: where colour alone gives a class away, others lose.
    "purity": lambda n: np.log((1 + n) / (n.shape[-2] + n.sum(axis=-2, keepdims=True))),
}


@dataclass(frozen=True)
class LearningCurve:
    """logit recall[c,g] = constants[c] + sum of slopes[t] terms[t](n)[c,g], plus scatter.

    constants: float64[C]; slopes: float64[T]; scatter: standard deviation of the logits of one
    classifier's subgroups about the curve, within a class.
    """

    terms: tuple[str, ...]
    constants: np.ndarray
    slopes: np.ndarray
    scatter: float

    def logit(self, counts: np.ndarray) -> np.ndarray:
        """Expected logits float64[...,C,G] after training on counts [...,C,G]."""
        counts = np.asarray(counts, np.float64)
        return self.constants[:, None] + _features(counts, self.terms) @ self.slopes

    def recall(self, counts: np.ndarray) -> np.ndarray:
        """The recalls float64[...,C,G] at the expected logits."""
        return np.asarray(special.expit(self.logit(counts)))

    def gap(self, counts: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
        """Expected mean over classes of the largest minus the smallest recall, float64[...].

        Over the groups of bool[C,G] `known`, by default all; classes with fewer than two are left
        out, as in `equal_opportunity_difference_mean`.
        """
        logit = self.logit(counts)
        known = np.ones(logit.shape[-2:], bool) if known is None else known
        noise = self.scatter * rng.normals((0, "learning curve"), (SAMPLES, *logit.shape[-2:]))
        compared = known.sum(axis=1) > 1
        gap = np.zeros(logit.shape[:-2])
        # The same samples for all counts, so that differences of gaps have less noise.
        for sample in noise:
            recall = special.expit(logit + sample)
            high = np.where(known, recall, -np.inf).max(axis=-1)
            low = np.where(known, recall, np.inf).min(axis=-1)
            gap += (high - low)[..., compared].mean(axis=-1)
        return gap / SAMPLES


def fit(counts: np.ndarray, recall: np.ndarray, terms: Sequence[str]) -> LearningCurve:
    """Fits a curve to R classifiers by least squares on the logits.

    counts, recall: float64[R,C,G]; NaN recalls, of subgroups without test images, are left out.
    Raises ValueError where they are too few, or too similar, for the number of terms.
    """
    target = special.logit(np.clip(recall, EDGE, 1 - EDGE))
    kept = np.isfinite(target)
    classes = recall.shape[1]
    constants = np.broadcast_to(np.eye(classes)[None, :, None], (*recall.shape, classes))
    design = np.concatenate([constants, _features(np.asarray(counts, float), terms)], axis=-1)
    x, y = design[kept], target[kept]
    # A class that no classifier was tested on keeps the constant 0.
    used = x.any(axis=0)
    if len(y) <= used.sum() or np.linalg.matrix_rank(x[:, used]) < used.sum():
        raise ValueError("learning curve: too few classifiers, or too similar training sets")
    solution = np.zeros(len(used))
    solution[used] = np.linalg.lstsq(x[:, used], y)[0]
    rest = np.where(kept, target - design @ solution, np.nan)
    return LearningCurve(
        tuple(terms), solution[:classes], solution[classes:], _scatter(rest, len(terms))
    )


def _scatter(rest: np.ndarray, terms: int) -> float:
    """Standard deviation of residuals [R,C,G] about the mean of their classifier and class."""
    groups = np.isfinite(rest).sum(axis=-1)
    compared = groups > 1
    deviations = [row[np.isfinite(row)] for row in rest[compared]]
    squares = sum(float(((row - row.mean()) ** 2).sum()) for row in deviations)
    freedom = float((groups[compared] - 1).sum()) - terms
    return float(np.sqrt(squares / freedom)) if freedom > 0 else 0.0


def left_out_error(
    counts: np.ndarray, recall: np.ndarray, labels: Sequence[str], terms: Sequence[str]
) -> float:
    """Mean absolute error of recalls, those of one label at a time left out of the fit."""
    errors = []
    for label in dict.fromkeys(labels):
        out = np.array([other == label for other in labels])
        curve = fit(counts[~out], recall[~out], terms)
        errors.append(np.abs(curve.recall(counts[out]) - recall[out]).ravel())
    return float(np.nanmean(np.concatenate(errors)))


def quality(curve: LearningCurve, counts: np.ndarray, accuracy: float) -> float:
    """What one of these images counts in real ones: q with mean recall(q counts) = accuracy.

    Between 0.001 and 10; an accuracy out of reach gives the nearer end. All subgroups count alike.
    """
    low, high = np.log(1e-3), np.log(10.0)
    # Recall rises with the number of images, so halving finds the place.
    for _ in range(50):
        middle = (low + high) / 2
        if curve.recall(np.exp(middle) * counts).mean() < accuracy:
            low = middle
        else:
            high = middle
    return float(np.exp((low + high) / 2))


def _features(counts: np.ndarray, terms: Sequence[str]) -> np.ndarray:
    """float64[...,C,G,T]."""
    return np.stack([TERMS[name](counts) for name in terms], axis=-1)
