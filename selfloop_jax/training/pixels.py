"""uint8 pixels to what networks read, and back."""

import jax
import jax.numpy as jnp
import numpy as np

# Of the pixels of ImageNet in [0, 1], as torchvision's weights expect them to be standardised.
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


def to_unit_range(pixels: jax.Array) -> jax.Array:
    """uint8[...] -> float32[...] in [-1, 1]."""
    return pixels.astype(jnp.float32) / 127.5 - 1


def normalize(x: jax.Array, kind: str) -> jax.Array:
    """float32[N,H,W,3] in [-1, 1] -> the same (unit), or standardised (imagenet)."""
    if kind == "unit":
        return x
    # The statistics of [0, 1] carried over to [-1, 1].
    mean = (2 * MEAN - 1).reshape(1, 1, 1, 3)
    deviation = (2 * DEVIATION).reshape(1, 1, 1, 3)
    return (x - mean) / deviation
