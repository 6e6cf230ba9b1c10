"""LeNet-5 in its modern form (LeCun et al. 1998; ReLU and max pooling)."""

import jax
from flax import linen as nn

from selfloop_jax.models.layers import at_least_float32, max_pool


class LeNet(nn.Module):
    """Two 5x5 convolutions with pooling, then 120 and 84 units; any side of at least 8."""

    num_classes: int
    dtype: str | None = None  # of activations; None: that of the input

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, features: bool = False) -> jax.Array:
        """x float[N,H,W,3] -> logits float[N,num_classes], or features float[N,84].

        Features are what the last layer reads. `train`, which other networks need, changes nothing.
        """
        for channels in (6, 16):
            # SAME: without padding, an 8x8 image leaves 2x2 pixels to the second 5x5 kernel.
            x = nn.relu(nn.Conv(channels, (5, 5), padding="SAME", dtype=self.dtype)(x))
            x = max_pool(x, 2, 2)
        x = x.reshape(len(x), -1)
        for units in (120, 84):
            x = nn.relu(nn.Dense(units, dtype=self.dtype)(x))
        # Features and logits are float32 in a bfloat16 network, too.
        x = x.astype(at_least_float32(x))
        return x if features else nn.Dense(self.num_classes)(x)
