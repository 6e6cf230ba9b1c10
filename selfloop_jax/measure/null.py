"""What chance alone does to the fairness numbers of a test set: a null band and an interval beside each.

The *null band* says what a number would be if the group made no difference, an interval
(`measure/intervals.py`) what it may be given what was seen. For the null, groups are permuted among
images that are alike otherwise: those of one class or, where several test images were made from one
source image, those of one source image. A free permutation of paired images would count the
differences between digits as differences between colours, and its band is far too wide.
"""

import math
from typing import Any

import numpy as np

from selfloop_jax.measure import fairness
from selfloop_jax.measure.intervals import clusters, intervals
from selfloop_jax.runtime.rng import KeyPath, words

# Metrics that are smaller where groups are treated less alike; of the others a larger one is less
# fair.
SMALLER_IS_UNFAIR = {
    "worst_group_accuracy",
    "worst_subgroup_accuracy",
    "disparate_impact_ratio_mean",
    "disparate_impact_ratio_min",
}


QUANTILES = (0.05, 0.5, 0.95)


# The same counts summed in another order are the same number.
ROUNDING = 1e-12


def summary(
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
) -> dict[str, Any]:
    """Null band, p-value and interval of every number of `fairness.summary` and of the aligned contrast.

    Arguments and errors are those of `intervals`; `replicates` is also the number of permutations.

    Returns: level, replicates; `paired`: whether some source image has several rows; `metrics`: for
      each metric {"low", "high", "null": [5 %, 50 %, 95 % quantile], "p"}; `recall`: {"low",
      "high"} float64[C, G]. p = (1 + permutations at least as unfair as observed) / (replicates +
      1), one-sided, of the aligned contrast two-sided. `null` and `p` of the accuracy, in which
      groups play no part, are None. What is undefined is NaN.
    """
    columns = fairness._checked(label, pred, group, num_classes, num_groups)
    sizes = (num_classes, num_groups, aligned_group, nested)
    counts = fairness._counts(*columns, num_classes, num_groups)
    observed = {
        "accuracy": fairness._accuracy(*columns[:2]),
        **_metrics(counts, aligned_group, nested),
    }
    permuted = null(*columns, source_id, *sizes, address, replicates)
    bounds, (low, high) = intervals(*columns, source_id, *sizes, address, replicates, level)
    return {
        "level": level,
        "replicates": replicates,
        "paired": bool(np.any(np.bincount(clusters(columns[0], source_id)) > 1)),
        "metrics": {
            name: {
                "low": bounds[name][0],
                "high": bounds[name][1],
                **_against_null(name, value, permuted.get(name)),
            }
            for name, value in observed.items()
        },
        "recall": {"low": low, "high": high},
    }


def null(
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
) -> dict[str, np.ndarray]:
    """Each metric but the accuracy under permuted groups, {metric: float64[replicates]}.

    Rows of unknown group stay out. Arguments and errors are those of `intervals`.
    """
    label, pred, group = fairness._checked(label, pred, group, num_classes, num_groups)
    stratum, known = clusters(label, source_id), group >= 0
    label, pred, group = label[known], pred[known], group[known]
    stratum = _strata(label, stratum[known])
    # An order that does not depend on that of the rows, so that neither does the result.
    order = np.lexsort((group, pred, stratum))
    label, pred, group, stratum = (column[order] for column in (label, pred, group, stratum))
    rows = []
    for replicate in range(replicates):
        drawn = words((*address, "null", replicate), len(group))
        shuffled = group[_permutation(stratum, drawn)]
        counts = fairness._counts(label, pred, shuffled, num_classes, num_groups)
        rows.append(_metrics(counts, aligned_group, nested))
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _metrics(counts, aligned_group, nested) -> dict[str, float]:
    """The numbers that get a band, but the accuracy, in which groups play no part."""
    metrics = fairness._of_counts(counts, nested)
    del metrics["undefined_cells"]  # a count of what is there, not an estimate
    return metrics | {
        "aligned_contrast": fairness._contrast(fairness._recalls(counts)[0], aligned_group)
    }


def _strata(label: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """int64[N]: rows of a stratum exchange groups, those of a source image or the single ones of a class."""
    several = np.bincount(cluster, minlength=1)[cluster] > 1
    _, stratum = np.unique(np.where(several, cluster, -1 - label), return_inverse=True)
    return stratum


def _permutation(stratum: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """int64[N], the order of the words drawn uint64[N] in each stratum; stratum is sorted."""
    bits = np.uint64(int(stratum.max(initial=0)).bit_length())
    return np.argsort((stratum.astype(np.uint64) << (np.uint64(64) - bits)) | (drawn >> bits))


def _against_null(name: str, observed: float, permuted: np.ndarray | None) -> dict[str, Any]:
    """Quantiles of the permuted values, and the share that is at least as unfair as observed."""
    if permuted is None:
        return {"null": None, "p": None}
    if math.isnan(observed):
        return {"null": [math.nan] * len(QUANTILES), "p": math.nan}
    if name == "aligned_contrast":
        excess = np.abs(permuted) - abs(observed)
    else:
        excess = (observed - permuted) if name in SMALLER_IS_UNFAIR else (permuted - observed)
    p = (1 + np.sum(excess >= -ROUNDING)) / (len(permuted) + 1)
    return {"null": np.quantile(permuted, QUANTILES).tolist(), "p": float(p)}
