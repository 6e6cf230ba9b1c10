"""The initial bias: P(group | class) as a table, and the subset of images that has it."""

import numpy as np

from selfloop_jax.config import BiasConfig
from selfloop_jax.data import splits
from selfloop_jax.data.images import UNKNOWN, Images
from selfloop_jax.errors import UsageError
from selfloop_jax.runtime import rng

Names = tuple[tuple[str, ...], tuple[str, ...]]  # of classes and groups, for errors


def group_table(section: BiasConfig, groups_of_class: np.ndarray) -> np.ndarray:
    """float64[C,G] P(group | class) that section `data.bias` asks for.

    groups_of_class bool[C,G]: all groups, where they are crossed with the classes. By `kind`:
    `unbiased` is uniform; `rho` gives a class its own group with probability rho and the others
    evenly; `per_class` takes one row for all classes or a row each, or with two groups one number,
    the probability of the second. Raises UsageError on rows that do not fit.
    """
    if section.kind == "per_class":
        return _given_table(section, groups_of_class)
    table = np.zeros(groups_of_class.shape)
    for c, row in enumerate(groups_of_class):
        groups = np.flatnonzero(row)
        # Crossed, classes share the groups out among them; nested, the first of a class is its own.
        own = c * len(groups) // len(groups_of_class) if groups_of_class.all() else 0
        # The first share is that of the class's own group; the roll puts it there.
        table[c, groups] = np.roll(_shares(section, len(groups)), own)
    return table


def _shares(section: BiasConfig, count: int) -> np.ndarray:
    """float64[count]: shares of a class's groups, its own first."""
    if section.kind == "unbiased" or count == 1:
        return np.full(count, 1 / count)
    return np.array([section.rho, *[(1 - section.rho) / (count - 1)] * (count - 1)])


def _given_table(section: BiasConfig, groups_of_class: np.ndarray) -> np.ndarray:
    """The table of `data.bias.per_class`, each row laid on the groups of its class."""
    classes = len(groups_of_class)
    rows = section.per_class * classes if len(section.per_class) == 1 else section.per_class
    table = np.zeros(groups_of_class.shape)
    fits = len(rows) == classes
    for c, row in enumerate(rows if fits else ()):
        groups = np.flatnonzero(groups_of_class[c])
        share = np.array(row, np.float64)
        # Of two groups a number is P(second), as in arXiv 2403.07857.
        if not share.ndim and len(groups) == 2:
            share = np.array([1 - share, share])
        shares = share.shape == groups.shape and (share >= 0).all()
        # Probabilities in decimal notation need not add up to exactly 1.
        fits = bool(shares and abs(share.sum() - 1) <= 1e-6)
        if not fits:
            break
        table[c, groups] = share
    if not fits:
        widths = "/".join(map(str, np.unique(groups_of_class.sum(axis=1))))
        raise UsageError(
            f"data.bias.per_class = {section.per_class}: must be {classes} rows, or one for all "
            f"classes, of {widths} probabilities that add up to 1 (with two groups: one number per "
            "class, the probability of the second group)"
        )
    return table


def aligned_groups(table: np.ndarray, margin: float = 1e-9) -> np.ndarray:
    """int32[C]: each class's most probable group, -1 where another is within `margin` of it."""
    best = table.max(axis=1, keepdims=True)
    # A tie, as in an unbiased table, ties no group to the class.
    unique = (table > best - margin).sum(axis=1) == 1
    return np.where(unique, table.argmax(axis=1), UNKNOWN).astype(np.int32)


def subsample(
    images: Images, table: np.ndarray | None, size: int, split_seed: int, names: Names
) -> Images:
    """The largest subset, or one of `size`, with the classes' shares and the table's groups.

    table float64[C,G] P(group | class); None: the subgroups' own shares. Seeds that follow one
    another get disjoint images of a subgroup until it is used up; then another order of it begins.
    The images stay in their old order, and with seed 0 a smaller subset is part of a larger one.
    Images of unknown group are left out under a table. UsageError where images are lacking.
    """
    subgroup, have = _subgroups(images, len(names[0]), len(names[1]))
    share, most = _shares_and_limits(have, table)
    # The scarcest subgroup limits the set; 1e-9 makes up for the rounding of have / share.
    largest = int(most.min() + 1e-9)
    if not largest:
        c, g = np.unravel_index(most.argmin(), most.shape)
        raise UsageError(
            f"data.bias: class {names[0][c]} has no training image of group {names[1][g - 1]}"
        )
    if size > largest:
        raise UsageError(
            f"data.train_size = {size}: must be at most {largest} under this data.bias"
        )
    wanted = splits.largest_remainder(share * (size or largest))
    # In a small set a class can be rounded away, and nothing could then be said about it.
    for c in np.flatnonzero((wanted.sum(axis=1) == 0) & (have.sum(axis=1) > 0)):
        raise UsageError(
            f"data.train_size = {size or largest}: too small to leave an image of class "
            f"{names[0][c]}; must be larger, unless data.bias changes"
        )
    # Seed s has window s of a keyed order of each subgroup.
    wanted = wanted.ravel()
    windows = np.maximum(have.ravel() // np.maximum(wanted, 1), 1)
    orders, window = np.divmod(split_seed, windows)
    keyed = np.empty(len(images))
    for number in np.unique(orders[subgroup]):
        rows = orders[subgroup] == number
        keyed[rows] = rng.uniforms((int(number), "data", "subsample"), images.id[rows])
    # An image's rank within its subgroup, by its keyed number.
    order = np.lexsort((keyed, subgroup))
    of_image = subgroup[order]
    # searchsorted gives the place in `order` where an image's subgroup begins.
    rank = np.arange(len(order)) - np.searchsorted(of_image, of_image)
    place = rank - (window * wanted)[of_image]
    return images.take(np.sort(order[(place >= 0) & (place < wanted[of_image])]))


def largest(images: Images, table: np.ndarray) -> int:
    """Images in the largest subset with P(group | class) = table, float64[C,G].

    0 where a subgroup is empty.
    """
    if not len(images):
        return 0
    _, have = _subgroups(images, *table.shape)
    _, most = _shares_and_limits(have, table)
    return int(most.min() + 1e-9)


def _subgroups(images: Images, classes: int, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Each image's subgroup, int[N], and images per subgroup, int[C,G+1].

    The first column is that of unknown groups.
    """
    # Unknown groups are -1 and get column 0.
    subgroup = images.label * (groups + 1) + images.group + 1
    counts = np.bincount(subgroup, minlength=classes * (groups + 1))
    return subgroup, counts.reshape(classes, groups + 1)


def _shares_and_limits(have: np.ndarray, table: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """float64[C,G+1] share of each subgroup, and the size of a set that would use it up."""
    if table is None:
        share = have / have.sum()
    else:
        # Class shares are those of the images of known group.
        known = have[:, 1:]
        of_class = known.sum(axis=1, keepdims=True) / known.sum()
        share = np.concatenate([np.zeros((len(have), 1)), of_class * table], axis=1)
    # A subgroup without a share sets no limit, whatever the quotient.
    with np.errstate(divide="ignore", invalid="ignore"):
        return share, np.where(share > 0, have / share, np.inf)
