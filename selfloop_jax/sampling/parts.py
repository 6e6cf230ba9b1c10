"""Finished chunks of a sampling phase on disk, so that a resume loses one chunk at most."""

import shutil
from pathlib import Path

import numpy as np

from selfloop_jax.runtime import multihost, store


class Parts:
    """Chunks of generated images in `<folder>/<first id>.npz`."""

    def __init__(self, folder: Path):
        self.folder = folder

    def finished(self, firsts: range) -> np.ndarray:
        """bool per chunk: whether its file exists; process 0 decides for all processes."""
        # Processes that skip different chunks would wait for each other without end.
        return multihost.broadcast(np.array([self._path(first).exists() for first in firsts]))

    def save(self, first: int, pixels: np.ndarray) -> None:
        """Writes the chunk whose first image has id `first`; pixels uint8[N,H,W,3]."""
        ids = np.arange(first, first + len(pixels), dtype=np.uint32)
        store.write_npz(self._path(first), {"id": ids, "pixels": pixels})

    def join(self, firsts: range) -> np.ndarray:
        """uint8[N,H,W,3]: the pixels of all chunks, in the order of ids."""
        chunks = [store.read_npz(self._path(first))["pixels"] for first in firsts]
        return np.concatenate(chunks)

    def remove(self) -> None:
        """Deletes the folder once every process has read it; samples.npz is complete by then."""
        multihost.barrier()
        if multihost.is_primary():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, first: int) -> Path:
        return self.folder / f"{first:08d}.npz"
