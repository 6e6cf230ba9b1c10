"""Confidence intervals of shares and of fairness metrics. NumPy and SciPy only.

A gap is a maximum of noise, so a percentile bootstrap of it does not cover. Every interval starts
from rates instead: those of the groups of one class, with the covariance of their errors. Test
images that share a source image (a digit shown in every colour) err together; the source images are
what was sampled. The covariance is that of the rates' influence functions summed over source
images, with two pseudo-images added to each rate, one right and one wrong (Agresti and Coull, 1998;
for pairs Agresti and Min, 2005): a recall of 1 has an error too, and so has a difference between
groups that were always right or wrong together.

What follows from the rates is simulated, with normal errors of that covariance. Errors of different
classes are simulated independently. Recalls of different classes are independent; for the other
rates the bounds are conservative, since correlated normals stay inside symmetric convex sets at
least as often as independent ones (Sidak, 1967; Royen, 2014).
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from selfloop_jax.measure import gaps
from selfloop_jax.measure.test_set import TestSet
from selfloop_jax.runtime.rng import KeyPath, normals

Bounds = tuple[float, float]

UNDEFINED = (math.nan, math.nan)

Z = 1.959963984540054  # two-sided 95 %


def wilson(successes: Any, count: Any, z: float = Z) -> tuple[Any, Any]:
    """Wilson's interval of a share (JASA 1927), z standard errors to either side.

    Used where a share is also corrected for the errors of whoever read it, since Fieller's method,
    which does that, is Wilson's interval without such errors. successes and count are numbers or
    arrays of one shape; NaN where count is 0.
    """
    # NaN instead of 0 gives NaN without a warning.
    count = np.where(np.asarray(count) > 0, count, np.nan)
    share = successes / count
    # The roots t of (share - t)^2 = z^2 t (1 - t) / count.
    total = count + z**2
    centre = (successes + z**2 / 2) / total
    half = z * np.sqrt(share * (1 - share) * count + z**2 / 4) / total
    return np.maximum(centre - half, 0.0)[()], np.minimum(centre + half, 1.0)[()]


def agresti_coull(successes: Any, count: Any, z: float = Z) -> tuple[Any, Any]:
    """The interval of a share of Agresti and Coull (1998), z standard errors to either side.

    It holds Wilson's, with the same centre, and where that covers too rarely, a share near 1 or a
    dozen images, it is wider: at 95 % and from 15 images on it covers every share with a
    probability of at least 92 %.
    successes and count are numbers or arrays of one shape; NaN where count is 0.
    """
    count = np.where(np.asarray(count) > 0, count, np.nan)
    total = count + z**2
    centre = (successes + z**2 / 2) / total
    half = z * np.sqrt(centre * (1 - centre) / total)
    return np.maximum(centre - half, 0.0)[()], np.minimum(centre + half, 1.0)[()]


def clopper_pearson(successes: Any, count: Any, level: float) -> tuple[Any, Any]:
    """The exact interval of a share (Clopper and Pearson, Biometrika 1934).

    successes and count are numbers or arrays of one shape, in independent images, which need not be
    whole; counts are above 0.
    """
    tail = (1 - level) / 2
    # What rounding has added to a product of share and count.
    missed = np.maximum(count - successes, 0)
    low = special.betaincinv(np.maximum(successes, 1e-300), missed + 1, tail)
    high = special.betaincinv(successes + 1, np.maximum(missed, 1e-300), 1 - tail)
    # Without a success nothing is too low to be the share, without a miss nothing too high.
    return np.where(successes > 0, low, 0.0)[()], np.where(missed > 0, high, 1.0)[()]


class Rates(NamedTuple):
    """Rates of the k groups that have images, in one class, with B simulated errors of each."""

    group: np.ndarray  # int64[k]
    size: np.ndarray  # int64[k], images
    hits: np.ndarray  # int64[k], those that count for the rate
    effective: np.ndarray  # float64[k], independent images that would be worth as much
    rate: np.ndarray  # float64[k]
    covariance: np.ndarray  # float64[k, k], positive definite
    error: np.ndarray  # float64[B, k]


class RateErrors:
    """The rates of a test set by class, with simulated errors: what intervals are made of.

    `replicates` errors of each rate are simulated; critical values at `level` are their quantiles.
    Each kind of rate is computed on first use, from random numbers of its own.
    """

    def __init__(
        self, test_set: TestSet, key_path: KeyPath, replicates: int = 1000, level: float = 0.95
    ):
        self.test_set = test_set
        self.key_path = key_path
        self.replicates = replicates
        self.level = level

    @cached_property
    def recall(self) -> list[Rates]:
        """P(yhat = c | y = c, g), one entry per class."""
        label = self.test_set.label
        return self._per_class("tpr", lambda c: self._known & (label == c))

    @cached_property
    def false_positive(self) -> list[Rates]:
        """P(yhat = c | y != c, g); nested groups have no images outside their class."""
        if self.test_set.nested:
            return []
        label = self.test_set.label
        return self._per_class("fpr", lambda c: self._known & (label != c))

    @cached_property
    def positive(self) -> list[Rates]:
        """P(yhat = c | g), one entry per class; nested, inside the class: the recall."""
        if self.test_set.nested:
            return self.recall
        return self._per_class("positive", lambda c: self._known)

    @cached_property
    def group_accuracy(self) -> list[Rates]:
        """P(yhat = y | g), a single entry."""
        right = self.test_set.label == self.test_set.pred
        return [self._rates("group_accuracy", 0, right, self._known)]

    @cached_property
    def accuracy(self) -> Rates:
        """P(yhat = y) over all images, those of unknown group too."""
        right = self.test_set.label == self.test_set.pred
        # All in one group, so that images of unknown group count too.
        everyone = np.zeros_like(self.test_set.group)
        key_path = (*self.key_path, "accuracy")
        return _rates(right, everyone, self.test_set.source, key_path, self.replicates)

    @cached_property
    def _known(self) -> np.ndarray:
        return self.test_set.group >= 0

    def _per_class(self, kind: str, rows: Callable[[int], np.ndarray]) -> list[Rates]:
        """Rates of predicting each class among the rows(c) of that class."""
        pred = self.test_set.pred
        return [self._rates(kind, c, pred == c, rows(c)) for c in range(self.test_set.num_classes)]

    def _rates(self, kind: str, c: int, hit: np.ndarray, rows: np.ndarray) -> Rates:
        group = self.test_set.group[rows]
        source = self.test_set.source[rows]
        return _rates(hit[rows], group, source, (*self.key_path, kind, c), self.replicates)


def share_interval(
    hit: np.ndarray, source_id: np.ndarray | None = None, level: float = 0.95
) -> Bounds:
    """Agresti and Coull's interval of a share of bool[N] hits, for as many independent images."""
    if source_id is None:
        source = np.arange(len(hit))
    else:
        source = np.unique(source_id, return_inverse=True)[1]
    # The interval reads no simulated error, so the key path does not matter.
    return share_bounds(_rates(hit, np.zeros(len(hit), np.int64), source, (0, "share"), 1), level)


def recall_intervals(test_set: TestSet, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Agresti and Coull's interval of every recall, two float64[C,G]; NaN where undefined."""
    low, high = np.full((2, test_set.num_classes, test_set.num_groups), np.nan)
    # The interval needs no simulated error.
    for c, rates in enumerate(RateErrors(test_set, (0,), replicates=0).recall):
        ends = agresti_coull(rates.rate * rates.effective, rates.effective, two_sided(level))
        low[c, rates.group] = ends[0]
        high[c, rates.group] = ends[1]
    return low, high


def two_sided(level: float) -> float:
    """Standard errors to either side of an interval of that level."""
    return float(special.ndtri((1 + level) / 2))


def _rates(
    hit: np.ndarray, group: np.ndarray, source: np.ndarray, key_path: KeyPath, replicates: int
) -> Rates:
    """Rates of bool[M] hits in each group of int[M] that has rows, source int[M]."""
    # Only groups with rows get a column.
    present, column, size = np.unique(group, return_inverse=True, return_counts=True)
    hits = np.bincount(column[hit], minlength=len(present))
    rate = hits / size
    # Without paired rows all images are independent.
    if np.bincount(source, minlength=1).max() <= 1:
        effective = size.astype(np.float64)
        covariance = np.diag(rate * (1 - rate) / size)
    else:
        effective, covariance = _clustered(hit, column, source, rate, size)
    covariance = _with_pseudo_images(covariance, rate, effective)
    # The pseudo-images make the covariance positive definite, so Cholesky's factor exists.
    error = normals(key_path, (replicates, len(present))) @ np.linalg.cholesky(covariance).T
    return Rates(present, size, hits, effective, rate, covariance, error)


def _clustered(
    hit: np.ndarray, column: np.ndarray, source: np.ndarray, rate: np.ndarray, size: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Effective numbers of images, and covariance of the rates from influence functions.

    A group that shows a source image once counts its images. With several rows of one source image
    its number is what gives the rate this variance, between all rows of a source alike (Kish) and
    all independent.
    """
    # Numbered anew, since some sources have no row here.
    _, source = np.unique(source, return_inverse=True)
    k = len(size)
    sources = int(source.max()) + 1
    # Rows and hits of each source in each group, [sources, k].
    cell = source * k + column
    rows = np.bincount(cell, minlength=sources * k).reshape(sources, k)
    hits = np.bincount(cell, hit, minlength=sources * k).reshape(sources, k)
    # What a source adds to the error of each rate; the sum over all sources is 0.
    influence = (hits - rate * rows) / size
    # S / (S - 1), since influences are taken about the observed rates.
    covariance = influence.T @ influence * (sources / max(sources - 1, 1))
    # Kish 1965: the effective number if rows of one source always agree.
    alike = size**2 / (rows**2).sum(axis=0)
    variance = np.diag(covariance)
    # n with rate (1 - rate) / n = variance; without variance the rows count as alike.
    worth = np.divide(rate * (1 - rate), variance, out=alike.copy(), where=variance > 0)
    return np.clip(worth, alike, size), covariance


def _with_pseudo_images(
    covariance: np.ndarray, rate: np.ndarray, effective: np.ndarray
) -> np.ndarray:
    """Covariance float64[k,k] after two pseudo-images a rate, Agresti-Coull on its diagonal.

    Pseudo-images are independent between groups, so what two groups share counts n/(n+2) of each.
    The smallest variance keeps a difference of two groups that agree in every source image from
    having no error.
    """
    shrink = effective / (effective + 2)
    total = effective + 2
    shared = covariance * shrink[:, None] * shrink
    adjusted = _adjusted(rate, effective)
    # What Agresti and Coull's variance has more than the part shared with other groups.
    own = adjusted * (1 - adjusted) / total - np.diag(shared)
    return shared + np.diag(np.maximum(own, 0.5 / total**2))


def _adjusted(rate: np.ndarray, effective: np.ndarray) -> np.ndarray:
    """Rates float64[k] after one right and one wrong pseudo-image each."""
    return (rate * effective + 1) / (effective + 2)


def _quantile(values: np.ndarray, level: float) -> float:
    # Interpolation between two replicates would lie below the level.
    return float(np.quantile(values, level, method="higher"))


def share_bounds(rates: Rates, level: float) -> Bounds:
    """Agresti and Coull's interval of a single rate, if there is one."""
    if not len(rates.rate):
        return UNDEFINED
    hits = rates.rate * rates.effective
    low, high = agresti_coull(hits, rates.effective, two_sided(level))
    return float(low[0]), float(high[0])


def smallest_bounds(classes: Sequence[Rates], level: float) -> Bounds:
    """Interval of the smallest of all rates.

    Its ends are the smallest ends of exact intervals of all rates, which hold together: each has
    the level whose power by their number is `level` (Sidak, 1967). Wilson's interval would not do:
    in its far tails, where the many rates put its ends, it covers a recall near 1 far too rarely.
    """
    classes = [rates for rates in classes if len(rates.rate)]
    if not classes:
        return UNDEFINED
    rate = np.concatenate([rates.rate for rates in classes])
    effective = np.concatenate([rates.effective for rates in classes])
    low, high = clopper_pearson(rate * effective, effective, level ** (1 / len(rate)))
    return float(low.min()), float(high.min())


def largest_range_bounds(classes: Sequence[Rates], level: float) -> Bounds:
    """Interval of the largest range over groups, of the classes that have two groups or more."""
    low, high = _range_ends(comparable(classes), level, _pooled_deviation)
    return low, float(np.minimum(high, 1))


def mean_range_bounds(classes: Sequence[Rates], level: float) -> Bounds:
    """Interval of the mean over classes of the range over groups."""
    classes = comparable(classes)
    if not classes:
        return UNDEFINED
    centre = float(np.mean([gaps.difference(r.rate[None]) for r in classes]))
    # A range rises with one group and falls with another: at worst the pair of largest error.
    slope = [float(_deviation(r).max()) for r in classes]
    error = [gaps.difference(_error_of_equals(r)) for r in classes]
    above, below = _spread_margins(error, slope, level)
    return max(0.0, centre - above), min(1.0, centre + below)


def mean_std_bounds(classes: Sequence[Rates], level: float) -> Bounds:
    """Interval of the mean over classes of the weighted standard deviation over groups."""
    classes = comparable(classes)
    if not classes:
        return UNDEFINED
    centre = float(np.mean([gaps.weighted_std(r.rate[None], r.size[None]) for r in classes]))
    error = []
    for r in classes:
        of_class = _error_of_equals(r)
        error.append(gaps.weighted_std(of_class, np.broadcast_to(r.size, of_class.shape)))
    above, below = _spread_margins(error, [_steepest_std(r) for r in classes], level)
    return max(0.0, centre - above), min(1.0, centre + below)


def mean_ratio_bounds(classes: Sequence[Rates], nested: bool, level: float) -> Bounds:
    """Interval of the mean over classes of the ratio over groups.

    The ratio is exp(-range of the logarithms). It moves by no more than that range does, and by 1
    at most; for small steps, by the ratio times the step. Crossed, an image that is predicted
    otherwise moves the rates of two classes, so errors of classes are not independent: the
    covariance of all is at most twice that without correlations between classes (independent
    images: Var a[X] = E (a[X] - a[X'])**2 / 2 <= 2 sum a**2 p (1 - p), for any weights a).
    """
    classes = comparable(classes)
    if not classes:
        return UNDEFINED
    logs = [_logarithms(rates) for rates in classes]
    scale = 1.0 if nested else math.sqrt(2)
    ratio = [float(gaps.ratio(r.rate[None])[0]) for r in classes]
    slope = [
        scale * value * float(_deviation(r).max()) for value, r in zip(ratio, logs, strict=True)
    ]
    error = [np.minimum(scale * gaps.difference(r.error), 1) for r in logs]
    above, below = _spread_margins(error, slope, level)
    return max(0.0, float(np.mean(ratio)) - below), min(1.0, float(np.mean(ratio)) + above)


def smallest_ratio_bounds(classes: Sequence[Rates], level: float) -> Bounds:
    """Interval of the smallest ratio of any class.

    It is exp(-range) of the largest range of logarithms. A group without a hit may have a rate of
    0, so then the lower end is 0.
    """
    classes = comparable(classes)
    low, high = _range_ends([_logarithms(rates) for rates in classes], level, _deviation)
    # Without a class to compare both ends are NaN.
    never_hit = any((rates.hits == 0).any() for rates in classes)
    return 0.0 if never_hit else math.exp(-high), math.exp(-low)


def odds_bounds(recall: Sequence[Rates], false_positive: Sequence[Rates], level: float) -> Bounds:
    """Interval of the largest range of recall or false positive rate, of classes with both."""
    ranges: list[Rates] = []
    for pair in zip(recall, false_positive, strict=False):  # of nested groups there is no second
        if len(comparable(pair)) == 2:
            # Two kinds of rate, one family: a common critical value covers both.
            ranges += pair
    return largest_range_bounds(ranges, level)


def contrast_bounds(
    recall: Sequence[Rates], aligned_group: np.ndarray | None, level: float
) -> Bounds:
    """Interval of the aligned contrast, a weighted sum of recalls.

    Classes share no source image, so their variances add. Pseudo-images would shift the sum of many
    classes more than its error, so it is that of the rates as they were seen, and only their
    variances p (1 - p) / n have the adjusted p.
    """
    if aligned_group is None:
        return UNDEFINED
    value = []
    variance = []
    for rates, aligned in zip(recall, aligned_group, strict=True):
        inside = rates.group == aligned
        if inside.any() and len(inside) >= 2:
            # +1 for the aligned group; the others share -1.
            weight = np.where(inside, 1, -1 / (len(inside) - 1))
            value.append(weight @ rates.rate)
            # `covariance` is of n + 2 images a rate.
            weight = weight * np.sqrt((rates.effective + 2) / rates.effective)
            variance.append(weight @ rates.covariance @ weight)
    if not value:
        return UNDEFINED
    reach = two_sided(level) * math.sqrt(np.sum(variance)) / len(value)
    centre = float(np.mean(value))
    return max(-1.0, centre - reach), min(1.0, centre + reach)


def comparable(classes: Sequence[Rates]) -> list[Rates]:
    """The classes with two groups or more."""
    return [rates for rates in classes if len(rates.rate) >= 2]


def _deviation(rates: Rates) -> np.ndarray:
    """Standard errors of the differences of all pairs of groups, float64[k,k]."""
    variance = np.diag(rates.covariance)
    squared = variance[:, None] + variance - 2 * rates.covariance
    np.fill_diagonal(squared, 0)  # what rounding left
    return np.sqrt(squared)


def _pooled_deviation(rates: Rates) -> np.ndarray:
    """The same if both rates of a pair were one, or `_deviation` where that is larger.

    By chance the outermost rates of many lie far from the middle, where p (1 - p) is small: with
    errors of their own they would be found to differ too often.
    """
    total = rates.effective + 2
    right = _adjusted(rates.rate, rates.effective) * total
    one = (right[:, None] + right) / (total[:, None] + total)
    variance = one * (1 - one) / total[:, None]  # of the first of a pair
    deviation = np.sqrt(np.diag(rates.covariance))
    correlation = rates.covariance / deviation[:, None] / deviation
    squared = variance + variance.T - 2 * correlation * np.sqrt(variance * variance.T)
    return np.maximum(np.sqrt(np.maximum(squared, 0)), _deviation(rates))


def _error_of_equals(rates: Rates) -> np.ndarray:
    """Simulated errors float64[B,k] if all groups had one rate, or their own where larger.

    It is between equal rates that errors alone make a spread; see `_pooled_deviation`.
    """
    total = rates.effective + 2
    one = _adjusted(rates.rate, rates.effective) @ total / total.sum()
    pooled = one * (1 - one) / total
    return rates.error * np.sqrt(np.maximum(pooled / np.diag(rates.covariance), 1))


def _largest_t(rates: Rates) -> np.ndarray:
    """Largest difference between two simulated errors, in standard errors, float64[B]."""
    deviation = _deviation(rates)
    i, j = np.triu_indices(len(rates.rate), 1)
    return np.max(np.abs(rates.error[:, i] - rates.error[:, j]) / deviation[i, j], axis=1)


def _range_ends(
    classes: Sequence[Rates], level: float, deviation_below: Callable[[Rates], np.ndarray]
) -> Bounds:
    """Ends of the largest range of rates in any class, each class with at least two rates.

    Intervals of all differences between two groups hold together; then the largest difference is at
    least the largest lower end and at most the largest upper end. The lower ends, which say that
    groups differ, may have other errors.
    """
    if not classes:
        return UNDEFINED
    critical = _quantile(np.max([_largest_t(rates) for rates in classes], axis=0), level)
    low = 0.0
    high = 0.0
    for rates in classes:
        difference = rates.rate[:, None] - rates.rate
        # A group without a hit is no evidence that others are larger: nothing is below no hit.
        lower = (difference - critical * deviation_below(rates))[rates.hits > 0]
        low = max(low, lower.max(initial=0))
        high = max(high, np.max(difference + critical * _deviation(rates)))
    return float(low), float(high)


def _spread_margins(
    error: list[np.ndarray], slope: list[float], level: float
) -> tuple[float, float]:
    """How far an observed mean over classes of spreads may lie above and below the true one.

    Range and deviation are seminorms. *Above*: spread(x + e) <= spread(x) + spread(e), so the
    excess is at most the mean spread of the errors, float64[B] per class, whose quantile is
    simulated. *Below*: a seminorm is convex, so spread(x + e) >= spread(x) + s @ e with s its slope
    at x. Errors mostly raise a spread; all that lowers it is one normal number per class, s @ e,
    `slope` its largest standard deviation. The former happens where the true spreads are near 0,
    the latter where they are not.
    """
    above = _quantile(np.mean(error, axis=0), level)
    return above, two_sided(level) * math.hypot(*slope) / len(slope)


def _steepest_std(rates: Rates) -> float:
    """Largest standard deviation of s @ e, over slopes s of the weighted deviation.

    A slope of |A x| is A.T @ a unit vector.
    """
    weight = rates.size / rates.size.sum()
    # A x holds sqrt(w_i) (x_i - w @ x): its length is the weighted deviation.
    a = np.sqrt(weight)[:, None] * (np.eye(len(weight)) - weight)
    return math.sqrt(np.linalg.eigvalsh(a @ rates.covariance @ a.T)[-1])


def _logarithms(rates: Rates) -> Rates:
    """Logarithms of the adjusted rates, covariance and errors by the delta method."""
    adjusted = _adjusted(rates.rate, rates.effective)
    # The derivative of log r is 1 / r.
    covariance = rates.covariance / adjusted[:, None] / adjusted
    return rates._replace(
        rate=np.log(adjusted), covariance=covariance, error=rates.error / adjusted
    )
