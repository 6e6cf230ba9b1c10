"""Whether generated images copy training images, by distances to these and to held-out images.

A generator that only learned the distribution is as near to held-out images as to those it was
trained on. Two statistics see that fail: of the typical image (`share_nearer`), which a few copies
do not move, and of the nearest images (`copied`), which counts them.
"""

import math

import numpy as np

from selfloop_jax.measure.distances import nearest
from selfloop_jax.measure.intervals import two_sided, wilson
from selfloop_jax.measure.metrics import Number
from selfloop_jax.runtime import rng

# An image is a near-copy of another where less than this much of the distance to the other set is
# left. In eight dimensions or more that is rare by chance (tests/measure/test_memorization.py).
NEAR = 0.5


def report(
    generated: np.ndarray,
    train: np.ndarray,
    held_out: np.ndarray,
    key_path: rng.KeyPath,
    level: float = 0.95,
) -> tuple[dict[str, Number], list[str]]:
    """`memorized_share` and `copied_share` with baselines, and sentences on what to beware of.

    Of features (or pixels) float32[M,D], [N,D] and [H,D]. `held_out` are real images that the
    generator never saw, sampled as the training images were: with other shares of labels and groups
    that difference would be measured too. Bases are cut to one size, since of two sets the larger
    has nearer neighbours by its size alone; `key_path` decides which images stay. The baseline puts
    held-out images in place of generated ones: one half of them asks, the other half is the base.
    level: of the intervals; a note rests on a 95 % one at every level.
    """
    train = train[rng.permutation((*key_path, "train"), len(train))]
    held_out = held_out[rng.permutation((*key_path, "held_out"), len(held_out))]
    base = min(len(train), len(held_out))
    half = min(len(train), len(held_out) // 2)
    found = memorization(generated, train[:base], held_out[:base], level)
    # No image is its own neighbour.
    baseline = memorization(held_out[len(held_out) // 2 :], train[:half], held_out[:half])
    # Copies of training images that are not searched are as many in proportion.
    scale = len(train) / base if base else math.nan
    baseline_scale = len(train) / half if half else math.nan
    metrics: dict[str, Number] = {
        "memorized_share": {
            "value": found["share_nearer"],
            "low": found["low"],
            "high": found["high"],
            "baseline": baseline["share_nearer"],
        },
        "copied_share": {
            "value": scale * found["copied"],
            "low": scale * found["copied_low"],
            "high": scale * found["copied_high"],
            "baseline": baseline_scale * baseline["copied"],
        },
    }
    return metrics, _notes(len(train), len(held_out), baseline)


def _notes(train: int, held_out: int, baseline: dict[str, float]) -> list[str]:
    """Which images are searched, and whether held-out ones look sampled as training images were."""
    notes = []
    if train > held_out:
        notes.append(
            f"memorized_share: {held_out} of {train} training images are searched, as many as are "
            "held out: copies of the others are not seen; copied_share allows for them"
        )
    if baseline["high"] < 0.5 or baseline["low"] > 0.5:
        notes.append(
            f"memorized_share: even of held-out images a share of {baseline['share_nearer']:.2f} "
            "is nearer to training images, not one half: the two real sets seem to differ in more "
            "than chance"
        )
    return notes


def memorization(
    generated: np.ndarray, train: np.ndarray, held_out: np.ndarray, level: float = 0.95
) -> dict[str, float]:
    """How many images are nearer, and how many far nearer, to training than to held-out images.

    Every image of float32[M,D] has a distance to its nearest row of each set, float32[N,D] both.
    `median_ratio` is the median of the first over the second (0/0 counts as 1); `share_nearer` the
    share of images for which the first is smaller, equality counting half, so that chance gives
    0.5; `low` and `high` its Wilson interval of that level. Images whose nearest real image is the
    same one err together, and in many dimensions a few real images are nearest to most: the
    interval is that of `effective` independent images, (sum n)^2 / sum n^2 over the numbers n of
    images that share one (Kish 1965). That of M images did not hold 0.5 in 21 to 61 % of trials
    under chance alone (64 Gaussian features, 200 to 1,000 images; at 95 %). `count` is M, `base` is
    N.

    `copied` is the share of images whose first distance is less than NEAR of the second, minus the
    share for which the second is less than NEAR of the first. Without copies the two sets can be
    exchanged, so that it is 0 but for chance. Its interval is normal, with the error sqrt(1 + sum
    n^2) / M over the near-copies n that share a real image; the 1 keeps an error where none is
    found. NaN without images.

    Raises:
      ValueError: sets of different size, of which the larger would be nearer by its size alone.
    """
    if len(train) != len(held_out):
        raise ValueError(
            f"train: {len(train)} rows; must be {len(held_out)}, as many as held_out has"
        )
    if not len(generated) or not len(train):
        nothing = dict.fromkeys(
            (
                *("median_ratio", "share_nearer", "low", "high", "effective"),
                *("copied", "copied_low", "copied_high"),
            ),
            math.nan,
        )
        return nothing | {"count": len(generated), "base": len(train)}
    in_train, to_train = nearest(generated, train)
    in_held_out, to_held_out = nearest(generated, held_out)
    # The nearest image of either set, numbered over both: who shares one errs together.
    nearest_image = np.where(to_train <= to_held_out, in_train, len(train) + in_held_out)
    sharing = np.bincount(nearest_image)
    effective = len(generated) ** 2 / (sharing**2).sum()
    equal = to_train == to_held_out
    with np.errstate(divide="ignore", invalid="ignore"):
        # Equality is set apart first, because 0/0 would be NaN.
        ratio = np.where(equal, 1.0, to_train / to_held_out)
    share = float(np.where(equal, 0.5, to_train < to_held_out).mean())
    low, high = wilson(share * effective, effective, two_sided(level))
    of_train = in_train[to_train < NEAR * to_held_out]
    of_held_out = in_held_out[to_held_out < NEAR * to_train]
    copied = (len(of_train) - len(of_held_out)) / len(generated)
    shared = sum((np.bincount(index) ** 2).sum() for index in (of_train, of_held_out))
    reach = two_sided(level) * math.sqrt(1 + shared) / len(generated)
    return {
        "median_ratio": float(np.median(ratio)),
        "share_nearer": share,
        "low": float(low),
        "high": float(high),
        "effective": float(effective),
        "copied": copied,
        "copied_low": copied - reach,
        "copied_high": copied + reach,
        "count": len(generated),
        "base": len(train),
    }
