"""Layers of several networks: convolution, pooling, embedding, normalisation, keyed dropout.

None of them has a scatter in its gradient. On a GPU a scatter adds by atomic operations, whose
order changes from run to run; where bits must repeat, XLA turns it into a loop over all updates.
"""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

ONE_PIXEL = ("SAME", [(1, 1), (1, 1)])  # of padding


def convolve(
    x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **options: Any
) -> jax.Array:
    """x [N,H,W,C], kernel [h,w,C,D] -> [N,H',W',D]: a convolution, as flax calls for it.

    On a map of at most 2x2 pixels every output of a 3x3 convolution of stride 1 sees every input:
    on a CPU it is one matrix product there, which is twenty times faster. On an NVIDIA H200 the
    product took six times as long (docs/performance.md).
    """
    n, h, w, c = x.shape
    plain = (
        (*kernel.shape[:2], *strides) == (3, 3, 1, 1)
        and padding in ONE_PIXEL
        and kernel.shape[2] == c
    )
    dilations = (*(options.get("lhs_dilation") or ()), *(options.get("rhs_dilation") or ()))
    dilated = any(factor != 1 for factor in dilations)
    if max(h, w) > 2 or not plain or dilated or jax.default_backend() != "cpu":
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)
    # Output pixel (i, j) reads input pixel (k, l) through element (k - i + 1, l - j + 1) of the
    # kernel: for one i, a slice of h rows. (The gradient of an index would be a scatter.)
    rows = [kernel[1 - i : 1 - i + h] for i in range(h)]  # h times [k, 3, C, D]
    squares = [[row[:, 1 - j : 1 - j + w] for j in range(w)] for row in rows]
    matrix = jnp.stack([jnp.stack(of_row) for of_row in squares])  # [i, j, k, l, C, D]
    matrix = matrix.transpose(2, 3, 4, 0, 1, 5).reshape(h * w * c, -1)
    # [N, k l C] times [k l C, i j D].
    product = jnp.matmul(x.reshape(n, -1), matrix, precision=options.get("precision"))
    return product.reshape(n, h, w, -1)


Conv = partial(nn.Conv, conv_general_dilated=convolve)


class Embed(nn.Embed):
    """flax.linen.Embed as a product with one-hot rows: the same bits, and no scatter."""

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """int32[N] -> [N,features]."""
        table = jnp.asarray(self.embedding, self.dtype)
        rows = jax.nn.one_hot(inputs, self.num_embeddings, dtype=table.dtype)
        # HIGHEST, because a GPU or TPU would round the rows of the table to fewer digits.
        return jnp.matmul(rows, table, precision=jax.lax.Precision.HIGHEST)


def max_pool(x: jax.Array, window: int, stride: int, padding: int = 0) -> jax.Array:
    """[N,H,W,C] -> [N,H',W',C]: flax.linen.max_pool with square windows, and its gradient.

    Of equal values the first in the window gets the whole gradient, as flax has it.
    """
    pad = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    x = jnp.pad(x, pad, constant_values=-jnp.inf)
    for axis in (2, 1):  # columns first: then the first row wins, and in it the first column
        last = x.shape[axis] - window
        shifted = [
            jax.lax.slice_in_dim(x, offset, last + offset + 1, stride, axis)
            for offset in range(window)
        ]
        x = functools.reduce(_first_maximum, shifted)
    return x


def _first_maximum(a: jax.Array, b: jax.Array) -> jax.Array:
    """The larger of two arrays by element, `a` where they are equal, and NaN where one is."""
    return jnp.where((b > a) | jnp.isnan(b), b, a)


EPSILON = 1e-6  # keeps a constant group finite


zeros = nn.initializers.zeros_init()


def at_least_float32(x: jax.Array) -> jnp.dtype:
    """The dtype that means and last layers are computed in."""
    narrow = jnp.finfo(x.dtype).bits < 32
    return jnp.dtype(jnp.float32) if narrow else x.dtype


class GroupNorm(nn.Module):
    """GroupNorm (Wu and He 2018) over at most 32 groups of at least 4 channels.

    Statistics in float32 or wider, result in the dtype of x. To rounding it is
    flax.linen.GroupNorm. On a CPU this takes half the time: sums run over whole rows of channels
    before groups are formed, and what is left is one multiply-add per value.
    """

    affine: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N,H,W,C] -> [N,H,W,C]."""
        n, h, w, c = x.shape
        groups = next(g for g in range(min(32, max(1, c // 4)), 0, -1) if c % g == 0)
        wide = x.astype(at_least_float32(x))

        def mean(values: jax.Array) -> jax.Array:  # [N,H,W,C] -> [N,groups]
            return values.sum(1).sum(1).reshape(n, groups, -1).sum(-1) * (groups / (h * w * c))

        center = mean(wide)
        # E[x^2] - E[x]^2 takes one pass; rounding can make it negative, hence the maximum.
        inverse = jax.lax.rsqrt(jnp.maximum(mean(wide * wide) - center * center, 0) + EPSILON)
        # (x - center) * inverse * scale + bias, as one multiply-add: x * slope + offset.
        slope, offset = (jnp.repeat(v, c // groups, axis=1) for v in (inverse, -center * inverse))
        if self.affine:
            scale = self.param("scale", nn.initializers.ones, (c,))[None]
            bias = self.param("bias", zeros, (c,))[None]
            slope = slope * scale
            offset = offset * scale + bias
        return (wide * slope[:, None, None] + offset[:, None, None]).astype(x.dtype)


def space_to_depth(x: jax.Array, factor: int) -> jax.Array:
    """[N,H,W,C] -> [N,H/f,W/f,f*f*C]."""
    n, h, w, c = x.shape
    x = x.reshape(n, h // factor, factor, w // factor, factor, c)
    # [N,H/f,f,W/f,f,C] -> [N,H/f,W/f,f,f,C]: each square becomes the channels of one pixel.
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, h // factor, w // factor, factor * factor * c)


def depth_to_space(x: jax.Array, factor: int) -> jax.Array:
    """Inverse of `space_to_depth`."""
    n, h, w, c = x.shape
    x = x.reshape(n, h, w, factor, factor, c // factor**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, h * factor, w * factor, c // factor**2)


def dropout(x: jax.Array, rate: float, keys: jax.Array | None) -> jax.Array:
    """Dropout with one key per example, so that the number of devices does not matter.

    Without keys, none.
    """
    if keys is None or not rate:
        return x
    # [N,H,W,C] or [N,D]; the values that stay are scaled up, so that the mean does not change.
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), 0)


class BatchNorm(nn.BatchNorm):
    """flax.linen.BatchNorm, which mixes bfloat16 and float32: strict promotion refuses that."""

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        """[...,C] -> [...,C]."""
        with jax.numpy_dtype_promotion("standard"):
            normalized: jax.Array = super().__call__(x)
        return normalized


def batch_norm(train: bool, axis_name: str | None, dtype: str | None) -> Callable[..., nn.Module]:
    """BatchNorm's constructor, with statistics in float32.

    In training they are those of all devices, otherwise the running ones.
    """
    return partial(
        BatchNorm,
        use_running_average=not train,
        momentum=0.9,
        axis_name=axis_name if train else None,
        # Two passes: E[x^2] - E[x]^2 in one loses digits where the mean is large.
        use_fast_variance=False,
        dtype=dtype,
    )
