"""`--dry_run`: what a run will be and cost, before anything is trained."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from selfloop_jax import diffusion, loop, parallel, phases

MIB = 2**20


def describe(config: Any, workdir: Path) -> str:
    """The resolved config, sizes per generation, work, disk, memory; raises UsageError as a run would."""
    loop.check(config)
    study = phases.Study(config, lambda: False)
    sizes = [study.pool_size(g) for g in range(config.loop.generations)]
    state = {name: _bytes(trainer.abstract) for name, trainer in study.trainers.items()}
    image = config.data.image_size**2 * 3
    disk = config.loop.generations * (
        config.sample.count * image + config.checkpoint.keep * (state["diffusion"] + 2 * state["classifier"])
    )
    pool_bytes = study.capacity * (image + 8)
    lines = [
        str(config).rstrip(),
        "",
        f"workdir: {workdir}",
        f"devices: {parallel.device_count()} x {parallel.describe()['device_kind']}",
        *(f"parameters, {name}: {trainer.parameters:,}" for name, trainer in study.trainers.items()),
        f"real images: {len(study.data.train)} train, {len(study.data.validation)} validation, "
        f"{len(study.data.reserve)} reserve, {len(study.data.test)} test (each digit in every colour)",
        f"pool sizes, generation 0 on: {', '.join(map(str, sizes))}",
        f"training images, diffusion: {_trained(config.diffusion, config.loop.generations):,}",
        f"training images, classifier: {_trained(config.classifier, config.loop.generations):,}"
        f" (generated_only = {config.measure.generated_only}: as many again where it applies)",
        f"network evaluations per generation, sampling: {_evaluations(config.sample):,} images x passes",
        f"disk, about: {disk / MIB:.0f} MiB",
        f"memory per device for states and pool, about: {(sum(state.values()) + pool_bytes) / MIB:.0f} MiB, "
        "activations not counted",
    ]
    return "\n".join(lines)


def _bytes(tree: Any) -> int:
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _trained(section: Any, generations: int) -> int:
    """Images shown to one network over a whole run."""
    return section.batch * (section.steps + (generations - 1) * section.later.steps)


def _evaluations(sample: Any) -> int:
    """Images times passes through the network for one generation's samples."""
    passes = diffusion.evaluations(sample.sampler, sample.steps) * (2 if sample.guidance else 1)
    return sample.count * passes
