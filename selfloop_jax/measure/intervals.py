"""How far a fairness number may be from what endless test images would give: intervals of a stated level.

A gap is a maximum of noise, so a percentile bootstrap of it does not cover. Everything here starts
from rates instead: those of the groups of one class, with the covariance of their errors. Test
images that share a source image (a digit shown in every colour) err together; the source images are
what was drawn. The covariance is that of the rates' influence functions summed over source images,
with two pseudo-images added to each cell, one right and one wrong (Agresti and Coull, 1998; for
pairs Agresti and Min, 2005): a recall of 1 has an error too, and so has a difference between groups
that were always right or wrong together.

What follows from the rates is simulated, with normal errors of that covariance. Errors of different
classes are drawn independently. Recalls of different classes are independent; for the other rates
the bounds are conservative, since correlated normals stay inside symmetric convex sets at least as
often as independent ones (Sidak, 1967; Royen, 2014).
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import special

from selfloop_jax.measure import fairness
from selfloop_jax.measure.wilson import wilson
from selfloop_jax.runtime.rng import KeyPath, normals

Bounds = tuple[float, float]


NOTHING = (math.nan, math.nan)


class Rates(NamedTuple):
    """Rates of the k groups that have images, in one class; B simulated errors of these rates."""

    group: np.ndarray  # int64[k]
    size: np.ndarray  # int64[k], images
    hits: np.ndarray  # int64[k], those that count for the rate
    effective: np.ndarray  # float64[k], independent images that would be worth as much
    rate: np.ndarray  # float64[k]
    covariance: np.ndarray  # float64[k, k], positive definite
    error: np.ndarray  # float64[B, k]


def intervals(
    label: np.ndarray,
    pred: np.ndarray,
    group: np.ndarray,
    source_id: np.ndarray | None,
    num_classes: int,
    num_groups: int,
    aligned_group: np.ndarray,
    nested: bool,
    address: KeyPath,
    replicates: int = 1000,
    level: float = 0.95,
) -> tuple[dict[str, Bounds], tuple[np.ndarray, np.ndarray]]:
    """Lower and upper ends for all numbers of a test set, NaN for what is undefined.

    Args:
      label, pred, group, num_classes, num_groups, nested: as in `fairness.summary`.
      source_id: int[N], the source image of each row; None: every row has its own.
      aligned_group: int[C], the group that the bias ties to a class, -1 none.
      replicates: simulated errors per rate; critical values are their quantiles.

    Returns: {metric: (low, high)} and the ends of every recall, float64[C, G] twice. Recalls and
      accuracy have Wilson's interval, at the number of independent images that they are worth.

    Raises:
      ValueError: as in `fairness.summary`, or a source image whose rows have several labels.
    """
    label, pred, group = fairness._checked(label, pred, group, num_classes, num_groups)
    if nested:
        fairness._check_nested(fairness.recalls(label, pred, group, num_classes, num_groups)[1])
    cluster, known = clusters(label, source_id), group >= 0

    def rates(kind: str, c: int, hit: np.ndarray, rows: np.ndarray) -> Rates:
        return _rates(hit[rows], group[rows], cluster[rows], (*address, kind, c), replicates)

    def one_per_class(kind: str, rows) -> list[Rates]:
        return [rates(kind, c, pred == c, rows(c)) for c in range(num_classes)]

    tpr = one_per_class("tpr", lambda c: known & (label == c))
    # Nested groups have no rates outside their class; inside it P(yhat=c|g) is the recall.
    fpr = [] if nested else one_per_class("fpr", lambda c: known & (label != c))
    positive = tpr if nested else one_per_class("positive", lambda c: known)
    everyone = _rates(
        label == pred, np.zeros_like(group), cluster, (*address, "accuracy"), replicates
    )
    by_group = [rates("group_accuracy", 0, label == pred, known)]
    metrics = {
        "accuracy": _rate_bounds(everyone, level),
        "worst_group_accuracy": _worst_bounds(by_group, level),
        "worst_subgroup_accuracy": _worst_bounds(tpr, level),
        "maximal_disparity": _range_bounds(by_group, level),
        "aligned_contrast": _contrast_bounds(tpr, aligned_group, level),
        **_class_bounds(tpr, fpr, positive, nested, level),
    }
    if nested:
        metrics |= {"equalized_odds_difference": NOTHING, "demographic_parity_difference": NOTHING}
    return metrics, _recall_bounds(tpr, num_groups, level)


def share_interval(
    hit: np.ndarray, source_id: np.ndarray | None = None, level: float = 0.95
) -> tuple[float, float]:
    """Wilson's interval of the share of bool[N] hits, at the number of independent images they are worth."""
    rows = (
        np.arange(len(hit)) if source_id is None else np.unique(source_id, return_inverse=True)[1]
    )
    return _rate_bounds(_rates(hit, np.zeros(len(hit), np.int64), rows, (0, "share"), 1), level)


def clusters(label: np.ndarray, source_id: np.ndarray | None) -> np.ndarray:
    """int64[N], the source image of each row, counted from 0; ValueError where one has several labels."""
    if source_id is None:
        return np.arange(len(label))
    source_id = np.asarray(source_id)
    if source_id.shape != label.shape:
        raise ValueError(
            f"source_id: shape {source_id.shape}, allowed is that of label, {label.shape}"
        )
    names, first, cluster = np.unique(source_id, return_index=True, return_inverse=True)
    mixed = np.flatnonzero(label[first][cluster] != label)
    if mixed.size:
        row = mixed[0]
        both = [int(label[first][cluster][row]), int(label[row])]
        raise ValueError(
            f"source_id: {names[cluster[row]]} has labels {both}, allowed is one label"
        )
    return cluster


def _rates(hit, group, cluster, address: KeyPath, replicates: int) -> Rates:
    """Rates of bool[M] hits in each group that has rows."""
    present, column, size = np.unique(group, return_inverse=True, return_counts=True)
    hits = np.bincount(column[hit], minlength=len(present))
    rate = hits / size
    if np.bincount(cluster, minlength=1).max() <= 1:
        effective, covariance = size.astype(np.float64), np.diag(rate * (1 - rate) / size)
    else:
        effective, covariance = _clustered(hit, column, cluster, rate, size)
    covariance = _with_pseudo_images(covariance, rate, effective)
    error = normals(address, (replicates, len(present))) @ np.linalg.cholesky(covariance).T
    return Rates(present, size, hits, effective, rate, covariance, error)


def _clustered(hit, column, cluster, rate, size) -> tuple[np.ndarray, np.ndarray]:
    """Effective numbers of images and covariance of the rates, from influence functions per source image.

    A cell that shows a source image once counts its images. With several rows of one source image
    its number is what gives the rate this variance, between all rows of a source alike (Kish) and
    all independent.
    """
    _, source = np.unique(cluster, return_inverse=True)
    k, sources = len(size), int(source.max()) + 1
    rows = np.bincount(source * k + column, minlength=sources * k).reshape(sources, k)
    hits = np.bincount(source * k + column, hit, minlength=sources * k).reshape(sources, k)
    influence = (hits - rate * rows) / size
    covariance = influence.T @ influence * (sources / max(sources - 1, 1))
    alike = size**2 / (rows**2).sum(axis=0)
    variance = np.diag(covariance)
    worth = np.divide(rate * (1 - rate), variance, out=alike.copy(), where=variance > 0)
    return np.clip(worth, alike, size), covariance


def _with_pseudo_images(covariance, rate, effective) -> np.ndarray:
    """Covariance float64[k, k] after two pseudo-images a cell: Agresti-Coull variances on its diagonal.

    Pseudo-images are independent between cells, so what is shared by two cells counts n/(n+2) of
    each. The floor keeps a difference of two cells that agree in every source image from having no
    error.
    """
    shrink, total = effective / (effective + 2), effective + 2
    shared = covariance * shrink[:, None] * shrink
    adjusted = _adjusted(rate, effective)
    own = adjusted * (1 - adjusted) / total - np.diag(shared)
    return shared + np.diag(np.maximum(own, 0.5 / total**2))


def _adjusted(rate, effective) -> np.ndarray:
    """Rates float64[k] after one right and one wrong pseudo-image a cell."""
    return (rate * effective + 1) / (effective + 2)


def _two_sided(level: float) -> float:
    return float(special.ndtri((1 + level) / 2))


def _quantile(values: np.ndarray, level: float) -> float:
    return float(np.quantile(values, level, method="higher"))


def _rate_bounds(rates: Rates, level: float) -> Bounds:
    """Wilson's interval of the one rate, if there is one."""
    if not len(rates.rate):
        return NOTHING
    low, high = wilson(rates.rate * rates.effective, rates.effective, _two_sided(level))
    return float(low[0]), float(high[0])


def _recall_bounds(
    tpr: list[Rates], num_groups: int, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's interval of every recall, two tables float64[C, G]."""
    low, high = np.full((2, len(tpr), num_groups), np.nan)
    for c, rates in enumerate(tpr):
        ends = wilson(rates.rate * rates.effective, rates.effective, _two_sided(level))
        low[c, rates.group], high[c, rates.group] = ends
    return low, high


def _worst_bounds(classes: list[Rates], level: float) -> Bounds:
    """Ends of the smallest of all rates: the smallest ends of intervals that hold together (max-t)."""
    classes = [rates for rates in classes if len(rates.rate)]
    if not classes:
        return NOTHING
    largest = [np.max(np.abs(r.error) / np.sqrt(np.diag(r.covariance)), axis=1) for r in classes]
    critical = _quantile(np.max(largest, axis=0), level)
    ends = [wilson(r.rate * r.effective, r.effective, critical) for r in classes]
    return tuple(min(float(end[side].min()) for end in ends) for side in (0, 1))


def _pairs(rates: Rates) -> tuple[np.ndarray, np.ndarray]:
    """Differences of all pairs, float64[k, k], and their standard errors."""
    variance = np.diag(rates.covariance)
    squared = variance[:, None] + variance - 2 * rates.covariance
    np.fill_diagonal(squared, 0)  # what rounding left
    return rates.rate[:, None] - rates.rate, np.sqrt(squared)


def _largest_t(rates: Rates) -> np.ndarray:
    """float64[B]: the largest difference between two simulated errors, in its standard errors."""
    _, deviation = _pairs(rates)
    i, j = np.triu_indices(len(rates.rate), 1)
    return np.max(np.abs(rates.error[:, i] - rates.error[:, j]) / deviation[i, j], axis=1)


def _range_ends(classes: list[Rates], level: float) -> Bounds:
    """Ends of the largest range of rates in any class, each class with at least two rates; none: NaN.

    Intervals of all differences between two groups hold together; then the largest difference is at
    least the largest lower end and at most the largest upper end.
    """
    if not classes:
        return NOTHING
    critical = _quantile(np.max([_largest_t(rates) for rates in classes], axis=0), level)
    low = high = 0.0
    for rates in classes:
        difference, deviation = _pairs(rates)
        lower = (difference - critical * deviation)[
            rates.hits > 0
        ]  # nothing is smaller than no hit at all
        low, high = (
            max(low, lower.max(initial=0)),
            max(high, np.max(difference + critical * deviation)),
        )
    return float(low), float(high)


def _range_bounds(classes: list[Rates], level: float) -> Bounds:
    """Ends of the largest range of the classes that have one."""
    low, high = _range_ends(_comparable(classes), level)
    return low, float(np.minimum(high, 1))


def _comparable(classes: list[Rates]) -> list[Rates]:
    """Those with two groups or more."""
    return [rates for rates in classes if len(rates.rate) >= 2]


def _class_bounds(tpr, fpr, positive, nested: bool, level: float) -> dict[str, Bounds]:
    """Ends of all that is a mean or an extreme over classes of ranges or ratios."""
    odds = [pair for pair in zip(tpr, fpr, strict=False) if len(_comparable(pair)) == 2]
    tpr, positive = _comparable(tpr), _comparable(positive)
    logs = [_logarithms(rates) for rates in positive]
    return {
        "equal_opportunity_difference_mean": _mean_range_bounds(tpr, level),
        "equal_opportunity_difference_max": _range_bounds(tpr, level),
        "disparate_impact_ratio_mean": _mean_ratio_bounds(positive, logs, nested, level),
        "disparate_impact_ratio_min": _ratio_min_bounds(logs, level),
        "equalized_odds_difference": _range_bounds(
            [rates for pair in odds for rates in pair], level
        ),
        "demographic_parity_difference": _range_bounds(positive, level),
        "macro_std": _mean_deviation_bounds(tpr, level),
    }


def _spread_margins(
    error: list[np.ndarray], slope: list[float], level: float
) -> tuple[float, float]:
    """How far a mean over classes of spreads, seen with errors, may lie above and below the true one.

    Range and deviation are seminorms. *Above*: spread(x + e) <= spread(x) + spread(e), so the
    excess is at most the mean spread of the errors, float64[B] per class, whose quantile is
    simulated. *Below*: a seminorm is convex, so spread(x + e) >= spread(x) + s @ e with s its slope
    at x. Errors mostly raise a spread; all that lowers it is one normal number per class, s @ e,
    `slope` its largest standard deviation. The former happens where the true spreads are near 0,
    the latter where they are not.
    """
    above = _quantile(np.mean(error, axis=0), level)
    return above, _two_sided(level) * math.hypot(*slope) / len(slope)


def _mean_range_bounds(tpr: list[Rates], level: float) -> Bounds:
    """Ends of the mean range."""
    if not tpr:
        return NOTHING
    centre = float(np.mean([fairness._difference(r.rate[None]) for r in tpr]))
    slope = [float(_pairs(r)[1].max()) for r in tpr]
    above, below = _spread_margins([fairness._difference(r.error) for r in tpr], slope, level)
    return max(0.0, centre - above), min(1.0, centre + below)


def _mean_deviation_bounds(tpr: list[Rates], level: float) -> Bounds:
    """Ends of the mean weighted standard deviation."""
    if not tpr:
        return NOTHING
    centre = float(np.mean([fairness._weighted_std(r.rate[None], r.size[None]) for r in tpr]))
    error = [fairness._weighted_std(r.error, np.broadcast_to(r.size, r.error.shape)) for r in tpr]
    above, below = _spread_margins(error, [_steepest_deviation(r) for r in tpr], level)
    return max(0.0, centre - above), min(1.0, centre + below)


def _steepest_deviation(rates: Rates) -> float:
    """Largest standard deviation of s @ e; a slope of the weighted deviation |A x| is A.T @ unit vector."""
    weight = rates.size / rates.size.sum()
    a = np.sqrt(weight)[:, None] * (np.eye(len(weight)) - weight)
    return math.sqrt(np.linalg.eigvalsh(a @ rates.covariance @ a.T)[-1])


def _mean_ratio_bounds(
    positive: list[Rates], logs: list[Rates], nested: bool, level: float
) -> Bounds:
    """Ends of the mean ratio, exp(-range of the logarithms).

    It moves by no more than that range does, and by 1 at most; for small steps, by the ratio times
    the step. Crossed, an image that is predicted otherwise moves the rates of two classes, so
    errors of classes are not independent: the covariance of all is at most twice that without
    correlations between classes (independent images: Var a[X] = E (a[X] - a[X'])**2 / 2 <= 2 sum
    a**2 p (1 - p), for any weights a).
    """
    if not positive:
        return NOTHING
    scale = 1.0 if nested else math.sqrt(2)
    ratio = [float(fairness._ratio(r.rate[None])[0]) for r in positive]
    slope = [
        scale * value * float(_pairs(r)[1].max()) for value, r in zip(ratio, logs, strict=True)
    ]
    error = [np.minimum(scale * fairness._difference(r.error), 1) for r in logs]
    above, below = _spread_margins(error, slope, level)
    return max(0.0, float(np.mean(ratio)) - below), min(1.0, float(np.mean(ratio)) + above)


def _logarithms(rates: Rates) -> Rates:
    """Logarithms of the adjusted rates, covariance and errors by the delta method."""
    adjusted = _adjusted(rates.rate, rates.effective)
    covariance = rates.covariance / adjusted[:, None] / adjusted
    return rates._replace(
        rate=np.log(adjusted), covariance=covariance, error=rates.error / adjusted
    )


def _ratio_min_bounds(logs: list[Rates], level: float) -> Bounds:
    """Ends of the smallest ratio: exp(-range) at the ends of the largest range of logarithms.

    A group without a hit may have a rate of 0, so then the lower end is 0.
    """
    low, high = _range_ends(logs, level)
    return 0.0 if any((rates.hits == 0).any() for rates in logs) else math.exp(-high), math.exp(
        -low
    )


def _contrast_bounds(tpr: list[Rates], aligned_group: np.ndarray, level: float) -> Bounds:
    """Ends of `uncertainty.aligned_contrast`, a weighted sum of recalls; classes share no source image."""
    value, variance = [], []
    for rates, aligned in zip(tpr, aligned_group, strict=True):
        inside = rates.group == aligned
        if inside.any() and len(inside) >= 2:
            weight = np.where(inside, 1, -1 / (len(inside) - 1))
            value.append(weight @ rates.rate)
            variance.append(weight @ rates.covariance @ weight)
    if not value:
        return NOTHING
    reach = _two_sided(level) * math.sqrt(np.sum(variance)) / len(value)
    return max(-1.0, float(np.mean(value)) - reach), min(1.0, float(np.mean(value)) + reach)
