"""The initial bias: P(group | class) as a table, and the subset of a set of images that has it."""

from typing import Any

import numpy as np

from selfloop_jax.config import BiasConfig
from selfloop_jax.data import splits
from selfloop_jax.data.images import Images
from selfloop_jax.errors import UsageError
from selfloop_jax.runtime import rng


def group_table(section: BiasConfig, members: np.ndarray) -> np.ndarray:
    """float64[C,G] P(group | class) that section `data.bias` asks for, among the groups a class has.

    `members` bool[C,G] says which those are: all of them where groups are crossed with the classes.
    By `kind`: `unbiased` is uniform; `rho` gives a class its own group with probability rho and the
    others evenly; `per_class` takes one row for all classes or a row each, or with two groups one
    number, the probability of the second. Raises UsageError on rows that do not fit.
    """
    if section.kind == "per_class":
        return _given_table(section.per_class, members)
    table = np.zeros(members.shape)
    for c, row in enumerate(members):
        groups = np.flatnonzero(row)
        table[c, groups] = np.roll(_shares(section, len(groups)), _own(c, members, len(groups)))
    return table


def _own(c: int, members: np.ndarray, count: int) -> int:
    """Place of a class's own group among its groups: crossed, neighbouring classes may share one."""
    return c * count // len(members) if members.all() else 0


def _shares(section: BiasConfig, count: int) -> np.ndarray:
    """float64[count]: shares of a class's groups, its own first."""
    if section.kind == "unbiased" or count == 1:
        return np.full(count, 1 / count)
    return np.array([section.rho, *[(1 - section.rho) / (count - 1)] * (count - 1)])


def _given_table(per_class: Any, members: np.ndarray) -> np.ndarray:
    """The table of `data.bias.per_class`, each row laid on the groups of its class."""
    given = per_class if isinstance(per_class, (tuple, list)) else ()
    rows = given * len(members) if len(given) == 1 else given
    table = np.zeros(members.shape)
    fits = len(rows) == len(members)
    for c, row in enumerate(rows if fits else ()):
        groups = np.flatnonzero(members[c])
        share = _row(row, len(groups))
        fits = (
            fits
            and share.shape == groups.shape
            and (share >= 0).all()
            and abs(share.sum() - 1) <= 1e-6
        )
        table[c, groups] = share if fits else 0
    if not fits:
        widths = "/".join(map(str, np.unique(members.sum(axis=1))))
        raise UsageError(
            f"data.bias.per_class = {per_class}: allowed are {len(members)} rows, or one for all classes, of "
            f"{widths} probabilities that add up to 1 (with two groups: one per class, that of the second)"
        )
    return table


def _row(row: Any, count: int) -> np.ndarray:
    """float64[K]; a number stands for the second of two groups; nothing where it is no row of numbers."""
    try:
        share = np.array(row, np.float64)
    except (ValueError, TypeError):
        return np.zeros(0)
    return np.array([1 - share, share]) if not share.ndim and count == 2 else share


def aligned_groups(table: np.ndarray, margin: float = 1e-9) -> np.ndarray:
    """int32[C]: each class's most probable group, -1 where another comes within `margin` of it."""
    best = table.max(axis=1, keepdims=True)
    unique = (table > best - margin).sum(axis=1) == 1
    return np.where(unique, table.argmax(axis=1), -1).astype(np.int32)


def subsample(
    images: Images, table: np.ndarray | None, size: int, address: rng.KeyPath, names: Any
) -> Images:
    """The largest subset, or one of `size` images, that keeps the classes' shares and has the table's groups.

    table float64[C,G] P(group | class); None: the images' own joint distribution. Of each cell the
    images of the smallest keyed number stay, in their old order, so a smaller subset lies within a
    larger one. Images of unknown group are left out under a table. `names` = (classes, groups), for
    errors. UsageError where images lack.
    """
    cell, have = _cells(images, len(names[0]), len(names[1]))
    share, room = _room(have, table)
    largest = int(room.min() + 1e-9)
    if not largest:
        c, g = np.unravel_index(room.argmin(), room.shape)
        raise UsageError(
            f"data.bias: class {names[0][c]} has no training image of group {names[1][g - 1]}"
        )
    if size > largest:
        raise UsageError(
            f"data.train_size = {size}: allowed are up to {largest} images under this data.bias"
        )
    want = splits.largest_remainder(share * (size or largest))
    for c in np.flatnonzero((want.sum(axis=1) == 0) & (have.sum(axis=1) > 0)):
        raise UsageError(
            f"data.train_size = {size or largest}: too few to leave an image of class {names[0][c]}: "
            "allowed are larger ones, or another data.bias"
        )
    order = np.lexsort((rng.uniforms(address, images.id), cell))
    rank = np.arange(len(order)) - np.searchsorted(cell[order], cell[order])
    return images.take(np.sort(order[rank < want.ravel()[cell[order]]]))


def largest(images: Images, table: np.ndarray) -> int:
    """Images in the largest subset with P(group | class) = table, float64[C,G]; 0 where a cell is empty."""
    if not len(images):
        return 0
    return int(_room(_cells(images, *table.shape)[1], table)[1].min() + 1e-9)


def _cells(images: Images, classes: int, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Each image's cell, int[N], and images per cell, int[C,G+1], whose first column is unknown groups."""
    cell = images.label * (groups + 1) + images.group + 1
    return cell, np.bincount(cell, minlength=classes * (groups + 1)).reshape(classes, groups + 1)


def _room(have: np.ndarray, table: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """float64[C,G+1] share of each cell, and the size of a set at which the cell would be used up."""
    share = have / have.sum() if table is None else _joint_share(have[:, 1:], table)
    with np.errstate(divide="ignore", invalid="ignore"):
        return share, np.where(share > 0, have / share, np.inf)


def _joint_share(have: np.ndarray, table: np.ndarray) -> np.ndarray:
    """float64[C,G+1]: class shares of the images of known group, times the table; none of unknown group."""
    joint = have.sum(axis=1, keepdims=True) / have.sum() * table
    return np.concatenate([np.zeros((len(joint), 1)), joint], axis=1)
