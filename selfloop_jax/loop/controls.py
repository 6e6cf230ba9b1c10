"""Controls: held-out real images in the place of generated ones, of a given composition.

A control answers what a loop's curve would have been had the images been real. `fresh_real` gives a
pool as many held-out real images as it would get generated ones, with the subgroup shares of the
training set. `oracle_resample` gives them the subgroup counts of what another run generated, which
separates the composition of generated images from their quality.
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
    """int64[C,G] of a generated set; unknown groups are given the real shares of their class."""
    classes, groups = real.shape
    counts = images.counts(classes, groups)
    unknown = np.bincount(images.label[images.group < 0], minlength=classes)
    for c in np.flatnonzero(unknown):
        # A class without real images has no shares: its unknown groups are spread evenly.
        row = real[c] if real[c].sum() else np.ones(groups)
        counts[c] += largest_remainder(row / row.sum() * unknown[c])
    return counts


def matched_real_sets(
    key_path: rng.KeyPath, candidates: Images, tables: Sequence[np.ndarray], field: str
) -> list[Images]:
    """One set of real images per table of counts int[C,G], no image twice among all of them.

    Of each subgroup the candidates come whose source image was used least so far, then in a keyed
    order: a digit is reused in a second colour only after every digit of its class has been used. A
    longer list of tables begins with the sets of a shorter one. UsageError names the subgroup and
    both counts where images are lacking; `field` is what asked for them.
    """
    source = candidates.id if candidates.source_id is None else candidates.source_id
    # Keyed by id, so that an image's place does not depend on the other candidates.
    order = rng.uniforms(key_path, candidates.id)
    uses = np.zeros(int(source.max(initial=0)) + 1, np.int64)  # by source image
    free = np.ones(len(candidates), bool)
    sets = []
    for table in tables:
        rows = []
        for c, g in zip(*np.nonzero(table), strict=True):
            wanted = table[c, g]
            subgroup = (candidates.label == c) & (candidates.group == g)
            rest = np.flatnonzero(subgroup & free)
            if len(rest) < wanted:
                needed = sum(int(other[c, g]) for other in tables)
                raise UsageError(
                    f"{field}: class {c}, group {g}: {needed} real images are needed for one pool, "
                    f"but {subgroup.sum()} are held out; sample.count or loop.generations must be "
                    "smaller"
                )
            # `lexsort` sorts by its last key first.
            best = rest[np.lexsort((order[rest], uses[source[rest]]))[:wanted]]
            # No two images of a subgroup share their source, so this counts each once.
            uses[source[best]] += 1
            free[best] = False
            rows.append(best)
        sets.append(_as_generated(candidates.take(np.sort(np.concatenate(rows)))))
    return sets


def _as_generated(images: Images) -> Images:
    """With what pool rules need of a generated set: the requested label is the image's own."""
    names = ("pixels", "label", "group", "origin", "id", "source_id")
    columns = {name: column for name, column in images.columns.items() if name in names}
    return Images(**columns, requested_label=images.label)
