"""Random changes to training images, new ones for every example and step.

Pure functions on the device. An example's changes are keyed by its place in the global batch, so
they do not depend on how a batch is split over devices. What is off is not traced.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from selfloop_jax.config import Config, FlipConfig, classifiers, refuse

# Luma and the two axes of colour of the YIQ colour space (NTSC), from RGB.
YIQ = np.array(
    [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]], np.float32
)


RGB = np.linalg.inv(YIQ)


def flip(x: jax.Array, key: jax.Array) -> jax.Array:
    """Left and right swapped with probability one half."""
    return jnp.where(jax.random.bernoulli(key), x[:, ::-1], x)


def crop(x: jax.Array, key: jax.Array, padding: int) -> jax.Array:
    """A window of the same size in the image, its edge repeated `padding` times all round."""
    padded = jnp.pad(x, ((padding, padding), (padding, padding), (0, 0)), mode="edge")
    row, column = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return jax.lax.dynamic_slice(padded, (row, column, 0), x.shape)


def brightness(x: jax.Array, key: jax.Array, amount: float) -> jax.Array:
    """Every value, counted from black, times a factor."""
    # Black is -1.
    return jnp.clip((x + 1) * _factor(key, amount) - 1, -1, 1)


def contrast(x: jax.Array, key: jax.Array, amount: float) -> jax.Array:
    """Every value's distance from the image's mean luma times a factor."""
    mean = jnp.mean(_mix(x, YIQ[:1]))
    return jnp.clip(mean + (x - mean) * _factor(key, amount), -1, 1)


def saturation(x: jax.Array, key: jax.Array, amount: float) -> jax.Array:
    """Every pixel's distance from its own luma times a factor."""
    luma = _mix(x, YIQ[:1])
    return jnp.clip(luma + (x - luma) * _factor(key, amount), -1, 1)


def hue(x: jax.Array, key: jax.Array, turns: float) -> jax.Array:
    """Colours turned about the gray axis, in the IQ plane of YIQ.

    Luma stays, unlike under a turn in HSV.
    """
    angle = 2 * jnp.pi * jax.random.uniform(key, minval=-turns, maxval=turns)
    y, i, q = jnp.split(_mix(x, YIQ), 3, axis=-1)
    cos = jnp.cos(angle)
    sin = jnp.sin(angle)
    turned = jnp.concatenate([y, cos * i - sin * q, sin * i + cos * q], axis=-1)
    return jnp.clip(_mix(turned, RGB), -1, 1)


Transform = Callable[[jax.Array, jax.Array, Any], jax.Array]  # image, key, value of the field


# By the field that switches it on. A transform's key is its place here, so new ones come last.
TRANSFORMS: dict[str, Transform] = {
    "flip": lambda x, key, _: flip(x, key),
    "crop": crop,
    "brightness": brightness,
    "contrast": contrast,
    "saturation": saturation,
    "hue": hue,
}


# Brightness, too: it cuts off what is too bright.
CHANGES_COLOUR = ("brightness", "contrast", "saturation", "hue")


def augment(
    pixels: jax.Array, key: jax.Array, position: jax.Array, section: FlipConfig
) -> jax.Array:
    """float32[B,H,W,3] in [-1, 1] -> the same, changed as section `augment` says.

    position: int32[B], places in the global batch. A transform that the section lacks is off. Each
    has its own key, so switching one on leaves the others as they were.
    """
    values = {name: getattr(section, name, 0) for name in TRANSFORMS}
    if not any(values.values()):
        # What is off costs nothing, not even the keys.
        return pixels

    def one(x: jax.Array, key: jax.Array) -> jax.Array:
        for number, (name, transform) in enumerate(TRANSFORMS.items()):
            if values[name]:
                x = transform(x, jax.random.fold_in(key, number), values[name])
        return x

    return jax.vmap(one)(pixels, jax.vmap(jax.random.fold_in, (None, 0))(key, position))


def check(config: Config) -> None:
    """Raises UsageError for an augmentation that cannot be, or changes an image's group."""
    side = config.data.image_size
    coloured = config.data.colorize != "none"
    for classifier in classifiers(config):
        path = f"{classifier}.augment"
        section = getattr(config, classifier).augment
        if section.crop >= side:
            # A shift by a whole side would leave nothing but the repeated edge.
            refuse(f"{path}.crop", section.crop, f"< {side} for images of {side} pixels")
        for name in CHANGES_COLOUR if coloured else ():
            # Painted colours are the groups: another colour would be another group.
            amount = getattr(section, name)
            if amount:
                refuse(f"{path}.{name}", amount, "0 where an image's colour is its group")


def _factor(key: jax.Array, amount: float) -> jax.Array:
    """Uniform in [1 - amount, 1 + amount]."""
    return jax.random.uniform(key, minval=1 - amount, maxval=1 + amount)


def _mix(x: jax.Array, matrix: np.ndarray) -> jax.Array:
    """[H,W,3] and [K,3] -> [H,W,K]: sums over channels.

    Spelled out, so that no matrix unit rounds them.
    """
    channels = (x[..., c : c + 1] * matrix[None, None, :, c] for c in range(3))
    mixed: Any = sum(channels)
    return mixed
