"""Residual networks (He et al. 2016) of basic blocks or bottlenecks.

For small images, or as torchvision has them.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from selfloop_jax.models.layers import Conv, at_least_float32, batch_norm, max_pool


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut."""

    channels: int
    stride: int
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N,H,W,C] -> [N,H/stride,W/stride,channels]."""
        # No bias, which the mean of BatchNorm would take off again.
        conv = partial(Conv, self.channels, use_bias=False, padding=1, dtype=x.dtype)
        h = nn.relu(self.norm()(conv((3, 3), strides=self.stride)(x)))
        # Scale 0: at first the block is its shortcut (Goyal et al. 2017, section 5.1).
        h = self.norm(scale_init=nn.initializers.zeros_init())(conv((3, 3))(h))
        # The shortcut is called last, so its layers have the highest numbers: `torch_weights`
        # counts on it.
        return nn.relu(_shortcut(x, h, self.stride, self.norm) + h)


class Bottleneck(nn.Module):
    """Convolutions of 1x1, 3x3 and, four times as wide, 1x1.

    The 3x3 has the stride, as in torchvision.
    """

    channels: int
    stride: int
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N,H,W,C] -> [N,H/stride,W/stride,4*channels]."""
        conv = partial(Conv, use_bias=False, dtype=x.dtype)
        h = nn.relu(self.norm()(conv(self.channels, (1, 1))(x)))
        h = nn.relu(self.norm()(conv(self.channels, (3, 3), strides=self.stride, padding=1)(h)))
        # Scale 0, as in BasicBlock.
        h = self.norm(scale_init=nn.initializers.zeros_init())(conv(4 * self.channels, (1, 1))(h))
        return nn.relu(_shortcut(x, h, self.stride, self.norm) + h)


def _shortcut(x: jax.Array, h: jax.Array, stride: int, norm: Callable[..., nn.Module]) -> jax.Array:
    """x, through a 1x1 convolution where its shape is not that of h."""
    if stride == 1 and x.shape[-1] == h.shape[-1]:
        return x
    # Option B of He et al. 2016, section 4.1: a projection only where shapes differ.
    conv = Conv(h.shape[-1], (1, 1), strides=stride, use_bias=False, padding=0, dtype=x.dtype)
    return norm()(conv(x))


class ResNet(nn.Module):
    """`stages` lists blocks per stage.

    The channels double and the side halves from stage to stage. `layout`: small (section 4.2's
    stem, a 3x3 convolution) or imagenet (7x7 of stride 2, then max pooling). Any side will do. The
    last BatchNorm of a block starts at zero (Goyal et al. 2017, section 5.1).
    """

    num_classes: int
    stages: Sequence[int]
    width: int
    axis_name: str | None = None
    block: type[nn.Module] = BasicBlock
    layout: str = "small"
    dtype: str | None = None  # of activations; None: that of the input

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, features: bool = False) -> jax.Array:
        """x float[N,H,W,3] -> logits float[N,num_classes], or features float[N,D].

        Features are what the last layer reads. `train`: statistics are those of all devices.
        """
        norm = batch_norm(train, self.axis_name, self.dtype)
        conv = partial(Conv, self.width, use_bias=False, dtype=self.dtype)
        if self.layout == "small":
            h = nn.relu(norm()(conv((3, 3), padding=1)(x)))
        else:
            h = nn.relu(norm()(conv((7, 7), strides=2, padding=3)(x)))
            h = max_pool(h, 3, 2, 1)
        for stage, blocks in enumerate(self.stages):
            for block in range(blocks):
                # The first block of a stage halves the side, but for the first stage's.
                stride = 2 if stage and not block else 1
                h = self.block(self.width * 2**stage, stride, norm)(h)
        # [N,h,w,D] -> [N,D], summed in float32 whatever the activations are.
        h = jnp.mean(h, axis=(1, 2), dtype=at_least_float32(h))
        return h if features else nn.Dense(self.num_classes)(h)
