"""Which label and group is requested for each generated image."""

import numpy as np

from selfloop_jax.config import Config, SampleConfig
from selfloop_jax.data.dataset import Dataset
from selfloop_jax.data.images import UNKNOWN, Images
from selfloop_jax.data.splits import stratified_order
from selfloop_jax.errors import UsageError
from selfloop_jax.runtime import rng


def check(config: Config, data: Dataset) -> None:
    """Raises UsageError where a class or group is requested that no training image shows.

    Its embedding would never be trained, and its images would go into every later pool. A subgroup
    of a class and a group that both occur can be requested: the record counts such images.
    """
    if config.sample.request != "uniform":
        return
    label, group = in_turn(np.arange(data.groups_of_class.size), data.groups_of_class)
    requested = [("class", data.classes, label, data.train.label)]
    if config.diffusion.condition_on == "label_group":
        requested.append(("group", data.groups, group, data.train.group))
    for kind, names, wanted, shown in requested:
        for i in np.setdiff1d(wanted[wanted >= 0], shown):
            raise UsageError(
                f"sample.request = uniform: must be real | pool, because {kind} {names[i]!r} has "
                "no training image"
            )


def requested_labels(
    section: SampleConfig,
    key_path: rng.KeyPath,
    pool: Images,
    real: Images,
    groups_of_class: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Label and group int32[count] requested for each image id; a function of the id alone.

    By `sample.request`: `uniform` goes through the subgroups in turn; `pool` and `real` go through
    the labels and groups of that set in a keyed order, starting over at its end. The order has the
    labels, and the groups of each label, in proportion in every stretch, so that the requested
    shares are exact to an image whatever the count. The group matters only to a generator that is
    conditioned on it.
    groups_of_class bool[C,G]: the groups that a class has.
    """
    ids = np.arange(section.count)
    if section.request == "uniform":
        return in_turn(ids, groups_of_class)
    reference = {"pool": pool, "real": real}[section.request]
    order = _in_proportion((*key_path, "condition"), reference)[ids % len(reference)]
    return reference.label[order], reference.group[order]


def _in_proportion(key_path: rng.KeyPath, images: Images) -> np.ndarray:
    """int64[N]: a keyed order with labels, and groups of a label, in proportion everywhere."""
    place = np.zeros(len(images))
    for c in np.unique(images.label):
        rows = np.flatnonzero(images.label == c)
        rows = rows[stratified_order((*key_path, int(c)), images.group[rows])]
        # The images of a label, evenly over the whole order.
        place[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    # Labels with equally many images share places: a keyed order decides among them.
    return np.lexsort((rng.permutation(key_path, len(images)), place))


def in_turn(ids: np.ndarray, groups_of_class: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Classes in turn and, from one round to the next, the groups of each class in turn.

    Label and group int32[N] of ids int[N]; group -1 where bool[C,G] gives a class no group.
    """
    classes = len(groups_of_class)
    label = ids % classes
    turn = ids // classes
    # A stable sort puts the groups that a class has first, in their order.
    owned = np.argsort(~groups_of_class, axis=1, kind="stable")
    count = groups_of_class.sum(axis=1)[label]
    group = np.where(count > 0, owned[label, turn % np.maximum(count, 1)], UNKNOWN)
    return label.astype(np.int32), group.astype(np.int32)
