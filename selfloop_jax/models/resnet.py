"""ResNet with basic blocks for small images (He et al. 2016, section 4.2's stem; 2-2-2-2 is ResNet-18)."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut."""

    channels: int
    stride: int
    norm: type[nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N,H,W,C] -> [N,H/stride,W/stride,channels]."""
        conv = partial(nn.Conv, self.channels, use_bias=False, padding=1)
        h = nn.relu(self.norm()(conv((3, 3), strides=self.stride)(x)))
        h = self.norm(scale_init=nn.initializers.zeros_init())(conv((3, 3))(h))
        if self.stride != 1 or x.shape[-1] != self.channels:
            x = nn.Conv(self.channels, (1, 1), strides=self.stride, use_bias=False, padding=0)(x)
            x = self.norm()(x)
        return nn.relu(x + h)


class ResNet(nn.Module):
    """`stages` lists blocks per stage; the channels double and the side halves from stage to stage."""

    num_classes: int
    stages: Sequence[int]
    width: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """x float[N,H,W,3] -> logits float[N,num_classes]; `train`: statistics are those of all devices."""
        norm = partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            axis_name=self.axis_name if train else None,
            use_fast_variance=False,
        )
        h = nn.relu(norm()(nn.Conv(self.width, (3, 3), use_bias=False, padding=1)(x)))
        for stage, blocks in enumerate(self.stages):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                h = BasicBlock(self.width * 2**stage, stride, norm)(h)
        return nn.Dense(self.num_classes)(jnp.mean(h, axis=(1, 2)))
