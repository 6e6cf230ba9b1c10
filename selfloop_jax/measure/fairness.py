"""Subgroup fairness of a classifier: all fairness metrics, and how certain they are.

    test_set = TestSet(label, pred, group, num_classes=10, num_groups=2)
    fairness.summary(test_set)                                    # {"accuracy": 0.93, ...}
    fairness.numbers(test_set, key_path=(0, "my test set"))       # with interval, null band and p

A *subgroup* is a class and a group. Groups are *crossed* with the classes (a colour occurs in every
class) or *nested* in them (a fine label lies in one class). `metrics.py` defines the metrics,
`test_set.py` the rates they are made of. NumPy and SciPy only.
"""

from collections.abc import Sequence

import numpy as np

from selfloop_jax.measure.intervals import RateErrors, recall_intervals
from selfloop_jax.measure.metrics import METRICS, Number
from selfloop_jax.measure.null import compare, null
from selfloop_jax.measure.test_set import TestSet
from selfloop_jax.runtime.rng import KeyPath


def summary(test_set: TestSet) -> dict[str, float]:
    """The value of every fairness metric, {key: value}; NaN where no image defines it.

    Values are shares, or differences and ratios of shares, in [0, 1] ([-1, 1] for the signed
    `aligned_contrast`); `undefined_subgroups` is the number of subgroups (nested: groups) without
    images. Images of unknown group count in `accuracy` only. Of nested groups, ranges and ratios of
    a class run over its own groups; equalized odds and demographic parity, which compare all
    groups, are NaN.
    """
    return {
        metric.key: float(metric.value(test_set))
        for metric in METRICS.values()
        if metric.value is not None
    }


def bounds(
    test_set: TestSet, key_path: KeyPath, replicates: int = 1000, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """The interval (low, high) of every fairness metric that has one; NaN where undefined.

    replicates: simulated errors per rate; critical values are their quantiles. `key_path` names
    their random numbers.
    """
    # One object for all metrics: rates that several of them read are simulated once.
    errors = RateErrors(test_set, key_path, replicates, level)
    return {
        metric.key: metric.interval(errors)
        for metric in METRICS.values()
        if metric.interval is not None
    }


def numbers(
    test_set: TestSet,
    key_path: KeyPath,
    replicates: int = 1000,
    level: float = 0.95,
    more: Sequence[TestSet] = (),
) -> dict[str, Number]:
    """Every fairness metric with its interval, null band and p-value: {key: number}.

    A number is {"value", "low", "high", "null": [5 %, 50 %, 95 % quantile], "p"}. Parts that a
    metric does not have are left out; undefined ones are NaN. `replicates` is the number of
    permutations and of simulated errors.

    `more` are the same images with the predictions of further classifiers, trained alike. Values
    and ends of intervals are then means over all of them: since they share their test images, such
    an interval is no narrower than one of theirs. Null and p are those of the mean.
    """
    every = [test_set, *more]
    values = [summary(one) for one in every]
    intervals = [bounds(one, key_path, replicates, level) for one in every]
    permuted = null(every, key_path, replicates)
    result = {}
    for key in values[0]:
        value = float(np.mean([one[key] for one in values]))
        number: Number = {"value": value}
        if key in intervals[0]:
            low, high = np.mean([one[key] for one in intervals], axis=0)
            number |= {"low": float(low), "high": float(high)}
        if key in permuted:
            # The direction says which permutations are at least as bad.
            number |= compare(METRICS[key].better, value, permuted[key])
        result[key] = number
    return result


def recall(
    test_set: TestSet, level: float = 0.95, more: Sequence[TestSet] = ()
) -> dict[str, np.ndarray]:
    """Recall of every subgroup with its interval: {"value", "low", "high"}, float64[C,G].

    With `more`, means as those of `numbers`.
    """
    every = [test_set, *more]
    ends = [recall_intervals(one, level) for one in every]
    low, high = np.mean(ends, axis=0)
    return {"value": np.mean([one.recall for one in every], axis=0), "low": low, "high": high}
