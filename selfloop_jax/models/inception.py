"""The Inception network of the FID: 2,048 features before the last layer, for inference.

Szegedy et al. 2016 (arXiv 1512.00567), as TensorFlow's graph of 2015-12-05 has it, in which the FID
was defined (Heusel et al. 2017). mseitzer/pytorch-fid and toshas/torch-fidelity carry its weights
over to PyTorch, under the names of torchvision's Inception v3. That network differs: here average
pooling does not count the padding, the last block has max pooling, and there are 1,008 classes.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from selfloop_jax.models.layers import BatchNorm

SIDE = 299  # of the images that the weights were trained on
CLASSES = 1008

Kernel = tuple[int, int]

_avg_pool = partial(nn.avg_pool, window_shape=(3, 3), padding="SAME", count_include_pad=False)
_max_pool = partial(nn.max_pool, window_shape=(3, 3))


class BasicConv(nn.Module):
    """Convolution, BatchNorm with fixed statistics, ReLU."""

    channels: int
    kernel: Kernel = (1, 1)
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float[N,H,W,C] -> float[N,H',W',channels]."""
        h = nn.Conv(
            self.channels,
            self.kernel,
            self.stride,
            self.padding,
            use_bias=False,
            # Features are compared across machines: a GPU's shorter formats would change their
            # fourth digit.
            precision=jax.lax.Precision.HIGHEST,
            name="conv",
        )(x)
        return nn.relu(BatchNorm(use_running_average=True, epsilon=1e-3, name="bn")(h))


def _chain(name: str, x: jax.Array, *layers: tuple) -> jax.Array:
    """Convolutions `name_1`, `name_2`, ... one after the other; layers: arguments of BasicConv."""
    for number, layer in enumerate(layers, start=1):
        x = BasicConv(*layer, name=f"{name}_{number}")(x)
    return x


# Halving convolutions and pools of the published network have no padding.
_HALVES = (2, "VALID")


class BlockA(nn.Module):
    """Branches of 1x1, 5x5 and two 3x3 convolutions, and one of pooling; the side stays."""

    pooled: int  # channels of the branch of pooling
    divisor: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float[N,H,W,C] -> float[N,H,W,(224 + pooled) / divisor], `pooled` before division."""
        d = self.divisor
        return jnp.concatenate(
            [
                BasicConv(64 // d, name="branch1x1")(x),
                _chain("branch5x5", x, (48 // d,), (64 // d, (5, 5))),
                _chain("branch3x3dbl", x, (64 // d,), (96 // d, (3, 3)), (96 // d, (3, 3))),
                BasicConv(self.pooled // d, name="branch_pool")(_avg_pool(x)),
            ],
            axis=-1,
        )


class BlockB(nn.Module):
    """Branches of 3x3 convolutions and of max pooling that halve the side."""

    divisor: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float[N,H,W,C] -> float[N,(H-1)/2,(W-1)/2,C + 480 / divisor]."""
        d = self.divisor
        wide = (96 // d, (3, 3))
        return jnp.concatenate(
            [
                BasicConv(384 // d, (3, 3), *_HALVES, name="branch3x3")(x),
                _chain("branch3x3dbl", x, (64 // d,), wide, (*wide, *_HALVES)),
                _max_pool(x, strides=(2, 2)),
            ],
            axis=-1,
        )


class BlockC(nn.Module):
    """Branches of 7x7 convolutions, each taken apart into 1x7 and 7x1; the side stays."""

    inner: int
    divisor: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float[N,H,W,C] -> float[N,H,W,768 / divisor]."""
        inner = self.inner // self.divisor
        outer = 192 // self.divisor
        flat = (inner, (1, 7))
        tall = (inner, (7, 1))
        return jnp.concatenate(
            [
                BasicConv(outer, name="branch1x1")(x),
                _chain("branch7x7", x, (inner,), flat, (outer, (7, 1))),
                _chain("branch7x7dbl", x, (inner,), tall, flat, tall, (outer, (1, 7))),
                BasicConv(outer, name="branch_pool")(_avg_pool(x)),
            ],
            axis=-1,
        )


class BlockD(nn.Module):
    """Branches of 3x3, of 7x7 and 3x3, and of max pooling that halve the side."""

    divisor: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float[N,H,W,C] -> float[N,(H-1)/2,(W-1)/2,C + 512 / divisor]."""
        d = self.divisor
        n = 192 // d
        return jnp.concatenate(
            [
                _chain("branch3x3", x, (n,), (320 // d, (3, 3), *_HALVES)),
                _chain("branch7x7x3", x, (n,), (n, (1, 7)), (n, (7, 1)), (n, (3, 3), *_HALVES)),
                _max_pool(x, strides=(2, 2)),
            ],
            axis=-1,
        )


class BlockE(nn.Module):
    """Branches that end in a 1x3 and a 3x1 convolution side by side; the side stays."""

    max_pools: bool  # in the last block only, an oddity of the published graph
    divisor: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float[N,H,W,C] -> float[N,H,W,2048 / divisor]."""
        d = self.divisor
        pooled = _max_pool(x, padding="SAME") if self.max_pools else _avg_pool(x)

        def split(name: str, h: jax.Array) -> list[jax.Array]:
            return [
                BasicConv(384 // d, (1, 3), name=f"{name}a")(h),
                BasicConv(384 // d, (3, 1), name=f"{name}b")(h),
            ]

        single = _chain("branch3x3", x, (384 // d,))
        double = _chain("branch3x3dbl", x, (448 // d,), (384 // d, (3, 3)))
        return jnp.concatenate(
            [
                BasicConv(320 // d, name="branch1x1")(x),
                *split("branch3x3_2", single),
                *split("branch3x3dbl_3", double),
                BasicConv(192 // d, name="branch_pool")(pooled),
            ],
            axis=-1,
        )


class Inception(nn.Module):
    """The network; names are those of its files. `divisor` narrows all layers, for tests."""

    divisor: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, features: bool = False) -> jax.Array:
        """x float[N,H,W,3] in [-1, 1], sides at least 75 -> logits float[N,1008], or features.

        Features float[N,2048 / divisor] are means over the last map: `pool_3` of the graph.
        """
        d = self.divisor
        h = BasicConv(32 // d, (3, 3), *_HALVES, name="Conv2d_1a_3x3")(x)
        h = BasicConv(32 // d, (3, 3), padding="VALID", name="Conv2d_2a_3x3")(h)
        h = BasicConv(64 // d, (3, 3), name="Conv2d_2b_3x3")(h)
        h = _max_pool(h, strides=(2, 2))
        h = BasicConv(80 // d, name="Conv2d_3b_1x1")(h)
        h = BasicConv(192 // d, (3, 3), padding="VALID", name="Conv2d_4a_3x3")(h)
        h = _max_pool(h, strides=(2, 2))
        for block in self._blocks():
            h = block(h)
        h = jnp.mean(h, axis=(1, 2))
        if features:
            return h
        return nn.Dense(CLASSES, precision=jax.lax.Precision.HIGHEST, name="fc")(h)

    def _blocks(self) -> Sequence[nn.Module]:
        """Table 1 of the paper from the first pooling on."""
        d = self.divisor
        return (
            BlockA(32, d, name="Mixed_5b"),
            BlockA(64, d, name="Mixed_5c"),
            BlockA(64, d, name="Mixed_5d"),
            BlockB(d, name="Mixed_6a"),
            BlockC(128, d, name="Mixed_6b"),
            BlockC(160, d, name="Mixed_6c"),
            BlockC(160, d, name="Mixed_6d"),
            BlockC(192, d, name="Mixed_6e"),
            BlockD(d, name="Mixed_7a"),
            BlockE(False, d, name="Mixed_7b"),
            BlockE(True, d, name="Mixed_7c"),
        )


def torch_name(layers: Sequence[str]) -> str:
    """The name of a layer in a file of weights: (`Mixed_5b`, `branch1x1`, `conv`), with dots."""
    return ".".join(layers)
