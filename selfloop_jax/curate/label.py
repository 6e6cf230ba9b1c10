"""Labels and groups of generated images, and the errors of the annotator of groups."""

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
    """int32[N] by `loop.label_source`: the requested label, or a classifier's best class."""
    if section.label_source == "requested":
        return requested
    if logits is None:
        raise ValueError(f"loop.label_source = {section.label_source}: no logits")
    return logits.argmax(axis=1).astype(np.int32)


def assign_groups(
    section: LoopConfig,
    requested: np.ndarray,
    label: np.ndarray,
    pixels: np.ndarray,
    logits: np.ndarray | None,
    data: Dataset,
) -> np.ndarray:
    """int32[N] by `loop.group_source`: requested, the image's colour or the annotator's.

    logits float32[N,G] are the annotator's.
    """
    # Where there is one group only, every image is in it.
    if len(data.groups) == 1:
        return np.zeros(len(pixels), np.int32)
    if section.group_source == "requested":
        # Under another label than the requested one, a nested group is none of the label's.
        fits = (requested >= 0) & data.groups_of_class[label, requested]
        return np.where(fits, requested, UNKNOWN).astype(np.int32)
    if section.group_source == "oracle":
        if data.colours is None:
            raise ValueError("loop.group_source = oracle: the images have no colours to read")
        return read_group(pixels, data.colours)
    if logits is None:
        raise ValueError("loop.group_source = annotator: its logits are missing")
    return most_likely_group(logits, label, data.groups_of_class)


def most_likely_group(
    logits: np.ndarray, label: np.ndarray, groups_of_class: np.ndarray
) -> np.ndarray:
    """int32[N]: the likeliest group that the image's class has, -1 where it has none.

    groups_of_class bool[C,G].
    """
    # bool[N,G]: the groups that each image can have.
    possible = groups_of_class[label]
    # A group that the class cannot have never wins, whatever its logit.
    best = np.where(possible, logits, -np.inf).argmax(axis=1)
    return np.where(possible.any(axis=1), best, UNKNOWN).astype(np.int32)


def confusion_matrices(
    label: np.ndarray, group: np.ndarray, predicted: np.ndarray, groups_of_class: np.ndarray
) -> list[np.ndarray]:
    """Per class int64[K,K]: images of its k-th group (row) predicted to be of its j-th.

    label, group, predicted int32[N]; K groups of a class, in the order of groups_of_class; images
    of group -1 are left out.
    """
    classes, groups = groups_of_class.shape
    counts = np.zeros((classes, groups, groups), np.int64)
    known = group >= 0
    # `add.at` counts an index as often as it occurs; `counts[index] += 1` counts it once.
    np.add.at(counts, (label[known], group[known], predicted[known]), 1)
    return [table[np.ix_(row, row)] for table, row in zip(counts, groups_of_class, strict=True)]


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
