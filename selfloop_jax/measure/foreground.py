"""Reliance of a classifier on the object and its surroundings, by images with masks.

The protocol of Moayeri, Singla and Feizi, "Hard ImageNet: Segmentations for Objects with Strong
Spurious Cues", NeurIPS 2022 Datasets and Benchmarks. *Ablations* take the object away: a classifier
that looked at it must get worse. *Relative foreground sensitivity* (RFS; Moayeri et al., CVPR 2022)
compares noise on the object with noise around it: near 1 only the object matters, near -1 only the
background.

Masks are uint8[N,H,W], the object where they are not 0. No training code.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from selfloop_jax.data.images import Images
from selfloop_jax.runtime import rng
from selfloop_jax.runtime.keys import key

ABLATIONS = ("none", "object", "box", "tile")

# Deviations of the noise in units of the pixels' range: the published list.
SIGMAS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75)

TRIALS = 3

# The published 0.5 lies between two bytes; rounding half to even gives 128 (0.502).
GRAY = 128

# Images whose noise is sampled at once: 32 of 224x224 take 20 MB.
BLOCK = 32

Box = tuple[slice, slice]

Predict = Callable[[np.ndarray], np.ndarray]  # pixels uint8[N,H,W,3] -> float32[N,...]


def evaluate(
    predict: Predict,
    images: Images,
    num_classes: int,
    key_path: rng.KeyPath,
    sigmas: tuple[float, ...] = SIGMAS,
    trials: int = TRIALS,
) -> dict[str, Any]:
    """Ablations and RFS of a classifier on N images with masks, ready for the record.

    `predict` takes uint8[M,H,W,3] to logits float[M,C]. It is called with the same M every time:
    once per ablation and twice per sigma and trial. The noise of trial t is keyed by (*key_path,
    "trial", t) and the image's id, the same for every sigma and both places, so that they are
    compared under the same noise.

    Accuracies are shares in [0, 1]; `class_mean`, the mean over classes, is what the publication
    takes for noise; `per_class` is the recall of each class. Every `rfs` is read off accuracies
    averaged over trials. What no images define is NaN. Images whose mask is empty have no object to
    take away: they are left out of all numbers, and counted.

    Raises:
      ValueError: images without masks.
    """
    masks = images.mask
    if masks is None:
        raise ValueError("Images.mask: missing; images must have masks")
    has_object = (masks > 0).any(axis=(1, 2))
    images = images.take(np.flatnonzero(has_object))
    masks = masks[has_object]

    def hits(pixels: np.ndarray) -> np.ndarray:
        """bool[M]: which of the images are still recognised; without images nothing is called."""
        if not len(images):
            return np.zeros(0, bool)
        return predict(pixels).argmax(axis=1) == images.label

    ablations = {}
    for kind in ABLATIONS:
        ablated = ablate(images.pixels, masks, kind)
        # One trial: nothing in an ablation is random.
        ablations[kind] = _accuracies(hits(ablated)[None], images.label, num_classes)
    return {
        "count": len(images),
        "empty_masks": int((~has_object).sum()),
        "trials": trials,
        "ablations": ablations,
        "noise": [
            _sensitivity(hits, images, masks, num_classes, key_path, sigma, trials)
            for sigma in sigmas
        ],
    }


def _sensitivity(
    hits: Callable[[np.ndarray], np.ndarray],
    images: Images,
    masks: np.ndarray,
    num_classes: int,
    key_path: rng.KeyPath,
    sigma: float,
    trials: int,
) -> dict[str, Any]:
    """Accuracies under noise of one sigma on each of the two places, and their RFS."""
    on_object = []
    around = []
    for trial in range(trials):
        # One noisy image serves both places, so that they differ in the place alone.
        noisy = noised(images.pixels, images.id, (*key_path, "trial", trial), sigma)
        on_object.append(hits(placed(images.pixels, noisy, masks, "foreground")))
        around.append(hits(placed(images.pixels, noisy, masks, "background")))
    foreground = _accuracies(np.array(on_object), images.label, num_classes)
    background = _accuracies(np.array(around), images.label, num_classes)
    per_class = zip(foreground["per_class"], background["per_class"], strict=True)
    return {
        "sigma": sigma,
        "foreground": foreground,
        "background": background,
        "rfs": rfs(foreground["class_mean"], background["class_mean"]),
        "rfs_per_class": [rfs(a_fg, a_bg) for a_fg, a_bg in per_class],
    }


def rfs(a_fg: float, a_bg: float) -> float:
    """Relative foreground sensitivity, (a_bg - a_fg) / (2 min(a, 1-a)) with a their mean.

    0 where a is 0 or 1. a_fg and a_bg are accuracies under noise on the foreground and on the
    background. The denominator is the largest gap that two accuracies of mean a can have, so the
    result is in [-1, 1]. NaN where either is.
    """
    mean = (a_fg + a_bg) / 2
    if mean in (0, 1):
        return 0.0
    return (a_bg - a_fg) / (2 * min(mean, 1 - mean))


def noised(pixels: np.ndarray, ids: np.ndarray, key_path: rng.KeyPath, sigma: float) -> np.ndarray:
    """The images uint8[N,H,W,3] of ids uint32[N] with Gaussian noise everywhere.

    The publication calls it l_inf noise: independent for every pixel and channel, of deviation
    `sigma` (in [0, 1] units) whatever the size of the object, the result clipped to [0, 1] before
    normalisation. Rounding to bytes, so that the classifier is fed as always, is harmless: its
    error has a deviation of 0.0011, a hundredth of the smallest published sigma, and is alike on
    object and background.
    """
    out = np.empty_like(pixels)
    noise_key = key(key_path)
    # The last block begins again at image 0; the same bits are written there twice.
    for rows in _blocks(len(pixels)):
        out[rows] = _add_noise(pixels[rows], ids[rows], noise_key, np.float32(sigma))
    return out


def placed(pixels: np.ndarray, noisy: np.ndarray, masks: np.ndarray, place: str) -> np.ndarray:
    """`noisy` on the object ("foreground") or around it ("background"), else `pixels`."""
    on_object = (masks > 0)[..., None]
    return np.where(on_object if place == "foreground" else ~on_object, noisy, pixels)


def ablate(pixels: np.ndarray, masks: np.ndarray, kind: str) -> np.ndarray:
    """The images uint8[N,H,W,3] without the objects of masks uint8[N,H,W].

    kind: "none" changes nothing; "object" grays the object's pixels, so that its shape can still be
    seen; "box" grays the bounding box of all of them; "tile" covers the box of each connected part
    with its surroundings (see `tile`). Images with an empty mask stay as they are. Boxes hold the
    object's last row and column, which those of the public code leave out.
    """
    if kind == "none":
        return pixels
    if kind == "object":
        return np.where((masks > 0)[..., None], np.uint8(GRAY), pixels)
    ablate_one = {"box": _gray_box, "tile": tile}[kind]
    out = np.empty_like(pixels)
    for i in range(len(out)):
        out[i] = ablate_one(pixels[i], masks[i])
    return out


def tile(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """One image uint8[H,W,3] with each part of the object of its mask uint8[H,W] covered.

    A part is 4-connected. Of the four regions that share a side with its bounding box, each as
    large as the box, cut off at the image's border and before the first row or column with any
    object on it, the largest (of equal ones the first of right, left, below, above) repeats across
    the box. A box without any such region is grayed. The public code exchanges rows with columns
    when it looks for the regions; here they are where the publication says, so figures for tiles
    compare only roughly.
    """
    out = image.copy()
    on_object = mask > 0
    for box in ndimage.find_objects(ndimage.label(on_object)[0]):
        # Read from `image`, not from `out`: a covered part must not serve as surroundings.
        region = max(_neighbours(on_object, box), key=_area)
        out[box] = image[_repeated(region, box)] if _area(region) else GRAY
    return out


def _gray_box(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """One image of `ablate`'s kind "box"."""
    out = image.copy()
    for box in ndimage.find_objects((mask > 0).astype(np.int8)):
        out[box] = GRAY
    return out


def _neighbours(on_object: np.ndarray, box: Box) -> Iterator[Box]:
    """The object-free regions right of, left of, below and above a box."""
    # Object pixels of any part end a region, not those of this part alone.
    rows, columns = box
    columns_with_object = np.asarray(on_object[rows].any(axis=0))
    rows_with_object = np.asarray(on_object[:, columns].any(axis=1))
    yield rows, _after(columns_with_object, columns)
    yield rows, _before(columns_with_object, columns)
    yield _after(rows_with_object, rows), columns
    yield _before(rows_with_object, rows), columns


def _after(blocked: np.ndarray, span: slice) -> slice:
    """The free stretch behind `span` of a line, bool[length] blocked, at most as long as it."""
    return slice(span.stop, span.stop + _free(blocked[span.stop :], span))


def _before(blocked: np.ndarray, span: slice) -> slice:
    """The free stretch in front of `span`, likewise."""
    return slice(span.start - _free(blocked[: span.start][::-1], span), span.start)


def _free(blocked: np.ndarray, span: slice) -> int:
    """Places up to the first blocked one, at most the length of `span`."""
    line = blocked[: span.stop - span.start]
    return int(line.argmax()) if line.any() else len(line)


def _area(box: Box) -> int:
    return math.prod(side.stop - side.start for side in box)


def _repeated(region: Box, box: Box) -> tuple[np.ndarray, np.ndarray]:
    """The index that reads `region`, repeated with its own period, at the places of `box`."""

    def places(source: slice, target: slice) -> np.ndarray:
        # Counted from the region, so that its pattern continues into the box.
        steps = np.arange(target.start, target.stop) - source.start
        return source.start + steps % (source.stop - source.start)

    rows, columns = map(places, region, box)
    return rows[:, None], columns[None, :]


def _accuracies(hits: np.ndarray, label: np.ndarray, num_classes: int) -> dict[str, Any]:
    """Accuracy overall, as class mean and per class, of hits bool[trials,N]."""
    recall = [_mean(hits[:, label == c]) for c in range(num_classes)]
    # A class without images has no part in the class mean.
    present = [value for value in recall if not math.isnan(value)]
    return {"accuracy": _mean(hits), "class_mean": _mean(np.array(present)), "per_class": recall}


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan


def _blocks(count: int) -> Iterator[np.ndarray]:
    """Indices of BLOCK images at a time, the last ones filled up so that all have one shape."""
    for first in range(0, count, BLOCK):
        yield np.arange(first, first + BLOCK) % count


@jax.jit
def _add_noise(pixels: jax.Array, ids: jax.Array, key: jax.Array, sigma: jax.Array) -> jax.Array:
    """uint8[B,H,W,3] with noise keyed by each image's id."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, ids)
    noise = jax.vmap(lambda k: jax.random.normal(k, pixels.shape[1:]))(keys)
    noisy = jnp.round(pixels.astype(jnp.float32) + 255 * sigma * noise)
    return jnp.clip(noisy, 0, 255).astype(jnp.uint8)
