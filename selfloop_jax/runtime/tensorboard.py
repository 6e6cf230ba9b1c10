"""Scalars and images for TensorBoard, by the optional package tensorboardX."""

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from selfloop_jax.errors import UsageError
from selfloop_jax.runtime import store


def check(enabled: bool) -> None:
    """Raises UsageError where `log.tensorboard` is on and the package is not installed."""
    if enabled and importlib.util.find_spec("tensorboardX") is None:
        raise UsageError(
            "log.tensorboard = True: must be False without the package tensorboardX; "
            "pip install 'selfloop_jax[tensorboard]' installs it"
        )


class TensorBoard:
    """Event files in `<workdir>/tensorboard`, written by process 0 only."""

    def __init__(self, workdir: Path):
        self._writer: Any = None
        if store.leading:
            # Imported here, since the package is optional.
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(workdir / "tensorboard"), flush_secs=10)

    def scalars(self, prefix: str, values: Mapping[str, float | None], step: int) -> None:
        """Finite numbers under `<prefix>/<name>` at a step."""
        if self._writer is None:
            return
        for name, value in values.items():
            if value is not None and math.isfinite(value):
                self._writer.add_scalar(f"{prefix}/{name}", float(value), step)

    def images(self, tag: str, pixels: np.ndarray, step: int) -> None:
        """uint8[N,H,W,3] as one grid at a step."""
        if self._writer is not None:
            self._writer.add_images(tag, pixels, step, dataformats="NHWC")
            self._writer.flush()

    def flush(self) -> None:
        """Hands everything to the operating system."""
        if self._writer is not None:
            self._writer.flush()
