"""Subgroup fairness of a classifier, from three integer arrays: label, prediction and group. NumPy only.

A *cell* is a pair (class c, group g). Every number below but the plain accuracy is read off one
table, counts[c, g, k] = test images of class c and group g that were predicted as k, by way of
three rates. Each has its own condition for being defined; a rate without images behind it is NaN,
never 0:

    TPR[c, g] = P(yhat = c | y = c, g)     needs images of class c in group g (the recall of the
    cell) FPR[c, g] = P(yhat = c | y != c, g)    needs images of other classes in group g PR[c, g]
    = P(yhat = c | g)            needs images in group g

Groups are *crossed* with the classes (a colour occurs in every class) or *nested* in them (a fine
label lies in one class). One class against the rest, the definitions are those of
fairlearn.metrics; the weighted deviation is that of Chiu et al., "Better May Not Be Fairer", ICCV
2023.
"""

import math
from collections.abc import Callable

import numpy as np


def summary(
    label: np.ndarray,
    pred: np.ndarray,
    group: np.ndarray,
    num_classes: int,
    num_groups: int,
    nested: bool = False,
) -> dict[str, float]:
    """All fairness numbers of a test set; what no images define is NaN.

    Args: label, pred: int[N] in 0..num_classes-1. group: int[N] in 0..num_groups-1, or -1 for
      unknown: such rows count in `accuracy` only. nested: each group lies in the one class it
      occurs with. Ranges and ratios of a class then run over its
        own groups, and equalized odds and demographic parity, which compare all groups, are NaN.

    Returns:
      Shares, or differences and ratios of shares, in [0, 1], each NaN with nothing to compare;
      `undefined_cells` is the number of cells (crossed) or of groups (nested) without images.

    Raises: ValueError: a value out of range, shapes that differ, or a nested group that occurs in
      two classes.
    """
    label, pred, group = _checked(label, pred, group, num_classes, num_groups)
    counts = _counts(label, pred, group, num_classes, num_groups)
    return {"accuracy": _accuracy(label, pred), **_of_counts(counts, nested)}


def _accuracy(label: np.ndarray, pred: np.ndarray) -> float:
    """Share of right predictions."""
    return _reduce_defined(np.mean, (label == pred).astype(np.float64))


def _of_counts(counts: np.ndarray, nested: bool) -> dict[str, float]:
    """All numbers of `summary` but the accuracy, from int[C, G, C]."""
    tpr, n = _recalls(counts)
    fpr, positive, group_accuracy = _group_rates(counts)
    if nested:
        _check_nested(n)
        positive = tpr  # inside a class of its own, a group's P(yhat=c|g) is its recall
    opportunity, impact = _difference(tpr), _ratio(positive)
    odds = np.maximum(
        opportunity, _difference(fpr)
    )  # keeps NaN: without one of them there is no larger one
    return {
        "worst_group_accuracy": _reduce_defined(np.min, group_accuracy),
        "worst_subgroup_accuracy": _reduce_defined(np.min, tpr),
        "equal_opportunity_difference_mean": _reduce_defined(np.mean, opportunity),
        "equal_opportunity_difference_max": _reduce_defined(np.max, opportunity),
        "disparate_impact_ratio_mean": _reduce_defined(np.mean, impact),
        "disparate_impact_ratio_min": _reduce_defined(np.min, impact),
        "equalized_odds_difference": math.nan if nested else _reduce_defined(np.max, odds),
        "demographic_parity_difference": math.nan
        if nested
        else _reduce_defined(np.max, _difference(positive)),
        "maximal_disparity": float(_difference(group_accuracy[None])[0]),
        "macro_std": _reduce_defined(np.mean, _weighted_std(tpr, n)),
        "undefined_cells": float(np.sum(n.sum(axis=0) == 0) if nested else np.sum(n == 0)),
    }


def recalls(
    label: np.ndarray, pred: np.ndarray, group: np.ndarray, num_classes: int, num_groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """Recall of every cell, float64[C, G] with NaN where undefined, and its number of images, int64[C, G].

    Arguments and errors are those of `summary`; rows of group -1 are left out.
    """
    columns = _checked(label, pred, group, num_classes, num_groups)
    return _recalls(_counts(*columns, num_classes, num_groups))


def aligned_contrast(
    label: np.ndarray,
    pred: np.ndarray,
    group: np.ndarray,
    aligned_group: np.ndarray,
    num_classes: int,
    num_groups: int,
) -> float:
    """How much better a class is recognised in the group that the bias ties to it, in [-1, 1].

    Mean over the classes with an aligned group a (aligned_group int[C], -1 none) of TPR[c, a] minus
    the mean TPR of the other groups with images; NaN where no class has both. Other arguments:
    `fairness.summary`.
    """
    tpr, _ = recalls(label, pred, group, num_classes, num_groups)
    return _contrast(tpr, np.asarray(aligned_group))


def _contrast(tpr: np.ndarray, aligned_group: np.ndarray) -> float:
    """`aligned_contrast` from the recalls float64[C, G]."""
    classes, groups = np.arange(tpr.shape[0]), np.arange(tpr.shape[1])
    others = (groups != aligned_group[:, None]) & ~np.isnan(tpr)
    mean = _divide(np.sum(tpr, axis=1, where=others), others.sum(axis=1))
    return _reduce_defined(
        np.mean, np.where(aligned_group >= 0, tpr[classes, aligned_group] - mean, np.nan)
    )


def _checked(label, pred, group, num_classes: int, num_groups: int) -> list[np.ndarray]:
    """The three columns as int64[N], or ValueError."""
    columns = [np.asarray(column) for column in (label, pred, group)]
    shapes = [column.shape for column in columns]
    if shapes[0] != shapes[1] or shapes[0] != shapes[2] or len(shapes[0]) != 1:
        raise ValueError(
            f"label, pred, group: shapes {shapes}, allowed is one shape (N,) for all three"
        )
    _check_range("label", columns[0], 0, num_classes)
    _check_range("pred", columns[1], 0, num_classes)
    _check_range("group", columns[2], -1, num_groups)
    return [column.astype(np.int64) for column in columns]


def _check_range(name: str, values: np.ndarray, low: int, end: int) -> None:
    """ValueError unless all values are integers in low..end-1; an empty array may have any type."""
    if values.size and not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{name}: type {values.dtype}, allowed are integers")
    outside = np.flatnonzero((values < low) | (values >= end))
    if outside.size:
        row = outside[0]
        raise ValueError(f"{name}: {values[row]} in row {row}, allowed are {low} to {end - 1}")


def _check_nested(n: np.ndarray) -> None:
    """ValueError where a group, a column of n int[C, G], has images in more than one class."""
    shared = np.flatnonzero((n > 0).sum(axis=0) > 1)
    if shared.size:
        classes = np.flatnonzero(n[:, shared[0]]).tolist()
        raise ValueError(
            f"group: {shared[0]} occurs with labels {classes}, allowed is one label if nested"
        )


def _counts(label, pred, group, num_classes: int, num_groups: int) -> np.ndarray:
    """Images by class, group and prediction, int64[C, G, C], without those of unknown group."""
    known, shape = group >= 0, (num_classes, num_groups, num_classes)
    cell = np.ravel_multi_index((label[known], group[known], pred[known]), shape)
    return np.bincount(cell, minlength=math.prod(shape)).reshape(shape)


def _recalls(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """TPR of each cell, float64[C, G], and its number of images, int64[C, G]."""
    n = counts.sum(axis=2)
    return _divide(_correct(counts), n), n


def _group_rates(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """FPR and PR, float64[C, G], and the accuracy in each group, float64[G]."""
    correct, size = _correct(counts), counts.sum(axis=(0, 2))
    predicted, others = counts.sum(axis=0).T, size - counts.sum(axis=2)
    return (
        _divide(predicted - correct, others),
        _divide(predicted, size),
        _divide(correct.sum(axis=0), size),
    )


def _correct(counts: np.ndarray) -> np.ndarray:
    """Rightly predicted images of each cell, int64[C, G]."""
    return np.einsum("cgc->cg", counts)


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient as float64 with NaN, and no warning, where the denominator is 0 or NaN."""
    nothing = np.full(numerator.shape, np.nan)
    return np.divide(numerator, denominator, out=nothing, where=denominator > 0)


def _ends(rate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest defined rate of each class, float64[C]; NaN with fewer than two defined groups."""
    defined = ~np.isnan(rate)
    comparable = defined.sum(axis=1) >= 2
    low = np.min(rate, axis=1, initial=np.inf, where=defined)
    high = np.max(rate, axis=1, initial=-np.inf, where=defined)
    return np.where(comparable, low, np.nan), np.where(comparable, high, np.nan)


def _difference(rate: np.ndarray) -> np.ndarray:
    """Range over the groups of each class, float64[C]."""
    low, high = _ends(rate)
    return high - low


def _ratio(rate: np.ndarray) -> np.ndarray:
    """Smallest over largest rate of each class, float64[C]; 0/0 is 1: all groups are treated alike."""
    low, high = _ends(rate)
    return np.where(high == 0, 1.0, _divide(low, high))


def _weighted_std(tpr: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Deviation of the recalls of each class, cells weighted by their size, float64[C]."""
    defined = n > 0
    total = n.sum(axis=1)
    mean = _divide(np.sum(n * tpr, axis=1, where=defined), total)
    variance = _divide(np.sum(n * (tpr - mean[:, None]) ** 2, axis=1, where=defined), total)
    return np.where(defined.sum(axis=1) >= 2, np.sqrt(variance), np.nan)


def _reduce_defined(reduce: Callable, values: np.ndarray) -> float:
    """`reduce` over all defined values of any shape; NaN where there are none."""
    defined = values[~np.isnan(values)]
    return float(reduce(defined)) if defined.size else math.nan
