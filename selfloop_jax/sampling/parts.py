"""Finished chunks of a sampling phase on disk, so that a resume loses one chunk at most."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from selfloop_jax.runtime import multihost, store


class Parts:
    """Chunks of generated images, each in a file that names its first and last id.

    A chunk is a range of ids. A resume on other devices has chunks of another size, and must not
    take a file of the old size for one of its own.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def finished(self, chunks: Sequence[range]) -> np.ndarray:
        """bool per chunk: whether its file exists; process 0 decides for all processes."""
        # Processes that skip different chunks would wait for each other without end.
        return multihost.broadcast(np.array([self._path(ids).exists() for ids in chunks]))

    def save(self, ids: range, pixels: np.ndarray) -> None:
        """Writes the chunk of these ids; pixels uint8[N,H,W,3]."""
        columns = {"id": np.array(ids, dtype=np.uint32), "pixels": pixels}
        store.write_npz(self._path(ids), columns)

    def join(self, chunks: Sequence[range]) -> np.ndarray:
        """uint8[N,H,W,3]: the pixels of all chunks, in their order."""
        return np.concatenate([store.read_npz(self._path(ids))["pixels"] for ids in chunks])

    def remove(self) -> None:
        """Deletes the folder once every process has read it; samples.npz is complete by then."""
        multihost.barrier()
        if multihost.is_primary():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, ids: range) -> Path:
        return self.folder / f"{ids[0]:08d}-{ids[-1]:08d}.npz"
