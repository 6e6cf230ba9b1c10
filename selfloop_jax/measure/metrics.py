"""The table of metrics: every number of a record, with its title and its direction.

A fairness metric is one row that also says how to compute it from a `TestSet` and, where there is a
formula, its interval from `RateErrors`; its null band and p-value follow from the value alone. To
add one, from any module that is imported before measuring:

    METRICS["recall_gap"] = Metric(
        "recall_gap", "recall gap", "classifier", better="lower", is_bias=True,
        value=lambda t: float(np.nanmax(t.recall) - np.nanmin(t.recall)),
    )

`fairness.summary`, a run's record, its report and `python -m selfloop_jax.measure fairness` then
have it. NumPy only.

Definitions, class by class, one class against the rest, are those of fairlearn.metrics:
equal opportunity difference: range over groups of the recall. Disparate impact ratio: lowest over
highest P(yhat = c | g). Equalized odds difference: the larger of the ranges of recall and false
positive rate. Demographic parity difference: range of P(yhat = c | g). Macro standard deviation:
Chiu et al., "Better May Not Be Fairer", ICCV 2023. Classification accuracy score: Ravuri and
Vinyals, arXiv 1905.10887.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from selfloop_jax.measure import gaps
from selfloop_jax.measure import intervals as iv
from selfloop_jax.measure.intervals import Bounds, RateErrors
from selfloop_jax.measure.test_set import TestSet

Number = dict[str, Any]  # of a record: value, and perhaps low, high, null, p, baseline
SECTIONS = ("classifier", "composition", "content", "fidelity", "foreground")


@dataclass(frozen=True)
class Metric:
    """One number of a record, under `key` in its `metrics`.

    section: what it is about, one of SECTIONS. better: which way is good, or "" for neither. Of a
    metric whose `value` is given: a p-value counts permutations that are at least as bad, or at
    least as far from 0 where neither way is. is_bias: a verdict may rest on it; larger is then
    more biased, unless higher is better. whole: a count, without null band and interval.
    by_group: whether permuting the groups of the images can change it. ValueError for another
    section.
    """

    key: str
    title: str
    section: str = "classifier"
    better: Literal["higher", "lower", ""] = ""
    is_bias: bool = False
    whole: bool = False
    value: Callable[[TestSet], float] | None = None
    interval: Callable[[RateErrors], Bounds] | None = None
    by_group: bool = True

    def __post_init__(self) -> None:
        if self.section not in SECTIONS:
            raise ValueError(
                f"METRICS[{self.key!r}].section = {self.section}: must be one of "
                f"{' | '.join(SECTIONS)}"
            )

    @property
    def arrow(self) -> str:
        """An arrow towards better values, up or down; empty where neither way is better."""
        return {"higher": "↑", "lower": "↓", "": ""}[self.better]

    @property
    def has_null(self) -> bool:
        """Whether it has a null band and a p-value, from permutations of the groups."""
        return self.value is not None and not self.whole and self.by_group


METRICS: dict[str, Metric] = {}


def _add(*metrics: Metric) -> None:
    METRICS.update({metric.key: metric for metric in metrics})


def accuracy(test_set: TestSet) -> float:
    """Share of right predictions, over images of unknown group too."""
    return gaps.over_defined(np.mean, (test_set.label == test_set.pred).astype(np.float64))


def equalized_odds_difference(test_set: TestSet) -> float:
    """Maximum over classes of the larger of the ranges of recall and false positive rate."""
    if test_set.nested:
        return math.nan
    # np.maximum keeps NaN: without one of the two ranges there is no larger one.
    odds = np.maximum(test_set.recall_difference, gaps.difference(test_set.false_positive_rate))
    return gaps.over_defined(np.max, odds)


def demographic_parity_difference(test_set: TestSet) -> float:
    """Maximum over classes of the range of P(yhat = c | g)."""
    if test_set.nested:
        return math.nan
    return gaps.over_defined(np.max, gaps.difference(test_set.positive_rate))


def maximal_disparity(test_set: TestSet) -> float:
    """Range over groups of the accuracy."""
    return float(gaps.difference(test_set.group_accuracy[None])[0])


def macro_std(test_set: TestSet) -> float:
    """Mean over classes of the standard deviation of recalls, weighted by subgroup size."""
    deviation = gaps.weighted_std(test_set.recall, test_set.subgroup_size)
    return gaps.over_defined(np.mean, deviation)


def aligned_contrast(test_set: TestSet) -> float:
    """How much better a class is recognised in its bias-aligned group, in [-1, 1].

    Mean over the classes with an aligned group a of recall[c, a] minus the mean recall of the other
    groups with images; NaN where no class has both.
    """
    aligned = test_set.aligned_group
    if aligned is None:
        return math.nan
    recall = test_set.recall
    others = (np.arange(test_set.num_groups) != aligned[:, None]) & ~np.isnan(recall)
    mean = gaps.divide(np.sum(recall, axis=1, where=others), others.sum(axis=1))
    # An aligned group of -1 reads the last group here; the line below drops it.
    contrast = recall[np.arange(test_set.num_classes), aligned] - mean
    return gaps.over_defined(np.mean, np.where(aligned >= 0, contrast, np.nan))


def undefined_subgroups(test_set: TestSet) -> float:
    """Subgroups without images; of nested groups, groups without images."""
    size = test_set.subgroup_size
    return float(np.sum(size.sum(axis=0) == 0) if test_set.nested else np.sum(size == 0))


# Computed by `value` from a test set.
_add(
    Metric(
        "accuracy",
        "accuracy",
        better="higher",
        by_group=False,
        value=accuracy,
        interval=lambda e: iv.share_bounds(e.accuracy, e.level),
    ),
    Metric(
        "worst_group_accuracy",
        "worst-group accuracy",
        better="higher",
        is_bias=True,
        value=lambda t: gaps.over_defined(np.min, t.group_accuracy),
        interval=lambda e: iv.smallest_bounds(e.group_accuracy, e.level),
    ),
    Metric(
        "worst_subgroup_accuracy",
        "worst-subgroup accuracy",
        better="higher",
        is_bias=True,
        value=lambda t: gaps.over_defined(np.min, t.recall),
        interval=lambda e: iv.smallest_bounds(e.recall, e.level),
    ),
    Metric(
        "equal_opportunity_difference_mean",
        "mean equal opportunity difference",
        better="lower",
        is_bias=True,
        value=lambda t: gaps.over_defined(np.mean, t.recall_difference),
        interval=lambda e: iv.mean_range_bounds(e.recall, e.level),
    ),
    Metric(
        "equal_opportunity_difference_max",
        "maximum equal opportunity difference",
        better="lower",
        is_bias=True,
        value=lambda t: gaps.over_defined(np.max, t.recall_difference),
        interval=lambda e: iv.largest_range_bounds(e.recall, e.level),
    ),
    Metric(
        "disparate_impact_ratio_mean",
        "mean disparate impact ratio",
        better="higher",
        is_bias=True,
        value=lambda t: gaps.over_defined(np.mean, t.positive_ratio),
        interval=lambda e: iv.mean_ratio_bounds(e.positive, e.test_set.nested, e.level),
    ),
    Metric(
        "disparate_impact_ratio_min",
        "minimum disparate impact ratio",
        better="higher",
        is_bias=True,
        value=lambda t: gaps.over_defined(np.min, t.positive_ratio),
        interval=lambda e: iv.smallest_ratio_bounds(e.positive, e.level),
    ),
    Metric(
        "equalized_odds_difference",
        "equalized odds difference",
        better="lower",
        is_bias=True,
        value=equalized_odds_difference,
        interval=lambda e: iv.odds_bounds(e.recall, e.false_positive, e.level),
    ),
    Metric(
        "demographic_parity_difference",
        "demographic parity difference",
        better="lower",
        is_bias=True,
        value=demographic_parity_difference,
        # Nested groups are never compared over all classes.
        interval=lambda e: (
            iv.UNDEFINED if e.test_set.nested else iv.largest_range_bounds(e.positive, e.level)
        ),
    ),
    Metric(
        "maximal_disparity",
        "maximal disparity",
        better="lower",
        is_bias=True,
        value=maximal_disparity,
        interval=lambda e: iv.largest_range_bounds(e.group_accuracy, e.level),
    ),
    Metric(
        "macro_std",
        "macro std",
        better="lower",
        is_bias=True,
        value=macro_std,
        interval=lambda e: iv.mean_std_bounds(e.recall, e.level),
    ),
    Metric(
        "aligned_contrast",
        "aligned minus conflicting",
        is_bias=True,
        value=aligned_contrast,
        interval=lambda e: iv.contrast_bounds(e.recall, e.test_set.aligned_group, e.level),
    ),
    Metric(
        "undefined_subgroups",
        "undefined subgroups",
        whole=True,
        value=undefined_subgroups,
    ),
)

# Computed in `composition.py`; here are title and direction.
_add(
    Metric("kl_to_real", "KL to real", "composition", "lower"),
    Metric("total_variation_to_real", "total variation to real", "composition", "lower"),
    Metric("subgroup_coverage", "subgroup coverage", "composition", "higher"),
    Metric("bias_aligned_share", "bias-aligned share", "composition"),
    Metric("bias_aligned_share_corrected", "corrected bias-aligned share", "composition"),
    Metric("bias_aligned_share_by_colour", "bias-aligned share by colour", "composition"),
    Metric("generated_count", "generated images", "composition", whole=True),
    Metric(
        "generated_unknown_group", "generated images of unknown group", "composition", whole=True
    ),
)

# Computed in `loop/measure_phase.py`.
_add(
    Metric("classifier_agreement", "classifier agreement", "content", "higher"),
    Metric("annotator_agreement", "annotator agreement", "content", "higher"),
    Metric("cas", "classification accuracy score (CAS)", "content", "higher"),
    Metric("cas_ratio", "CAS ratio to real", "content", "higher"),
)

# Computed in `fidelity.py`. A memorised share has no direction: about 0.5 is right.
_add(
    Metric("fid", "FID (classifier features)", "fidelity", "lower"),
    Metric("kid", "KID (classifier features)", "fidelity", "lower"),
    Metric("precision", "precision", "fidelity", "higher"),
    Metric("recall", "recall", "fidelity", "higher"),
    Metric("density", "density", "fidelity", "higher"),
    Metric("coverage", "coverage", "fidelity", "higher"),
    Metric("memorized_share", "memorized share", "fidelity"),
    Metric("copied_share", "near-copies (classifier features)", "fidelity"),
    Metric("copied_share_pixels", "near-copies (pixels)", "fidelity"),
)

# Computed in `foreground.py`.
_add(
    Metric("ablation_none", "accuracy, original images", "foreground"),
    Metric("ablation_object", "accuracy, object gray", "foreground"),
    Metric("ablation_box", "accuracy, box gray", "foreground"),
    Metric("ablation_tile", "accuracy, box tiled", "foreground"),
)
