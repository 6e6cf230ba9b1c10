"""Ranges, ratios and deviations of rates over the groups of each class. NumPy only.

A rate that is not defined is NaN and is left out. A class with fewer than two defined groups has
nothing to compare: its range, ratio and deviation are NaN.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np


def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient as float64, NaN without a warning where the denominator is 0 or NaN."""
    undefined = np.full(numerator.shape, np.nan)
    return np.divide(numerator, denominator, out=undefined, where=denominator > 0)


def over_defined(reduce: Callable[[np.ndarray], Any], values: np.ndarray) -> float:
    """`reduce` over the values that are not NaN, of any shape; NaN without any."""
    defined = values[~np.isnan(values)]
    return float(reduce(defined)) if defined.size else math.nan


def difference(rate: np.ndarray) -> np.ndarray:
    """Largest minus smallest rate of each class, float64[C,G] -> float64[C]."""
    low, high = _ends(rate)
    return high - low


def ratio(rate: np.ndarray) -> np.ndarray:
    """Smallest over largest rate of each class, float64[C,G] -> float64[C].

    0/0 is 1: a class that no group is given treats all groups alike.
    """
    low, high = _ends(rate)
    return np.where(high == 0, 1.0, divide(low, high))


def weighted_std(rate: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Standard deviation of the rates of each class, weighted by size, float64[C].

    rate float64[C,G], size int[C,G]. Chiu et al., "Better May Not Be Fairer", ICCV 2023.
    """
    defined = size > 0
    total = size.sum(axis=1)
    # Weight 0 times a rate of NaN would be NaN, so `where` leaves undefined groups out.
    mean = divide(np.sum(size * rate, axis=1, where=defined), total)
    squares = size * (rate - mean[:, None]) ** 2
    variance = divide(np.sum(squares, axis=1, where=defined), total)
    return np.where(defined.sum(axis=1) >= 2, np.sqrt(variance), np.nan)


def _ends(rate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest defined rate of each class, float64[C] each."""
    incomparable = np.count_nonzero(~np.isnan(rate), axis=1) < 2
    # fmin and fmax pass over NaN.
    low = np.fmin.reduce(rate, axis=1, initial=np.nan)
    high = np.fmax.reduce(rate, axis=1, initial=np.nan)
    low[incomparable] = np.nan
    high[incomparable] = np.nan
    return low, high
