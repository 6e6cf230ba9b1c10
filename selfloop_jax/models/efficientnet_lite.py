"""EfficientNet-Lite for inference: an ImageNet classifier that is small enough for a laptop.

Tan and Le 2019 (arXiv 1905.11946) without squeeze and excitation, and with ReLU6 for Swish:
`efficientnet/lite` of tensorflow/tpu, which ml-illustrated/EfficientNet-Lite-PyTorch carried over
to PyTorch.
"""

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from selfloop_jax.models.layers import BatchNorm

# Means and deviations of pixels 0 to 255 in the training of the published weights, by
# efficientnet_lite_builder.py of tensorflow/tpu. The README of the PyTorch port still names the
# values of EfficientNet-B0.
PIXEL_MEAN = 127.0
PIXEL_DEVIATION = 128.0
SIDE = 224  # of the images that Lite0 was trained on

EPSILON = 1e-3  # of BatchNorm, as TensorFlow has it


class Stage(NamedTuple):
    """Blocks of one kind: the first has the stride; sides are those of depthwise kernels."""

    blocks: int
    side: int
    stride: int
    expansion: int
    channels: int


# Table 1 of the paper, which Lite0 shares with EfficientNet-B0.
LITE0 = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


def depthwise(x: jax.Array, kernel: jax.Array, strides: Any, padding: str, **_: Any) -> jax.Array:
    """x [N,H,W,C], kernel [h,w,1,C] -> [N,H/s,W/s,C]: a convolution of each channel by its kernel.

    As flax calls for it, with padding SAME. One product per element of the kernel: the same as a
    grouped convolution takes XLA's CPU backend many times longer.
    """
    assert padding == "SAME"
    pads = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    padded = jnp.pad(x, [(0, 0), *pads, (0, 0)])
    down, right = strides
    # From the first row and column that an element of the kernel sees to the last.
    rows = down * (math.ceil(x.shape[1] / down) - 1) + 1
    columns = right * (math.ceil(x.shape[2] / right) - 1) + 1
    total = jnp.zeros_like(padded[:, :rows:down, :columns:right])
    for i, j in itertools.product(range(kernel.shape[0]), range(kernel.shape[1])):
        seen = padded[:, i : i + rows : down, j : j + columns : right]
        total = total + seen * kernel[i, j].reshape(1, 1, 1, -1)
    return total


# Features are compared across machines: a GPU's shorter formats would change their fourth digit.
_conv = partial(nn.Conv, use_bias=False, padding="SAME", precision=jax.lax.Precision.HIGHEST)
_norm = partial(BatchNorm, use_running_average=True, epsilon=EPSILON)


class Block(nn.Module):
    """An inverted bottleneck (Sandler et al. 2018): expansion, depthwise convolution, projection.

    Names are those of the PyTorch port, without their leading underscores.
    """

    stage: Stage
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float[N,H,W,C] -> float[N,H/stride,W/stride,channels]."""
        stage = self.stage
        wide = x.shape[-1] * stage.expansion
        h = x
        if stage.expansion != 1:
            h = _conv(wide, (1, 1), name="expand_conv")(h)
            h = nn.relu6(_norm(name="bn0")(h))
        kernel = (stage.side, stage.side)
        # One kernel a channel. TensorFlow's SAME pads an even side below and to the right.
        depth = partial(_conv, feature_group_count=wide, conv_general_dilated=depthwise)
        h = depth(wide, kernel, self.stride, name="depthwise_conv")(h)
        h = nn.relu6(_norm(name="bn1")(h))
        # No activation after the projection: it would lose what a narrow map holds.
        h = _norm(name="bn2")(_conv(stage.channels, (1, 1), name="project_conv")(h))
        return x + h if x.shape == h.shape else h


class EfficientNetLite(nn.Module):
    """The network, whose statistics of BatchNorm are fixed; `stem` and `head` are channels."""

    num_classes: int = 1000
    stages: Sequence[Stage] = LITE0
    stem: int = 32
    head: int = 1280

    @nn.compact
    def __call__(self, x: jax.Array, features: bool = False) -> jax.Array:
        """x float[N,H,W,3] -> logits float[N,num_classes], or features float[N,head].

        x has mean PIXEL_MEAN taken off and is divided by PIXEL_DEVIATION. Features are the means
        over the last map, which the last layer reads.
        """
        h = nn.relu6(_norm(name="bn0")(_conv(self.stem, (3, 3), 2, name="conv_stem")(x)))
        number = 0
        for stage in self.stages:
            for block in range(stage.blocks):
                stride = 1 if block else stage.stride
                h = Block(stage, stride, name=f"blocks_{number}")(h)
                number += 1
        h = nn.relu6(_norm(name="bn1")(_conv(self.head, (1, 1), name="conv_head")(h)))
        h = jnp.mean(h, axis=(1, 2))
        if features:
            return h
        return nn.Dense(self.num_classes, precision=jax.lax.Precision.HIGHEST, name="fc")(h)


def torch_name(layers: Sequence[str]) -> str:
    """The PyTorch port's name of a layer: (`blocks_3`, `bn0`) -> `_blocks.3._bn0`."""
    # Of the names here only those of blocks hold a number behind an underscore.
    names = [layer.replace("blocks_", "blocks.") for layer in layers]
    return ".".join(f"_{name}" for name in names)
