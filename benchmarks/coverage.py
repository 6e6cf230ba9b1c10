"""Do the intervals cover, and does the null band hold? One JSON line per case.

    python -m benchmarks.coverage [--trials=1000] [--replicates=250]

Test sets are drawn from known recalls: one class, or ten, of five groups of 100 images with recall
near .8. In the *unpaired* design every image is drawn on its own; in the *paired* one each source
image is shown in every group, and whether it is recognised is strongly correlated between them.
Reported are

    coverage     share of trials in which an interval covers the true number, and its mean `width`
    beyond_null  without a gap, share of trials in which a number lies beyond the 5 % quantile of
    its own null
                 band, one-sided in the unfair direction; then the share at it or beyond, since a
                 number that takes few values often lies at it
    seconds      for 10,000 images
"""

import argparse
import json
import time

import numpy as np
from scipy import special

from selfloop_jax.measure import fairness, intervals, null
from selfloop_jax.runtime import rng

CELL = 100


GROUPS = 5


CORRELATION = 0.8


RECALLS = {
    "0": [0.8] * 5,
    "0.04": [0.78, 0.79, 0.80, 0.81, 0.82],
    "0.2": [0.7, 0.75, 0.8, 0.85, 0.9],
    "outlier": [0.8, 0.8, 0.8, 0.8, 0.6],
}


def population(recall: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Label, pred and group of 1,800 images a cell with exactly these recalls, float64[C, G].

    Errors are spread evenly over the other classes; a single class errs into a second, which has no
    images.
    """
    size, columns = 1800, []
    for (c, g), share in np.ndenumerate(recall):
        others = np.delete(np.arange(max(len(recall), 2)), c)
        wrong = round(size * (1 - share))
        pred = np.concatenate([np.full(size - wrong, c), np.resize(others, wrong)])
        columns.append((np.full(size, c), pred, np.full(size, g)))
    return tuple(np.concatenate(column) for column in zip(*columns, strict=True))


def draw(recall: np.ndarray, paired: bool, address: rng.KeyPath) -> tuple[np.ndarray, ...]:
    """Label, pred, group and source of CELL images a cell, as `population` but by chance."""
    classes, groups = recall.shape
    shape = (classes, CELL, groups)
    label, _, group = np.indices(shape)
    uniforms = [_uniforms((*address, name), shape) for name in ("source", "image", "wrong")]
    common = CORRELATION if paired else 0.0
    source = special.ndtri(uniforms[0][:, :, :1])
    skill = np.sqrt(common) * source + np.sqrt(1 - common) * special.ndtri(uniforms[1])
    right = skill < special.ndtri(recall)[:, None]
    step = 1 + (uniforms[2] * max(classes - 1, 1)).astype(int)
    pred = np.where(right, label, (label + step) % max(classes, 2))
    rows = np.arange(label.size)
    source_id = rows // groups if paired else rows
    return label.ravel(), pred.ravel(), group.ravel(), source_id


def _uniforms(address: rng.KeyPath, shape: tuple[int, ...]) -> np.ndarray:
    words = rng.words(address, int(np.prod(shape))).reshape(shape)
    return ((words >> np.uint64(11)) + 0.5) * 2.0**-53


def coverage(name: str, classes: int, paired: bool, trials: int, replicates: int) -> dict:
    """Share of trials in which each interval covers."""
    recall = np.tile(RECALLS[name], (classes, 1))
    sizes = (max(classes, 2), GROUPS)
    aligned = np.resize([4, 1], sizes[0])
    label, pred, group = population(recall)
    truth = fairness.summary(label, pred, group, *sizes)
    truth["aligned_contrast"] = fairness.aligned_contrast(label, pred, group, aligned, *sizes)
    hits, width, recall_hits = {}, {}, []
    for trial in range(trials):
        address = (0, name, classes, int(paired), trial)
        columns = draw(recall, paired, (*address, "draw"))
        metrics, (low, high) = intervals.intervals(
            *columns, *sizes, aligned, False, address, replicates
        )
        for metric, (lower, upper) in metrics.items():
            hits.setdefault(metric, []).append(lower - 1e-9 <= truth[metric] <= upper + 1e-9)
            width.setdefault(metric, []).append(upper - lower)
        recall_hits.append(np.mean((low[:classes] <= recall) & (recall <= high[:classes])))
    covered = {
        metric: _share(hit) for metric, hit in hits.items() if not np.isnan(width[metric][0])
    }
    return {
        "coverage": {"recall": _share(recall_hits)} | covered,
        "width": {metric: _share(width[metric]) for metric in covered},
    }


def exceedance(classes: int, paired: bool, trials: int, replicates: int) -> dict:
    """Shares of trials without a gap in which a number lies beyond its 5 % null quantile; and at it."""
    recall = np.tile(RECALLS["0"], (classes, 1))
    sizes = (max(classes, 2), GROUPS)
    aligned = np.resize([4, 1], sizes[0])
    beyond = {}
    for trial in range(trials):
        address = (1, classes, int(paired), trial)
        *columns, source = draw(recall, paired, (*address, "draw"))
        observed = fairness.summary(*columns, *sizes)
        observed["aligned_contrast"] = fairness.aligned_contrast(*columns, aligned, *sizes)
        permuted = null.null(*columns, source, *sizes, aligned, False, address, replicates)
        for metric, values in permuted.items():
            if np.isnan(observed[metric]):
                continue
            small = metric in null.SMALLER_IS_UNFAIR
            cut = np.quantile(values, 0.05 if small else 0.95)
            excess = cut - observed[metric] if small else observed[metric] - cut
            beyond.setdefault(metric, []).append((excess > 1e-12, excess > -1e-12))
    return {
        "beyond_null": {
            metric: [_share(side) for side in zip(*past, strict=True)]
            for metric, past in beyond.items()
        }
    }


def _share(values: list) -> float:
    return round(float(np.mean(values)), 4)


def seconds(paired: bool) -> dict:
    """Seconds of `uncertainty.summary` for 10,000 images in 10 x 10 cells with 1,000 replicates."""
    *columns, source = draw(np.full((10, 10), 0.8), paired, (2, "seconds"))
    start = time.perf_counter()
    null.summary(*columns, source, 10, 10, np.arange(10), False, (2, "seconds"))
    return {"seconds": round(time.perf_counter() - start, 2)}


def main() -> None:
    """Runs every case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--replicates", type=int, default=250)
    arguments = parser.parse_args()
    for paired in (False, True):
        design = {"design": "paired" if paired else "unpaired"}
        _print(design | {"images": 10000} | seconds(paired))
        for classes in (1, 10):
            for name in RECALLS:
                case = coverage(name, classes, paired, arguments.trials, arguments.replicates)
                _print(design | {"classes": classes, "gap": name} | case)
            case = exceedance(classes, paired, arguments.trials, arguments.replicates)
            _print(design | {"classes": classes, "gap": "0"} | case)


def _print(line: dict) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
