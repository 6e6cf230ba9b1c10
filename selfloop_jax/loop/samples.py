"""samples.npz: generated images with their requested and their assigned labels and groups."""

from pathlib import Path

import numpy as np

from selfloop_jax.data.images import Images
from selfloop_jax.runtime import store
from selfloop_jax.runtime.workdir import generation_dir

# What `sample` writes; `label` adds label and group.
REQUESTED = ("id", "requested_label", "requested_group")


def path_of(workdir: Path, generation: int) -> Path:
    """Where the generated images of a generation are."""
    return generation_dir(workdir, generation) / "samples.npz"


def read_samples(workdir: Path, generation: int, digest: str) -> Images:
    """The labelled images of a generation; RunError unless the file's bytes have the digest."""
    arrays = store.read_npz(path_of(workdir, generation), digest)
    return Images(
        pixels=arrays["pixels"],
        label=arrays["label"],
        group=arrays["group"],
        # (origin, id) is the identity of an image in every pool.
        origin=np.full(len(arrays["id"]), generation, np.int32),
        id=arrays["id"],
        requested_label=arrays["requested_label"],
    )
