"""What was drawn, held against the real pool: histograms and distances between joint distributions."""

import numpy as np

SMOOTHING = 0.5  # added to every cell before a divergence


def composition(
    label: np.ndarray,
    group: np.ndarray,
    real_joint: np.ndarray,
    aligned_group: np.ndarray,
    members: np.ndarray,
) -> dict[str, object]:
    """Histograms of N generated images and their distance from the real joint.

    label, group int32[N] (-1 unknown), real_joint int[C,G], aligned_group int32[C] (-1 none) -> a dictionary
    ready for the record. Images of unknown group count in the class histogram only. members bool[C,G]: the
    cells that can be; the others take no part in a divergence.
    """
    classes, groups = real_joint.shape
    known = group >= 0
    cell = label[known] * groups + group[known]
    joint = np.bincount(cell, minlength=classes * groups).reshape(classes, groups)
    biased = known & (aligned_group[label] >= 0)
    share = (group[biased] == aligned_group[label[biased]]).mean() if biased.any() else float("nan")
    return {
        "count": len(label),
        "class_histogram": np.bincount(label, minlength=classes),
        "group_histogram": joint.sum(axis=0),
        "joint": joint,
        "unknown_group": int((~known).sum()),
        "kl_to_real": kl(joint[members], real_joint[members]),
        "total_variation_to_real": total_variation(joint, real_joint),
        "bias_aligned_share": float(share),
    }


def kl(p: np.ndarray, q: np.ndarray) -> float:
    """KL(p || q) in nats between two tables of counts, 0.5 added to every cell; NaN where one is empty."""
    if not p.sum() or not q.sum():
        return float("nan")
    p, q = (p + SMOOTHING) / (p + SMOOTHING).sum(), (q + SMOOTHING) / (q + SMOOTHING).sum()
    return float((p * np.log(p / q)).sum())


def total_variation(p: np.ndarray, q: np.ndarray) -> float:
    """Half the L1 distance between two tables of counts as shares; NaN where one is empty."""
    if not p.sum() or not q.sum():
        return float("nan")
    return float(np.abs(p / p.sum() - q / q.sum()).sum() / 2)
