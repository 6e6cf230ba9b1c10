"""Sampling from a trained generator: start noise keyed by image id, then a solver."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from selfloop_jax.config import SampleConfig
from selfloop_jax.diffusion import processes, solvers
from selfloop_jax.models.unet import UNet
from selfloop_jax.runtime import keys, log, multihost, parallel, rng
from selfloop_jax.sampling.parts import Parts
from selfloop_jax.training.fit import Preempted

# (params, key, id uint32[N], label int32[N], group int32[N]) -> pixels uint8[N,side,side,3]
Sampler = Callable[[Any, jax.Array, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
START = np.uint32(2**31)  # the fold of an image's key that gives its start noise; no solver step


def make_sampler(
    model: UNet, process: processes.Process, section: SampleConfig, side: int
) -> Sampler:
    """The program that turns ids, labels and groups into images of `side` pixels.

    See `generate`; the images are split over all devices.
    """
    program = parallel.map_over_devices(
        partial(generate, model=model, process=process, section=section, side=side)
    )

    def sample_batch(params, key, ids, label, group):
        return program((params, key), {"id": ids, "label": label, "group": group})

    return sample_batch


def generate(
    shared: tuple[Any, jax.Array],
    rows: dict[str, jax.Array],
    *,
    model: UNet,
    process: processes.Process,
    section: SampleConfig,
    side: int,
) -> jax.Array:
    """(params, key), {"id", "label", "group"} [N] -> pixels uint8[N,side,side,3], on one device.

    Each image's noise is keyed by its id, so an image does not depend on which others are sampled
    with it. Section `sample` gives solver, steps, guidance w (0: the conditional model alone),
    temperature and clip. Group -1 (unknown) is the null group.
    """
    params, key = shared
    image_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows["id"])

    def noise(step):
        return _normals(image_keys, step, side)

    group = jnp.where(rows["group"] < 0, model.num_groups, rows["group"])
    network = _conditional(model, params, rows["label"], group, section.guidance)

    def denoise(x, time):
        # At high noise the estimate leaves the range of pixels, and each step builds on the last.
        x_0 = process.denoise(network, x, time)
        return jnp.clip(x_0, -1, 1) if section.clip else x_0

    # The process says how wide its noise starts; a temperature below 1 narrows it.
    start = noise(START) * (process.prior_scale * section.temperature)
    x = solvers.SOLVERS[section.sampler](process, denoise, start, section.steps, noise)
    # Rounded: cutting off would darken the images a little in every generation.
    return jnp.rint((jnp.clip(x, -1, 1) + 1) * 127.5).astype(jnp.uint8)


def _normals(image_keys: jax.Array, step: Any, side: int) -> jax.Array:
    """float32[N,side,side,3] standard normals of a solver step, one key per image."""

    def one(key):
        return jax.random.normal(jax.random.fold_in(key, step), (side, side, 3))

    return jax.vmap(one)(image_keys)


def _conditional(
    model: UNet, params: Any, label: jax.Array, group: jax.Array, guidance: float
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The network as a function of input and noise level, with classifier-free guidance if any."""

    def apply(*arguments: jax.Array) -> Any:
        return model.apply({"params": params}, *arguments)

    if not guidance:
        return lambda x, level: apply(x, level, label, group)
    # The null label and group give the unconditional output, in one batch with the conditional.
    both_label = jnp.concatenate([label, jnp.full_like(label, model.num_classes)])
    both_group = jnp.concatenate([group, jnp.full_like(group, model.num_groups)])

    def pair(x, level):
        x_twice = jnp.concatenate([x, x])
        level_twice = jnp.concatenate([level, level])
        return jnp.split(apply(x_twice, level_twice, both_label, both_group), 2)

    return solvers.guided(pair, guidance)


@dataclass(frozen=True)
class Job:
    """One set of images to generate.

    label, group: int32[N] requested of image 0 .. N-1. chunk: images per call of the sampler, a
    multiple of the devices. key_path: of the noise. parts: where finished chunks are kept.
    """

    sampler: Sampler
    params: Any
    label: np.ndarray
    group: np.ndarray
    chunk: int
    key_path: rng.KeyPath
    parts: Parts
    progress: log.Progress
    stop: Callable[[], bool]


@dataclass(frozen=True)
class Sampled:
    """Generated images uint8[N,H,W,3], and the speed at which they were sampled."""

    pixels: np.ndarray
    images_per_second: float


def sample(jobs: Sequence[Job]) -> list[Sampled]:
    """Generates the images of every job, one job after the other; finished chunks are kept.

    Raises Preempted when `stop()` is true after a chunk.
    """
    return [_sample(job) for job in jobs]


def _sample(job: Job) -> Sampled:
    count = len(job.label)
    key = parallel.replicate(keys.key(job.key_path))
    chunks = [range(first, min(first + job.chunk, count)) for first in range(0, count, job.chunk)]
    finished = job.parts.finished(chunks)
    job.progress.begin(int(finished.sum()), len(chunks), job.chunk)
    with ThreadPoolExecutor(1) as disk:  # writes a chunk while the next one is sampled
        writing: Future | None = None
        for number, chunk in enumerate(chunks):
            if finished[number]:
                continue
            ids = np.arange(chunk[0], chunk[0] + job.chunk, dtype=np.uint32)
            # The last chunk is filled up with the last image, so that one program serves all.
            rows = np.minimum(ids, count - 1)
            pixels = job.sampler(job.params, key, ids, job.label[rows], job.group[rows])
            # At most one chunk waits, and a full disk raises here instead of at the end.
            if writing:
                writing.result()
            writing = disk.submit(job.parts.save, chunk, pixels[: len(chunk)])
            job.progress.advance(number + 1)
            if job.stop():
                writing.result()
                raise Preempted(f"{job.progress.where}, image {chunk[-1] + 1}")
        if writing:
            writing.result()
    job.progress.end()
    multihost.barrier()  # the chunks that process 0 wrote are on disk for all
    return Sampled(job.parts.join(chunks), job.progress.rate)
