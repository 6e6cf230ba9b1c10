"""A test set: labels, predictions, groups, and the rates that fairness metrics use.

Every rate is read off one table, counts[c, g, k] = test images of class c and group g that were
predicted as k. Each has its own condition for being defined; where no image defines it, it is NaN
and never 0:

    recall[c, g]              = P(yhat = c | y = c, g)    needs images of class c in group g
    false_positive_rate[c, g] = P(yhat = c | y != c, g)   needs images of other classes in group g
    positive_rate[c, g]       = P(yhat = c | g)           needs images in group g
    group_accuracy[g]         = P(yhat = y | g)           needs images in group g

NumPy only.
"""

import math
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np

from selfloop_jax.measure import gaps


@dataclass(frozen=True, eq=False)
class TestSet:
    """Labels, predictions and groups of N test images, validated once.

    label, pred: int[N] in 0..num_classes-1.
    group: int[N] in 0..num_groups-1, or -1 for unknown: such rows count in the accuracy only.
    source_id: int[N], the image that a row was made from (a digit shown in several colours); its
      rows have one label. None: every row is an image of its own.
    aligned_group: int[num_classes], the group that the bias ties to a class (Nam et al. 2020), -1
      for none.
    nested: each group lies in the one class it occurs with (a fine label), instead of occurring in
      every class (a colour). What is compared within a class are then its own groups.

    ValueError: a value out of range, shapes that differ, a source image with two labels, or a
    nested group in two classes.
    """

    __test__ = False  # else pytest collects it wherever a test imports it

    label: np.ndarray
    pred: np.ndarray
    group: np.ndarray
    num_classes: int
    num_groups: int
    source_id: np.ndarray | None = None
    aligned_group: np.ndarray | None = None
    nested: bool = False

    def __post_init__(self) -> None:
        columns = {name: np.asarray(getattr(self, name)) for name in ("label", "pred", "group")}
        shapes = [column.shape for column in columns.values()]
        if len(set(shapes)) != 1 or len(shapes[0]) != 1:
            raise ValueError(f"label, pred, group: shapes {shapes}; must all be of one shape (N,)")
        _check_range("label", columns["label"], 0, self.num_classes)
        _check_range("pred", columns["pred"], 0, self.num_classes)
        _check_range("group", columns["group"], -1, self.num_groups)
        # The fields of a frozen dataclass are set through `object`.
        for name, column in columns.items():
            object.__setattr__(self, name, column.astype(np.int64, copy=False))
        if self.aligned_group is not None:
            aligned = np.asarray(self.aligned_group)
            if aligned.shape != (self.num_classes,):
                raise ValueError(
                    f"aligned_group: shape {aligned.shape}; must be ({self.num_classes},)"
                )
            _check_range("aligned_group", aligned, -1, self.num_groups)
            object.__setattr__(self, "aligned_group", aligned.astype(np.int64, copy=False))
        if self.source_id is not None:
            object.__setattr__(self, "source_id", np.asarray(self.source_id))
            self._check_sources()
        if self.nested:
            self._check_nested()

    def __len__(self) -> int:
        return len(self.label)

    def with_groups(self, group: np.ndarray) -> "TestSet":
        """The same predictions on images of other groups int[N], as a permutation test asks."""
        group = np.asarray(group)
        if group.shape != self.group.shape:
            raise ValueError(f"group: shape {group.shape}; must be {self.group.shape}")
        _check_range("group", group, -1, self.num_groups)
        # Not `replace`: of a thousand permutations each would have its labels checked again.
        other = object.__new__(TestSet)
        # The fields alone: every cached rate depends on the groups.
        other.__dict__.update({field.name: getattr(self, field.name) for field in fields(self)})
        other.__dict__["group"] = group.astype(np.int64, copy=False)
        if self.nested:
            other._check_nested()
        return other

    def take(self, rows: np.ndarray) -> "TestSet":
        """The images of some rows (integers or a mask), in that order."""
        source = None if self.source_id is None else self.source_id[rows]
        return replace(
            self,
            label=self.label[rows],
            pred=self.pred[rows],
            group=self.group[rows],
            source_id=source,
        )

    @cached_property
    def counts(self) -> np.ndarray:
        """Images by class, group and prediction, int64[C,G,C]; those of unknown group stay out."""
        known = self.group >= 0
        # One flat index per image, so that a single bincount fills the table.
        shape = (self.num_classes, self.num_groups, self.num_classes)
        index = (self.label[known], self.group[known], self.pred[known])
        flat = np.ravel_multi_index(index, shape)
        return np.bincount(flat, minlength=math.prod(shape)).reshape(shape)

    @cached_property
    def subgroup_size(self) -> np.ndarray:
        """Images of each class and group, int64[C,G]."""
        return self.counts.sum(axis=2)

    @cached_property
    def correct(self) -> np.ndarray:
        """Rightly predicted images of each class and group, int64[C,G]."""
        return np.einsum("cgc->cg", self.counts)

    @cached_property
    def recall(self) -> np.ndarray:
        """P(yhat = c | y = c, g), float64[C,G]."""
        return gaps.divide(self.correct, self.subgroup_size)

    @cached_property
    def false_positive_rate(self) -> np.ndarray:
        """P(yhat = c | y != c, g), float64[C,G]."""
        # Images of the group whose class is another one, int64[C,G].
        others = self._group_size - self.subgroup_size
        return gaps.divide(self._predicted - self.correct, others)

    @cached_property
    def positive_rate(self) -> np.ndarray:
        """P(yhat = c | g), float64[C,G]; of nested groups, within their class, the recall."""
        return self.recall if self.nested else gaps.divide(self._predicted, self._group_size)

    @cached_property
    def group_accuracy(self) -> np.ndarray:
        """P(yhat = y | g), float64[G]."""
        return gaps.divide(self.correct.sum(axis=0), self._group_size)

    @cached_property
    def recall_difference(self) -> np.ndarray:
        """Range of the recalls of each class over its groups, float64[C]: its equal opportunity."""
        return gaps.difference(self.recall)

    @cached_property
    def positive_ratio(self) -> np.ndarray:
        """Lowest over highest positive rate of each class, float64[C]: its disparate impact."""
        return gaps.ratio(self.positive_rate)

    @cached_property
    def source(self) -> np.ndarray:
        """The source image of each row, counted from 0, int64[N]."""
        if self.source_id is None:
            return np.arange(len(self))
        return np.unique(self.source_id, return_inverse=True)[1]

    @cached_property
    def _group_size(self) -> np.ndarray:
        """Images of each group, int64[G]."""
        return self.subgroup_size.sum(axis=0)

    @cached_property
    def _predicted(self) -> np.ndarray:
        """Images of each group that were predicted as each class, int64[C,G]."""
        return self.counts.sum(axis=0).T

    def _check_sources(self) -> None:
        """ValueError where a source image has rows of several labels."""
        assert self.source_id is not None
        if self.source_id.shape != self.label.shape:
            raise ValueError(
                f"source_id: shape {self.source_id.shape}; must be that of label, "
                f"{self.label.shape}"
            )
        names, first = np.unique(self.source_id, return_index=True)
        # The label of each source's first row, at all its rows.
        expected = self.label[first][self.source]
        mixed = np.flatnonzero(expected != self.label)
        if mixed.size:
            row = mixed[0]
            both = [int(expected[row]), int(self.label[row])]
            raise ValueError(
                f"source_id: {names[self.source[row]]} has labels {both}; must have one label"
            )

    def _check_nested(self) -> None:
        """ValueError where a group has images in more than one class."""
        shared = np.flatnonzero((self.subgroup_size > 0).sum(axis=0) > 1)
        if shared.size:
            classes = np.flatnonzero(self.subgroup_size[:, shared[0]]).tolist()
            raise ValueError(
                f"group: {shared[0]} occurs with labels {classes}; must have one label if nested"
            )


def _check_range(name: str, values: np.ndarray, low: int, end: int) -> None:
    """ValueError unless all are integers in low..end-1; an empty array may have any type."""
    if not values.size:
        return
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{name}: type {values.dtype}; must be integers")
    if values.min() < low or values.max() >= end:
        row = np.flatnonzero((values < low) | (values >= end))[0]
        raise ValueError(f"{name}: {values[row]} in row {row}; must be from {low} to {end - 1}")
