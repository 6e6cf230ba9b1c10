"""Configs of the sizes that the benchmarks measure; a peer gets them as plain JSON.

quick: the quickstart's networks on 8x8 images; small: a U-Net of 1.1M parameters at 32 pixels,
batch 64; cifar: the 35.7M U-Net of Ho et al. 2020 and ResNet-18 (11.2M) at 32 pixels.
"""

import dataclasses
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from selfloop_jax import config as configs

NAMES = ("quick", "small", "cifar")


CLASSES = 10


IMAGES = 2048  # images of random pixels in the pool


def preset(name: str, precision: str = "float32", devices: int = 1) -> configs.Config:
    """Returns the config of a preset on so many CPU devices."""
    config = {"quick": _quickstart, "small": _small, "cifar": _cifar}[name]()
    config.parallel.precision = precision
    config.parallel.cpu_devices = devices
    # The solver that the peers have.
    config.sample.sampler = "ddim"
    config.sample.guidance = 1.0
    config.sample.steps = 10
    return configs.typed(config)


def for_peers(config: configs.Config) -> dict[str, Any]:
    """Returns layer lists, batch sizes and the other settings that a peer has to match."""
    side = config.data.image_size
    return {
        "side": side,
        "classes": CLASSES,
        "unet": dataclasses.asdict(config.diffusion.unet),
        "diffusion_batch": config.diffusion.batch,
        "resnet": {"stages": list(config.classifier.stages), "width": config.classifier.width},
        "classifier_batch": config.classifier.batch,
        "inference_batch": config.measure.batch,
        "sample_batch": config.sample.batch_per_device * config.parallel.cpu_devices,
        "sample_steps": config.sample.steps,
        "guidance": config.sample.guidance,
        "precision": config.parallel.precision,
        "images": IMAGES,
    }


def read(name: str) -> ConfigDict:
    """Returns the config of a file: `path/file.py`, or `path/file.py:argument`."""
    file, mark, argument = name.partition(".py:")
    module = load(Path(f"{file}.py" if mark else name))
    return module.get_config(argument) if argument else module.get_config()


def load(path: Path) -> ModuleType:
    """Imports a file of configs/."""
    configs.share_folder(path)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _quickstart() -> ConfigDict:
    config = load(Path(__file__).parent.parent / "configs" / "quickstart.py").get_config()
    config.measure.batch = 512
    config.sample.batch_per_device = 128
    return config


def _small() -> ConfigDict:
    config = configs.default()
    config.data.image_size = 32
    config.diffusion.process = "ddpm"
    config.diffusion.unet.channels = 32
    config.diffusion.unet.multipliers = (1, 2, 2)
    config.diffusion.batch = 64
    config.classifier.stages = (2, 2, 2, 2)
    config.classifier.width = 16
    config.classifier.batch = 64
    config.measure.batch = 256
    config.sample.batch_per_device = 32
    return config


def _cifar() -> ConfigDict:
    config = _small()
    config.diffusion.unet.channels = 128
    config.diffusion.unet.multipliers = (1, 2, 2, 2)
    config.diffusion.unet.blocks = 2
    config.diffusion.unet.attention = (16,)
    config.diffusion.unet.dropout = 0.1
    config.diffusion.unet.scale_shift = False
    config.diffusion.batch = 128
    config.classifier.width = 64
    config.classifier.batch = 128
    config.measure.batch = 1024
    config.sample.batch_per_device = 128
    return config
