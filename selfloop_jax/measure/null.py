"""Null bands and p-values: what chance alone does to the fairness metrics of a test set.

The *null band* says what a number would be if the group made no difference; an interval
(`intervals.py`) says what it may be given the test set. For the null, groups are permuted among
images that are alike otherwise: those of one class or, where several test images were made from one
source image, those of one source image. A free permutation of paired images would count the
differences between digits as differences between colours, and its band is far too wide. NumPy only.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from selfloop_jax.measure.metrics import METRICS
from selfloop_jax.measure.test_set import TestSet
from selfloop_jax.runtime.rng import KeyPath, words

QUANTILES = (0.05, 0.5, 0.95)

ROUNDING = 1e-12  # the same counts summed in another order are the same number


def null(
    test_sets: Sequence[TestSet], key_path: KeyPath, replicates: int = 1000
) -> dict[str, np.ndarray]:
    """Every metric that has a null under permuted groups, {key: float64[replicates]}.

    The test sets are one set of images with the predictions of several classifiers, and a number is
    the mean over these: groups are permuted once for all. Images of unknown group stay out.
    `key_path` names the permutations; number b does not depend on how many there are.
    """
    metrics = [metric for metric in METRICS.values() if metric.has_null]
    first = test_sets[0]
    known = first.group >= 0
    # From all rows: an image is paired even where its other rows have no known group.
    stratum = _strata(first.label, first.source)[known]
    test_sets = [one.take(known) for one in test_sets]
    # An order that does not depend on that of the rows, so that neither does the result.
    preds = [one.pred for one in reversed(test_sets)]
    order = np.lexsort((test_sets[0].group, *preds, stratum))
    test_sets = [one.take(order) for one in test_sets]
    group = test_sets[0].group
    stratum = stratum[order]
    # The stratum in the leading bits of a word, random ones behind it: one sort of integers
    # permutes within all strata at once.
    bits = np.uint64(int(stratum.max(initial=0)).bit_length())
    leading = stratum.astype(np.uint64) << (np.uint64(64) - bits)
    values = np.empty((replicates, len(metrics)))
    for replicate in range(replicates):
        random = words((*key_path, "null", replicate), len(group))
        # The stratum leads every word and the rows are sorted by it, so each stratum keeps its
        # place.
        permutation = np.argsort(leading | (random >> bits))
        permuted = [one.with_groups(group[permutation]) for one in test_sets]
        for column, metric in enumerate(metrics):
            assert metric.value is not None
            values[replicate, column] = np.mean([metric.value(one) for one in permuted])
    return {metric.key: values[:, column] for column, metric in enumerate(metrics)}


def compare(better: str, value: float, permuted: np.ndarray) -> dict[str, Any]:
    """Null band and p-value of a value, given its permuted values: {"null", "p"}.

    permuted: float64[R]. null: 5, 50 and 95 % quantiles. p = (1 + permutations at least as bad) /
    (R + 1), one-sided; two-sided where neither direction is better. NaN for an undefined value.
    """
    if math.isnan(value):
        return {"null": [math.nan] * len(QUANTILES), "p": math.nan}
    if better == "higher":
        excess = value - permuted
    elif better == "lower":
        excess = permuted - value
    else:
        excess = np.abs(permuted) - abs(value)
    # The observed grouping counts as one permutation, or p could be 0 (Phipson and Smyth 2010).
    p = (1 + np.sum(excess >= -ROUNDING)) / (len(permuted) + 1)
    return {"null": np.quantile(permuted, QUANTILES).tolist(), "p": float(p)}


def _strata(label: np.ndarray, source: np.ndarray) -> np.ndarray:
    """int64[N]: rows of one stratum exchange groups.

    Those of one source image or, where it has a single row, those of the class.
    """
    several = np.bincount(source, minlength=1)[source] > 1
    # -1 - label is below 0: no source image has such a number.
    return np.unique(np.where(several, source, -1 - label), return_inverse=True)[1]
