"""Which label and group is requested for each generated image."""

import numpy as np

from selfloop_jax.config import SampleConfig
from selfloop_jax.data.images import UNKNOWN, Images
from selfloop_jax.runtime import rng


def requested_labels(
    section: SampleConfig, address: rng.KeyPath, pool: Images, real: Images, members: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """int32[count] label and group asked of each id: a function of the id alone.

    `uniform` deals out the cells (label, group) in turn; `pool` and `real` deal out the conditions
    of that set in a keyed order without replacement, starting over when it is used up. So shares
    are those named, without sampling noise. The group counts only where the generator is
    conditioned on it. `members` bool[C,G]: the groups a class has.
    """
    ids = np.arange(section.count)
    if section.request == "uniform":
        label, turn = ids % len(members), ids // len(members)
        owned = np.argsort(~members, axis=1, kind="stable")  # a class's groups first
        count = members.sum(axis=1)[label]
        group = np.where(count > 0, owned[label, turn % np.maximum(count, 1)], UNKNOWN)
        return label.astype(np.int32), group.astype(np.int32)
    reference = {"pool": pool, "real": real}[section.request]
    order = rng.permutation((*address, "condition"), len(reference))[ids % len(reference)]
    return reference.label[order], reference.group[order]
