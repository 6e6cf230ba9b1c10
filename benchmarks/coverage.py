"""Coverage of the intervals and of the null bands on simulated test sets. One JSON line per case.

    python -m benchmarks.coverage [--trials=1000] [--null_trials=300] [--replicates=250]
        [--design=NAME]

Test sets are sampled from known recalls, flat over groups or not, by design:

    one, ten     one class, or ten, of five groups of 100 images
    paired       ten classes; each source image is shown in every group, and whether it is
                 recognised is strongly correlated between them
    large        ten classes of ten groups of 100 images, as in the study's test set
    nested       twenty classes of five groups of their own, of 100 images
    rare         four classes of four groups of 200 images and one of 15

Reported are

    coverage     share of trials in which an interval covers the true number, and its mean `width`
    beyond_null  without a gap, share of trials in which a number lies beyond the 5 % quantile of
                 its own null band, one-sided in the unfair direction; then the share at it or
                 beyond, since a number that takes few values often lies at it
    seconds      for 10,000 images

The standard error of a coverage of 0.95 is 0.007 with 1,000 trials, that of a share of 0.05 is
0.013 with 300.
"""

import argparse
import json
import time
from dataclasses import dataclass

import numpy as np
from scipy import special

from selfloop_jax.measure import fairness
from selfloop_jax.measure.metrics import METRICS
from selfloop_jax.measure.null import null
from selfloop_jax.measure.test_set import TestSet
from selfloop_jax.runtime import rng

CORRELATION = 0.8


@dataclass(frozen=True)
class Design:
    """The sizes of a test set's subgroups, and how its images depend on each other."""

    classes: int
    sizes: tuple[int, ...]  # images of each group of a class
    paired: bool = False
    nested: bool = False


DESIGNS = {
    "one": Design(1, (100,) * 5),
    "ten": Design(10, (100,) * 5),
    "paired": Design(10, (100,) * 5, paired=True),
    "large": Design(10, (100,) * 10),
    "nested": Design(20, (100,) * 5, nested=True),
    "rare": Design(4, (200,) * 4 + (15,)),
}

# Recalls of the groups of every class: one recall for all, or from the first to the second; and
# groups of which one is worse.
RECALLS = {
    "0.7": (0.7, 0.7),
    "0.8": (0.8, 0.8),
    "0.9": (0.9, 0.9),
    "0.97": (0.97, 0.97),
    "0.99": (0.99, 0.99),
    "0.78 to 0.82": (0.78, 0.82),
    "0.7 to 0.9": (0.7, 0.9),
    "0.7 to 0.99": (0.7, 0.99),
    "one at 0.6": (0.8, 0.8),
    "0.25 to 0.99": (0.25, 0.99),
}
FLAT = [name for name, (low, high) in RECALLS.items() if low == high and "one" not in name]


def recalls(name: str, design: Design) -> np.ndarray:
    """float64[C,G]: the recalls of that name in every class."""
    groups = len(design.sizes)
    of_groups = np.linspace(*RECALLS[name], groups)
    if name == "one at 0.6":
        of_groups[-1] = 0.6
    return np.tile(of_groups, (design.classes, 1))


def population(design: Design, recall: np.ndarray) -> TestSet:
    """A test set of the design's proportions, so large that its recalls are exact; see `sample`.

    Errors are spread evenly over the other classes; a single class errs into a second, which has no
    images.
    """
    labels = []
    preds = []
    groups = []
    for (c, g), share in np.ndenumerate(recall):
        size = 120 * design.sizes[g]
        others = np.delete(np.arange(max(len(recall), 2)), c)
        wrong = round(size * (1 - share))
        labels.append(np.full(size, c))
        preds.append(np.concatenate([np.full(size - wrong, c), np.resize(others, wrong)]))
        groups.append(np.full(size, g))
    return _test_set(design, *map(np.concatenate, (labels, preds, groups)))


def sample(design: Design, recall: np.ndarray, key_path: rng.KeyPath) -> TestSet:
    """Images of the design, each right with the probability of its recall, float64[C,G]."""
    classes, groups = recall.shape
    shape = (classes, max(design.sizes), groups)
    label, image, group = np.indices(shape)
    of_source, of_image, of_error = (
        _uniforms((*key_path, name), shape) for name in ("source", "image", "wrong")
    )
    # An image is right where its skill, partly its source's, is below the quantile of the recall.
    common = CORRELATION if design.paired else 0.0
    source = special.ndtri(of_source[:, :, :1])
    skill = np.sqrt(common) * source + np.sqrt(1 - common) * special.ndtri(of_image)
    right = skill < special.ndtri(recall)[:, None]
    step = 1 + (of_error * max(classes - 1, 1)).astype(int)
    pred = np.where(right, label, (label + step) % max(classes, 2))
    rows = np.arange(label.size).reshape(shape)
    source_id = rows // groups if design.paired else rows
    kept = image < np.array(design.sizes)
    return _test_set(design, label[kept], pred[kept], group[kept], source_id[kept])


def _test_set(
    design: Design,
    label: np.ndarray,
    pred: np.ndarray,
    group: np.ndarray,
    source_id: np.ndarray | None = None,
) -> TestSet:
    """Columns as a test set whose aligned groups are the best and the second one in turn."""
    groups = len(design.sizes)
    classes = max(design.classes, 2)
    aligned = np.resize([groups - 1, 1], classes)
    if not design.nested:
        return TestSet(label, pred, group, classes, groups, source_id, aligned)
    # Each class has groups of its own.
    first = np.arange(classes) * groups
    every = classes * groups
    return TestSet(
        label, pred, first[label] + group, classes, every, source_id, first + aligned, nested=True
    )


def _uniforms(key_path: rng.KeyPath, shape: tuple[int, ...]) -> np.ndarray:
    words = rng.words(key_path, int(np.prod(shape))).reshape(shape)
    return ((words >> np.uint64(11)) + 0.5) * 2.0**-53


def coverage(name: str, of_groups: str, trials: int, replicates: int) -> dict:
    """Share of trials in which each interval covers, and its mean width."""
    design = DESIGNS[name]
    recall = recalls(of_groups, design)
    truth = fairness.summary(population(design, recall))
    hits: dict[str, list] = {}
    width: dict[str, list] = {}
    for trial in range(trials):
        key_path = (0, name, of_groups, trial)
        test_set = sample(design, recall, (*key_path, "draw"))
        for key, (low, high) in fairness.bounds(test_set, key_path, replicates).items():
            hits.setdefault(key, []).append(low - 1e-9 <= truth[key] <= high + 1e-9)
            width.setdefault(key, []).append(high - low)
        ends = fairness.recall(test_set)
        # Nested, a class has the groups that are its own, in the same order.
        low, high = (ends[side][~np.isnan(ends[side])].ravel() for side in ("low", "high"))
        covers = (low <= recall.ravel()) & (recall.ravel() <= high)
        hits.setdefault("recall", []).append(np.mean(covers))
        width.setdefault("recall", []).append(np.mean(high - low))
    covered = {key: _share(hit) for key, hit in hits.items() if not np.isnan(width[key][0])}
    return {"coverage": covered, "width": {key: _share(width[key]) for key in covered}}


def exceedance(name: str, of_groups: str, trials: int, replicates: int) -> dict:
    """Shares of trials without a gap in which a number lies beyond its 5 % null quantile.

    The second share counts numbers that lie at it, too.
    """
    design = DESIGNS[name]
    recall = recalls(of_groups, design)
    beyond: dict[str, list] = {}
    for trial in range(trials):
        key_path = (1, name, of_groups, trial)
        test_set = sample(design, recall, (*key_path, "draw"))
        observed = fairness.summary(test_set)
        for key, values in null([test_set], key_path, replicates).items():
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


def seconds(name: str) -> dict:
    """Seconds of `fairness.numbers` for 10,000 images in 10 x 10 subgroups, 1,000 replicates."""
    design = DESIGNS[name]
    test_set = sample(design, recalls("0.8", design), (2, "seconds"))
    start = time.perf_counter()
    fairness.numbers(test_set, (2, "seconds"))
    return {"seconds": round(time.perf_counter() - start, 2)}


def main() -> None:
    """Runs every case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--null_trials", type=int, default=300)
    parser.add_argument("--replicates", type=int, default=250)
    parser.add_argument("--design", choices=DESIGNS, action="append", help="default: all")
    arguments = parser.parse_args()
    _print({"design": "large", "images": 10000} | seconds("large"))
    for name in arguments.design or DESIGNS:
        for of_groups in RECALLS if arguments.trials else ():
            case = coverage(name, of_groups, arguments.trials, arguments.replicates)
            _print({"design": name, "recalls": of_groups, "trials": arguments.trials} | case)
        for of_groups in FLAT if arguments.null_trials else ():
            case = exceedance(name, of_groups, arguments.null_trials, arguments.replicates)
            _print({"design": name, "recalls": of_groups, "trials": arguments.null_trials} | case)


def _print(line: dict) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
