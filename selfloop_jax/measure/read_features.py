"""Sets of features that another program has extracted, from .npz files."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from selfloop_jax.errors import RunError, UsageError
from selfloop_jax.runtime import store

NAME = "features"  # of the array


def read_features(paths: Sequence[Path]) -> list[np.ndarray] | None:
    """float32[N,D] of each file; None where none of them holds features in place of images.

    UsageError where some hold features and others images, where their lengths D differ, or where
    an array is no table of finite numbers.
    """
    holding = [_holds_features(path) for path in paths]
    if not any(holding):
        return None
    if not all(holding):
        some = paths[holding.index(True)]
        other = paths[holding.index(False)]
        raise UsageError(f"{other}: must be an .npz file with features, as {some} is")
    found = [_read(path) for path in paths]
    first = found[0].shape[1]
    for path, features in zip(paths, found, strict=True):
        if features.shape[1] != first:
            raise UsageError(
                f"{path}: features: {features.shape[1]} numbers an image; must be {first}, as in "
                f"{paths[0]}"
            )
    return found


def _holds_features(path: Path) -> bool:
    """Whether a file is an .npz with features and without pixels, by its list of members."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # zipfile raises some kinds on damaged bytes
        return False  # whoever reads images from it says what is wrong
    return f"{NAME}.npy" in names and "pixels.npy" not in names


def _read(path: Path) -> np.ndarray:
    try:
        features = store.read_npz(path)[NAME]
    except RunError as error:
        raise UsageError(str(error)) from error
    if features.ndim != 2 or features.dtype.kind != "f" or not features.size:
        raise UsageError(
            f"{path}: features: {features.dtype}{list(features.shape)}; must be float[N,D]"
        )
    if not np.isfinite(features).all():
        raise UsageError(f"{path}: features: NaN or infinity in it; must be finite")
    return features.astype(np.float32)
