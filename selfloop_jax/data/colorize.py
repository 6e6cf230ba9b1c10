"""Colour as a protected attribute: chosen for an image, painted on it, and read back."""

from dataclasses import dataclass

import numpy as np

from selfloop_jax.data.images import REAL, UNKNOWN, Images
from selfloop_jax.runtime import rng

# The ten colours of Biased-MNIST (Bahng et al. 2020, ReBias).
REBIAS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (225, 225, 0),
    "magenta": (225, 0, 225),
    "cyan": (0, 255, 255),
    "orange": (255, 128, 0),
    "rose": (255, 0, 128),
    "violet": (128, 0, 255),
    "gray": (128, 128, 128),
}


# Chroma per unit of intensity (stroke) or mean chroma (background) below which an image is gray:
# half-way between the gray of the palette, 0, and its palest colour.
GRAY_STROKE = 0.6


GRAY_BACKGROUND = 27.0


@dataclass(frozen=True)
class Colours:
    """A palette on a place: groups is the order of the protected attribute's values."""

    groups: tuple[str, ...]
    place: str  # "stroke" or "background"

    @property
    def palette(self) -> np.ndarray:
        """float64[G,3], 0 to 255."""
        return np.array([REBIAS[name] for name in self.groups], np.float64)


MODES = {
    "foreground": Colours(tuple(REBIAS), "stroke"),
    "background": Colours(tuple(REBIAS), "background"),
    "two_colour": Colours(("red", "green"), "stroke"),
}


def paint(gray: np.ndarray, group: np.ndarray, colours: Colours) -> np.ndarray:
    """gray uint8[N,H,W], group int[N] -> uint8[N,H,W,3].

    On the stroke the colour is scaled by the gray level; on the background it replaces the pixels
    that are exactly 0, the stroke staying gray (ReBias).
    """
    level = np.arange(256)[:, None, None]
    if colours.place == "stroke":
        # [256,1,1] and [G,3] give [256,G,3]: the colour of every gray level in every group.
        table = np.rint(level / 255.0 * colours.palette)
    else:
        table = np.where(level == 0, colours.palette, level)
    return table.astype(np.uint8)[gray, group[:, None, None]]


def read_group(pixels: np.ndarray, colours: Colours) -> np.ndarray:
    """The colour oracle: uint8[N,H,W,3] -> int32[N], by the hue of the summed chroma.

    An image without colour is gray, or -1 where the palette has no gray.
    """
    # float64[N,3]: the mean colour, so that the stroke's shape does not count.
    mean = pixels.reshape(len(pixels), pixels.shape[1] * pixels.shape[2], 3).mean(
        axis=1, dtype=np.float64
    )
    # Without its gray part a colour keeps its hue at any brightness.
    chroma = mean - mean.mean(axis=1, keepdims=True)
    anchors = colours.palette - colours.palette.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(anchors, axis=1)
    # A gray anchor has no hue to be near to.
    cosine = np.where(norms > 0, chroma @ anchors.T / np.maximum(norms, 1e-9), -np.inf)
    nearest = cosine.argmax(axis=1)
    # The chroma of a stroke grows with its ink; that of a background does not.
    limit = GRAY_STROKE * mean.mean(axis=1) if colours.place == "stroke" else GRAY_BACKGROUND
    colourless = colours.groups.index("gray") if "gray" in colours.groups else UNKNOWN
    nearest = np.where(np.linalg.norm(chroma, axis=1) <= limit, colourless, nearest)
    return nearest.astype(np.int32)


def colorize(gray: Images, table: np.ndarray, colours: Colours, key_path: rng.KeyPath) -> Images:
    """Gives each image one colour, sampled from P(group | its label) by its id."""
    u = rng.uniforms(key_path, gray.id)
    # Inversion: the number of cumulative probabilities that u has passed.
    # The last sum is left out: it is 1 but for rounding, and u must not pass it.
    ends = np.cumsum(table[gray.label], axis=1)[:, :-1]
    group = (u[:, None] >= ends).sum(axis=1).astype(np.int32)
    return _coloured(gray, group, colours)


def every_colour(gray: Images, colours: Colours) -> Images:
    """Gives each image every colour in turn.

    So groups are exactly balanced, and comparisons can be paired by `source_id`.
    """
    groups = len(colours.groups)
    group = np.tile(np.arange(groups, dtype=np.int32), len(gray))
    return _coloured(gray.take(np.repeat(np.arange(len(gray)), groups)), group, colours)


def _coloured(gray: Images, group: np.ndarray, colours: Colours) -> Images:
    """Ids encode digit and colour, so that the same image always has the same id."""
    return Images(
        # Gray images have three equal channels; one is enough.
        pixels=paint(gray.pixels[..., 0], group, colours),
        label=gray.label,
        group=group,
        origin=np.full(len(gray), REAL, np.int32),
        id=gray.id * np.uint32(len(colours.groups)) + group.astype(np.uint32),
        source_id=gray.id,
    )
