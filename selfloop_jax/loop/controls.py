"""Controls: held-out real images in the place of generated ones, of a given composition.

A control answers what a loop's curve would have been had the images been real: `fresh_real` gives a
pool as many held-out real images as it would get generated ones, with the shares of the training
set; `oracle_resample` gives them the joint histogram of what another run drew, which separates the
composition of generated images from their quality.
"""

from collections.abc import Sequence

import numpy as np

from selfloop_jax.data.images import Images
from selfloop_jax.data.splits import largest_remainder
from selfloop_jax.errors import UsageError
from selfloop_jax.runtime import rng


def counts_like(real: np.ndarray, count: int) -> np.ndarray:
    """int64[C,G] that adds up to `count`, in the shares of the table real int[C,G]."""
    return largest_remainder(real / real.sum() * count)


def counts_of(images: Images, real: np.ndarray) -> np.ndarray:
    """int64[C,G] of a drawn set; images of unknown group are dealt out in the real shares of their class."""
    classes, groups = real.shape
    joint = images.joint(classes, groups)
    unknown = np.bincount(images.label[images.group < 0], minlength=classes)
    for c in np.flatnonzero(unknown):
        row = real[c] if real[c].sum() else np.ones(groups)
        joint[c] += largest_remainder(row / row.sum() * unknown[c])
    return joint


def matched_real_sets(
    address: rng.KeyPath, candidates: Images, joints: Sequence[np.ndarray], field: str
) -> list[Images]:
    """One set of real images per table of joints int[C,G], no image twice among all of them.

    Of each cell the candidates come whose source image was used least so far, then in a keyed
    order: a digit serves in a second colour only when all digits of its class have served. A longer
    list of tables begins with the sets of a shorter one. UsageError names the cell and both counts
    where images lack; `field` is what asked for them.
    """
    source = candidates.id if candidates.source_id is None else candidates.source_id
    order = rng.uniforms(address, candidates.id)
    used = np.zeros(int(source.max(initial=0)) + 1, np.int64)
    free = np.ones(len(candidates), bool)
    found = []
    for joint in joints:
        rows = []
        for c, g in zip(*np.nonzero(joint), strict=True):
            cell = np.flatnonzero((candidates.label == c) & (candidates.group == g) & free)
            if len(cell) < joint[c, g]:
                everything = ((candidates.label == c) & (candidates.group == g)).sum()
                asked = sum(int(table[c, g]) for table in joints)
                raise UsageError(
                    f"{field}: class {c}, group {g}: {asked} real images are asked for in one pool, "
                    f"{everything} are held out; allowed are smaller sample.count or fewer loop.generations"
                )
            best = cell[np.lexsort((order[cell], used[source[cell]]))[: joint[c, g]]]
            used[source[best]] += 1
            free[best] = False
            rows.append(best)
        found.append(_as_generated(candidates.take(np.sort(np.concatenate(rows)))))
    return found


def _as_generated(images: Images) -> Images:
    """With what pool rules ask of a drawn set: the class it was asked for is its own."""
    columns = {name: getattr(images, name) for name in ("pixels", "label", "group", "origin", "id")}
    return Images(**columns, source_id=images.source_id, condition=images.label)
