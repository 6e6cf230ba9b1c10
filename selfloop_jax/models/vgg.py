"""VGG (Simonyan and Zisserman 2015, table 1) with BatchNorm after every convolution.

As torchvision has it.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from selfloop_jax.models.layers import Conv, at_least_float32, batch_norm, dropout, max_pool


def adaptive_average_pool(x: jax.Array, side: int) -> jax.Array:
    """[N,H,W,C] -> [N,side,side,C]: means over equal windows.

    Window i goes from floor(i H / side) to ceil((i + 1) H / side), as in PyTorch.
    """

    def windows(length: int) -> np.ndarray:  # [side, length] weights
        # Windows can overlap, and repeat pixels where the map is smaller than `side`.
        start = np.arange(side) * length // side
        # -(-a // b) rounds up.
        stop = -(-np.arange(1, side + 1) * length // side)
        place = np.arange(length)
        inside = (start[:, None] <= place) & (place < stop[:, None])
        return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)

    rows = windows(x.shape[1])
    columns = windows(x.shape[2])
    # HIGHEST, because a GPU or TPU would round the factors of a plain product to fewer digits.
    return jnp.einsum("ih,jw,nhwc->nijc", rows, columns, x, precision=jax.lax.Precision.HIGHEST)


class VGG(nn.Module):
    """`stages` lists convolutions per stage.

    From stage to stage the channels double, up to 8 * width, and the side halves. `layout`: small
    (mean over the last map, then one linear layer) or imagenet (adaptive pooling to 7x7, two hidden
    layers of 64 * width with dropout of one half). A map of one pixel is not pooled any further, so
    any side will do.
    """

    num_classes: int
    stages: Sequence[int]
    width: int
    axis_name: str | None = None
    layout: str = "small"
    dtype: str | None = None  # of activations; None: that of the input

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        train: bool = False,
        keys: jax.Array | None = None,
        features: bool = False,
    ) -> jax.Array:
        """x float[N,H,W,3] -> logits float[N,num_classes], or features float[N,D].

        Features are what the last layer reads. `keys`, one per example, switch dropout on.
        """
        norm = batch_norm(train, self.axis_name, self.dtype)
        for stage, convolutions in enumerate(self.stages):
            for _ in range(convolutions):
                channels = self.width * min(2**stage, 8)
                # No bias, which the mean of BatchNorm would take off again.
                conv = Conv(channels, (3, 3), use_bias=False, padding=1, dtype=self.dtype)
                x = nn.relu(norm()(conv(x)))
            if x.shape[1] > 1:
                x = max_pool(x, 2, 2)
        if self.layout == "small":
            x = jnp.mean(x, axis=(1, 2), dtype=at_least_float32(x))
            return x if features else nn.Dense(self.num_classes)(x)
        x = adaptive_average_pool(x.astype(at_least_float32(x)), 7).reshape(len(x), -1)
        for layer in range(2):
            # A key per example and layer; the two dropout masks must differ.
            layer_keys = (
                None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, layer)
            )
            x = dropout(nn.relu(nn.Dense(64 * self.width, dtype=self.dtype)(x)), 0.5, layer_keys)
        x = x.astype(at_least_float32(x))
        return x if features else nn.Dense(self.num_classes)(x)
