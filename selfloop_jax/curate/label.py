"""Where the label and the group of a generated image come from, and how good the annotator of groups is."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from selfloop_jax.config import LoopConfig
from selfloop_jax.data.colorize import read_group
from selfloop_jax.data.dataset import Dataset
from selfloop_jax.data.images import UNKNOWN


def assign_labels(
    section: LoopConfig, requested: np.ndarray, logits: np.ndarray | None
) -> np.ndarray:
    """int32[N] by `loop.label_source`: the requested label, or a classifier's likeliest class."""
    if section.label_source == "requested":
        return requested
    assert logits is not None
    return logits.argmax(axis=1).astype(np.int32)


def assign_groups(
    section: LoopConfig,
    asked: np.ndarray,
    label: np.ndarray,
    pixels: np.ndarray,
    logits: np.ndarray | None,
    data: Dataset,
) -> np.ndarray:
    """int32[N] by `loop.group_source`: what was asked for, the colour read from the pixels, or the annotator.

    logits float32[N,G] are the annotator's. With one group in all there is nothing to tell.
    """
    if len(data.groups) == 1:
        return np.zeros(len(pixels), np.int32)
    if section.group_source == "requested":  # under another label, a nested group asked for is none
        return np.where((asked >= 0) & data.members[label, asked], asked, UNKNOWN).astype(np.int32)
    if section.group_source == "oracle":
        return read_group(pixels, data.colours)
    return most_likely_group(logits, label, data.members)


def most_likely_group(logits: np.ndarray, label: np.ndarray, members: np.ndarray) -> np.ndarray:
    """int32[N]: the likeliest group that the image's class has, -1 where it has none; members bool[C,G]."""
    best = np.where(members[label], logits, -np.inf).argmax(axis=1)
    return np.where(members[label].any(axis=1), best, UNKNOWN).astype(np.int32)


def confusion_matrices(
    label: np.ndarray, group: np.ndarray, found: np.ndarray, members: np.ndarray
) -> list[np.ndarray]:
    """Per class int64[K,K]: images of its k-th group (row) that the annotator gives its j-th (column).

    label, group, found int32[N]; K groups of a class, in the order of `members`; group -1 is left
    out.
    """
    classes, groups = members.shape
    counts = np.zeros((classes, groups, groups), np.int64)
    known = group >= 0
    np.add.at(counts, (label[known], group[known], found[known]), 1)
    return [table[np.ix_(row, row)] for table, row in zip(counts, members, strict=True)]


@dataclass(frozen=True)
class Job:
    """Generated images to be labelled, and who labels them.

    samples: pixels uint8[N,H,W,3], id, requested_label and requested_group [N]. classify and
    annotate give logits float32[N,C] and float32[N,G] of pixels; None where the config asks for no
    such network.
    """

    section: LoopConfig
    data: Dataset
    samples: dict[str, np.ndarray]
    classify: Callable[[np.ndarray], np.ndarray] | None
    annotate: Callable[[np.ndarray], np.ndarray] | None


def label(job: Job) -> dict[str, np.ndarray]:
    """The columns of `job.samples`, and label and group int32[N]."""
    pixels = job.samples["pixels"]
    class_logits = job.classify(pixels) if job.classify else None
    group_logits = job.annotate(pixels) if job.annotate else None
    labels = assign_labels(job.section, job.samples["requested_label"], class_logits)
    requested = job.samples["requested_group"]
    groups = assign_groups(job.section, requested, labels, pixels, group_logits, job.data)
    return {**job.samples, "label": labels, "group": groups}
