"""Area resizing of small gray images, and the image sizes a source offers."""

import numpy as np

from selfloop_jax.config import DataConfig
from selfloop_jax.errors import UsageError


def check_side(section: DataConfig, sides: tuple[int, ...]) -> None:
    """Raises UsageError unless `data.image_size` is one of `sides`."""
    if section.image_size not in sides:
        known = " | ".join(map(str, sides))
        raise UsageError(
            f"data.image_size = {section.image_size}: must be one of {known} "
            f"for data.source = {section.source}"
        )


def area_resize(gray: np.ndarray, side: int) -> np.ndarray:
    """uint8[N,H,H] -> uint8[N,side,side] by the mean over equal squares; side divides H."""
    n, height, _ = gray.shape
    factor = height // side
    # [N,side,factor,side,factor]; the mean runs over both axes of a square.
    blocks = gray.reshape(n, side, factor, side, factor).mean(axis=(2, 4))
    return np.rint(blocks).astype(np.uint8)
