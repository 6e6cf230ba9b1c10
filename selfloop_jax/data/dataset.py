"""A study's real images: four splits, the names of classes and groups, and the initial bias."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from selfloop_jax import rng
from selfloop_jax.data import colorize, digits
from selfloop_jax.data.images import Images


@dataclass(frozen=True)
class Dataset:
    """`validation` and `test` are group-balanced and never enter a pool; `reserve` is like `train`."""

    train: Images
    validation: Images
    reserve: Images
    test: Images
    classes: tuple[str, ...]
    groups: tuple[str, ...]
    aligned_group: np.ndarray  # int32[C], the group that the initial bias ties to a class, -1 none
    colours: colorize.Colours
    nested: bool = False  # whether each group lies within one class

    def describe(self, source: str) -> dict[str, Any]:
        """What a record says of it."""
        return {
            "source": source,
            "classes": list(self.classes),
            "groups": list(self.groups),
            "nested": self.nested,
            "aligned_group": self.aligned_group.tolist(),
        }


def load(section: Any, seed: int) -> Dataset:
    """Section `data`: coloured digits; splits are fixed, colours of train and reserve follow `seed`."""
    gray = digits.load(section.source, section.image_size)
    colours = colorize.MODES[section.colorize]
    table = colorize.group_table(section.bias, section.rho, section.per_class, 10, len(colours.groups))
    address: rng.Address = (seed, "data", "colour")
    return Dataset(
        train=colorize.colorize(gray["train"], table, colours, address),
        validation=colorize.every_colour(gray["validation"], colours),
        reserve=colorize.colorize(gray["reserve"], table, colours, address),
        test=colorize.every_colour(gray["test"], colours),
        classes=tuple(str(digit) for digit in range(10)),
        groups=colours.groups,
        aligned_group=colorize.aligned_groups(table),
        colours=colours,
    )
