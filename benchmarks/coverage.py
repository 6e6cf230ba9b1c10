"""Coverage of the intervals and of the null bands on simulated test sets. One JSON line per case.

    python -m benchmarks.coverage [--trials=1000] [--replicates=250]

Test sets are sampled from known recalls: one class, or ten, of five groups of 100 images with
recall near 0.8. In the *unpaired* design every image is sampled on its own; in the *paired* one
each source image is shown in every group, and whether it is recognised is strongly correlated
between them. Reported are

    coverage     share of trials in which an interval covers the true number, and its mean `width`
    beyond_null  without a gap, share of trials in which a number lies beyond the 5 % quantile of
                 its own null band, one-sided in the unfair direction; then the share at it or
                 beyond, since a number that takes few values often lies at it
    seconds      for 10,000 images
"""

import argparse
import json
import time

import numpy as np
from scipy import special

from selfloop_jax.measure import fairness
from selfloop_jax.measure.metrics import METRICS
from selfloop_jax.measure.null import null
from selfloop_jax.measure.test_set import TestSet
from selfloop_jax.runtime import rng

SIZE = 100  # images of a subgroup
GROUPS = 5
CORRELATION = 0.8

RECALLS = {
    "0": [0.8] * 5,
    "0.04": [0.78, 0.79, 0.80, 0.81, 0.82],
    "0.2": [0.7, 0.75, 0.8, 0.85, 0.9],
    "outlier": [0.8, 0.8, 0.8, 0.8, 0.6],
}


def population(recall: np.ndarray) -> TestSet:
    """1,800 images a subgroup with exactly these recalls, float64[C,G]; see `sample`.

    Errors are spread evenly over the other classes; a single class errs into a second, which has no
    images.
    """
    size = 1800
    labels = []
    preds = []
    groups = []
    for (c, g), share in np.ndenumerate(recall):
        others = np.delete(np.arange(max(len(recall), 2)), c)
        wrong = round(size * (1 - share))
        labels.append(np.full(size, c))
        preds.append(np.concatenate([np.full(size - wrong, c), np.resize(others, wrong)]))
        groups.append(np.full(size, g))
    return _test_set(recall, *map(np.concatenate, (labels, preds, groups)))


def sample(recall: np.ndarray, paired: bool, key_path: rng.KeyPath) -> TestSet:
    """SIZE images a subgroup, each right with the probability of its recall, float64[C,G]."""
    classes, groups = recall.shape
    shape = (classes, SIZE, groups)
    label, _, group = np.indices(shape)
    of_source, of_image, of_error = (
        _uniforms((*key_path, name), shape) for name in ("source", "image", "wrong")
    )
    # An image is right where its skill, partly its source's, is below the quantile of the recall.
    common = CORRELATION if paired else 0.0
    source = special.ndtri(of_source[:, :, :1])
    skill = np.sqrt(common) * source + np.sqrt(1 - common) * special.ndtri(of_image)
    right = skill < special.ndtri(recall)[:, None]
    step = 1 + (of_error * max(classes - 1, 1)).astype(int)
    pred = np.where(right, label, (label + step) % max(classes, 2))
    rows = np.arange(label.size)
    source_id = rows // groups if paired else rows
    return _test_set(recall, label.ravel(), pred.ravel(), group.ravel(), source_id)


def _test_set(
    recall: np.ndarray,
    label: np.ndarray,
    pred: np.ndarray,
    group: np.ndarray,
    source_id: np.ndarray | None = None,
) -> TestSet:
    """Columns as a test set whose aligned groups are the best and the second one in turn."""
    classes = max(len(recall), 2)
    aligned = np.resize([recall.shape[1] - 1, 1], classes)
    return TestSet(label, pred, group, classes, recall.shape[1], source_id, aligned)


def _uniforms(key_path: rng.KeyPath, shape: tuple[int, ...]) -> np.ndarray:
    words = rng.words(key_path, int(np.prod(shape))).reshape(shape)
    return ((words >> np.uint64(11)) + 0.5) * 2.0**-53


def coverage(name: str, classes: int, paired: bool, trials: int, replicates: int) -> dict:
    """Share of trials in which each interval covers, and its mean width."""
    recall = np.tile(RECALLS[name], (classes, 1))
    truth = fairness.summary(population(recall))
    hits: dict[str, list] = {}
    width: dict[str, list] = {}
    recall_hits = []
    for trial in range(trials):
        key_path = (0, name, classes, int(paired), trial)
        test_set = sample(recall, paired, (*key_path, "draw"))
        for key, (low, high) in fairness.bounds(test_set, key_path, replicates).items():
            hits.setdefault(key, []).append(low - 1e-9 <= truth[key] <= high + 1e-9)
            width.setdefault(key, []).append(high - low)
        ends = fairness.recall(test_set)
        covers = (ends["low"][:classes] <= recall) & (recall <= ends["high"][:classes])
        recall_hits.append(np.mean(covers))
    covered = {key: _share(hit) for key, hit in hits.items() if not np.isnan(width[key][0])}
    return {
        "coverage": {"recall": _share(recall_hits)} | covered,
        "width": {key: _share(width[key]) for key in covered},
    }


def exceedance(classes: int, paired: bool, trials: int, replicates: int) -> dict:
    """Shares of trials without a gap in which a number lies beyond its 5 % null quantile.

    The second share counts numbers that lie at it, too.
    """
    recall = np.tile(RECALLS["0"], (classes, 1))
    beyond: dict[str, list] = {}
    for trial in range(trials):
        key_path = (1, classes, int(paired), trial)
        test_set = sample(recall, paired, (*key_path, "draw"))
        observed = fairness.summary(test_set)
        for key, values in null(test_set, key_path, replicates).items():
            if np.isnan(observed[key]):
                continue
            sign = -1 if METRICS[key].better == "higher" else 1
            excess = sign * observed[key] - np.quantile(sign * values, 0.95)
            beyond.setdefault(key, []).append((excess > 1e-12, excess > -1e-12))
    return {
        "beyond_null": {
            key: [_share(side) for side in zip(*past, strict=True)] for key, past in beyond.items()
        }
    }


def _share(values: list) -> float:
    return round(float(np.mean(values)), 4)


def seconds(paired: bool) -> dict:
    """Seconds of `fairness.numbers` for 10,000 images in 10 x 10 subgroups, 1,000 replicates."""
    test_set = sample(np.full((10, 10), 0.8), paired, (2, "seconds"))
    start = time.perf_counter()
    fairness.numbers(test_set, (2, "seconds"))
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
