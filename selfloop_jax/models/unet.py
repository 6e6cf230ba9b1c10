"""The U-Net of diffusion models (Ho et al. 2020, appendix B).

With the scale-shift norm of Dhariwal and Nichol 2021.
"""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from selfloop_jax.models.layers import (
    Conv,
    Embed,
    GroupNorm,
    depth_to_space,
    dropout,
    space_to_depth,
    zeros,
)
from selfloop_jax.runtime import environment

conv3x3 = partial(Conv, kernel_size=(3, 3), padding="SAME")


def sinusoid(noise_level: jax.Array, width: int) -> jax.Array:
    """float32[N] -> float32[N,width]: sines and cosines (Vaswani et al. 2017, section 3.5)."""
    number = jnp.arange(width // 2, dtype=jnp.float32)
    frequency = jnp.exp(-jnp.log(10_000.0) * number / (width // 2))
    angle = noise_level[:, None] * frequency[None, :]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class ResidualBlock(nn.Module):
    """Norm, SiLU, 3x3, embedding, norm, SiLU, 3x3, plus the input.

    The embedding scales and shifts what the second norm gives, or is added before it as in Ho et
    al. 2020.
    """

    channels: int
    dropout: float
    scale_shift: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array, keys: jax.Array | None) -> jax.Array:
        """x [N,H,W,C], embedding [N,E], keys [N] or None -> [N,H,W,channels]."""
        conv = partial(conv3x3, self.channels, dtype=x.dtype)
        dense = partial(nn.Dense, dtype=x.dtype)
        h = conv(use_bias=False)(nn.silu(GroupNorm()(x)))
        modulation = dense((1 + self.scale_shift) * self.channels)(nn.silu(embedding))
        # [N,M] -> [N,1,1,M]: the same for all pixels.
        modulation = modulation[:, None, None]
        if self.scale_shift:
            scale, shift = jnp.split(modulation, 2, axis=-1)
            # Adaptive group normalisation (arXiv 2105.05233, section 3.1), in place of the norm's
            # own scale and bias.
            h = GroupNorm(affine=False)(h) * (1 + scale) + shift
        else:
            h = GroupNorm()(h + modulation)
        # Kernel 0: at first the block is its shortcut.
        h = conv(kernel_init=zeros)(dropout(nn.silu(h), self.dropout, keys))
        return h + (x if x.shape[-1] == self.channels else dense(self.channels, name="skip")(x))


def attention_kernel(dtype: jnp.dtype, depth: int) -> Literal["cudnn", "xla"]:
    """Returns whose attention computes heads of `depth` channels: cuDNN's where it takes them.

    XLA's keeps the probabilities of all pairs of pixels for the gradient, cuDNN's does not. cuDNN's
    limits are those that `jax.nn.dot_product_attention` checks.
    """
    capability = environment.cuda_capability()
    if dtype != jnp.bfloat16 or depth % 8 or capability < (8, 0):
        return "xla"
    return "cudnn" if depth <= (256 if capability >= (9, 0) else 128) else "xla"


class Attention(nn.Module):
    """Self-attention over the pixels of a feature map, residual."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N,H,W,C] -> [N,H,W,C]."""
        n, h, w, c = x.shape
        dense = partial(nn.Dense, dtype=x.dtype)
        qkv = dense(3 * c)(GroupNorm()(x)).reshape(n, h * w, 3, self.heads, c // self.heads)
        kernel = attention_kernel(x.dtype, c // self.heads)
        # JAX's own attention mixes bfloat16 and float32, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            mixed = jax.nn.dot_product_attention(
                qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], implementation=kernel
            )
        return x + dense(c, kernel_init=zeros)(mixed.reshape(n, h, w, c))


class UNet(nn.Module):
    """Noise level, label and group conditioned U-Net; its output has the shape of its input.

    `label == num_classes` (and then `group == num_groups`) is the null condition of classifier-free
    guidance. `num_groups == 0` leaves the group out. `attention` names feature-map sides in pixels.
    `stem` folds stem x stem pixels into channels before the first layer. `scale_shift`: see
    ResidualBlock. `remat`: activations of residual blocks and of attention are computed again for
    the gradient. `dtype`: of activations, None: that of the input.
    """

    num_classes: int
    num_groups: int
    channels: int
    multipliers: Sequence[int]
    blocks: int
    attention: Sequence[int]
    heads: int
    dropout: float
    stem: int
    scale_shift: bool = True
    remat: bool = False
    dtype: str | None = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        noise_level: jax.Array,
        label: jax.Array,
        group: jax.Array,
        keys: jax.Array | None = None,
    ) -> jax.Array:
        """x float[N,H,W,3], noise_level float[N], label and group int32[N] -> float[N,H,W,3].

        `keys`, one per example, switch dropout on.
        """
        conv = partial(conv3x3, dtype=self.dtype)
        embedding = self.embed(noise_level, label, group)
        h = conv(self.channels, name="stem_conv")(space_to_depth(x, self.stem))
        skips = [h]
        blocks = itertools.count()
        attentions = itertools.count()
        # Layers that are computed again for the gradient, or not; named, as otherwise the names of
        # their parameters would say which.
        kinds = [ResidualBlock, Attention]
        residual, attention = map(nn.remat, kinds) if self.remat else kinds

        def attend(h: jax.Array) -> jax.Array:
            attended: jax.Array = attention(self.heads, name=f"Attention_{next(attentions)}")(h)
            return attended

        def block(h: jax.Array, multiplier: int) -> jax.Array:
            """A residual block, with attention where the map's side is named in `attention`."""
            number = next(blocks)
            layer_keys = None
            if keys is not None:
                # Every layer has its own mask, and every example its own.
                layer_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, number + 1)
            build = partial(residual, multiplier * self.channels, self.dropout, self.scale_shift)
            h = build(name=f"ResidualBlock_{number}")(h, embedding, layer_keys)
            return attend(h) if h.shape[1] in self.attention else h

        # Down: every map before a change of side is kept for the way up.
        for level, multiplier in enumerate(self.multipliers):
            for _ in range(self.blocks):
                h = block(h, multiplier)
                skips.append(h)
            if level + 1 < len(self.multipliers):
                h = conv(h.shape[-1], strides=2)(h)
                skips.append(h)
        # Middle.
        h = block(h, self.multipliers[-1])
        h = attend(h) if self.attention else h
        h = block(h, self.multipliers[-1])
        # Up: one block more per level, which takes what the level was entered with.
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for _ in range(self.blocks + 1):
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), multiplier)
            if level:
                # Nearest neighbours by `repeat`, whose gradient is a plain sum and no scatter.
                h = conv(h.shape[-1])(h.repeat(2, axis=1).repeat(2, axis=2))
        h = nn.silu(GroupNorm()(h))
        # Kernel 0: the first prediction is 0 everywhere, whatever the noise level.
        out = conv(self.stem**2 * x.shape[-1], kernel_init=zeros, name="out")(h)
        return depth_to_space(out, self.stem).astype(x.dtype)

    def embed(self, noise_level: jax.Array, label: jax.Array, group: jax.Array) -> jax.Array:
        """Embedding of noise level and condition, float[N, 4 * channels]."""
        width = 4 * self.channels
        dense = partial(nn.Dense, width, dtype=self.dtype)
        embed = partial(Embed, features=width, dtype=self.dtype)
        h = dense()(nn.silu(dense()(sinusoid(noise_level, 2 * (self.channels // 2)))))
        # One row more than classes: the null condition of guidance (arXiv 2207.12598).
        h += embed(self.num_classes + 1, name="label")(label)
        if self.num_groups:
            h += embed(self.num_groups + 1, name="group")(group)
        return h
