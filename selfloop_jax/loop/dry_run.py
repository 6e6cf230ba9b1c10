"""`--dry_run`: what a run will be and cost, before anything is downloaded, decoded or trained."""

import operator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from selfloop_jax import config as configs
from selfloop_jax.data import dataset
from selfloop_jax.data.dataset import Dataset
from selfloop_jax.data.sources.base import Missing, Outline
from selfloop_jax.diffusion import solvers
from selfloop_jax.errors import UsageError
from selfloop_jax.loop import context, pool_rules, runner
from selfloop_jax.runtime import environment, parallel

MIB = 2**20


def describe(config: configs.Config, workdir: Path) -> str:
    """The resolved config, sizes per generation, work, disk, memory; raises UsageError as a run would.

    Where the data are not on this machine: all that does not hang on them.
    """
    runner.check(config)
    lines = [
        configs.describe(config),
        "",
        f"workdir: {workdir}",
        f"devices: {parallel.device_count()} x {environment.device_info()['device_kind']}",
    ]
    try:
        data = runner.load(config, prepare=False)
        classes, groups, train = len(data.classes), len(data.groups), len(data.train)
        lines += _real_images(data)
        unknown = ""
    except Missing as missing:
        known = missing.outline or dataset.outline(config.data)
        unknown = _unknown(config.data, missing)
        classes, groups = known.classes, known.groups
        train = config.data.train_size or (known.train and _left(config.data, known.train))
        _check_known(config, known, train)
        lines += _not_here(missing, known, unknown)
    networks = context.Networks(config, classes, groups) if classes and groups else None
    lines += _pools(config, train, unknown)
    lines += _networks(networks, unknown)
    lines += _work(config)
    lines += _space(config, networks, train, unknown)
    return "\n".join(lines)


def _real_images(data: Dataset) -> list[str]:
    sizes = ", ".join(f"{len(images)} {name}" for name, images in data.splits.items())
    each = " (held-out images in every colour)" if data.colours else ""
    before = ", ".join(
        f"{n} {name}" for name, n in data.facts.get("before_subsampling", {}).items()
    )
    stand_in = data.facts.get("stand_in")
    return [
        *([f"STAND-IN data: {stand_in}"] if stand_in else []),
        f"classes: {len(data.classes)}, groups: {len(data.groups)}{', nested' if data.nested else ''}",
        f"real images: {sizes}{each}; before subsampling: {before}",
    ]


def _unknown(section: configs.DataConfig, missing: Missing) -> str:
    """Why a number cannot be told, and what to do."""
    if operator.attrgetter(missing.field.removeprefix("data."))(section):
        return "size unknown before a run has prepared the images"
    return f"size unknown: set {missing.field}"


def _check_known(config: configs.Config, known: Outline, train: int | None) -> None:
    """Raises UsageError for sizes that cannot be, as far as that is known without the data."""
    if known.train is None or train is None:
        return
    section = config.data
    reserve = round(section.reserve_share * known.train)
    room = known.train - round(section.validation_share * known.train) - reserve
    if section.train_size > room:
        raise UsageError(f"data.train_size = {section.train_size}: allowed are up to {room} images")
    pool_rules.check_sizes(
        config.pool, config.loop.generations, train, reserve, config.sample.count
    )


def _not_here(missing: Missing, known: Outline, unknown: str) -> list[str]:
    """What is known of a source whose images are not on this machine."""

    def told(value: int | None) -> str:
        return unknown if value is None else str(value)

    return [
        f"data: not ready: {missing}",
        f"classes: {told(known.classes)}, groups: {told(known.groups)}",
        f"real images: {told(known.train)} for training (validation and reserve among them), "
        f"{told(known.test)} for testing",
    ]


def _left(section: configs.DataConfig, train: int) -> int | None:
    """Training images left after validation and reserve, where no subsampling follows."""
    if section.colorize == "none" and section.bias.kind not in ("natural", "unbiased"):
        return None
    return train - round(section.validation_share * train) - round(section.reserve_share * train)


def _pools(config: configs.Config, train: int | None, unknown: str) -> list[str]:
    if train is None:
        return [f"pool sizes: {unknown}"]
    return [f"pool sizes, generation 0 on: {', '.join(map(str, _pool_sizes(config, train)))}"]


def _pool_sizes(config: configs.Config, train: int) -> list[int]:
    grows = config.loop.control != "no_synthetic"
    sizes = range(config.loop.generations)
    return [pool_rules.size(config.pool, g * grows, train, config.sample.count) for g in sizes]


def _networks(networks: context.Networks | None, unknown: str) -> list[str]:
    if networks is None:
        return [f"parameters: {unknown}"]
    return [
        f"parameters, {name}: {trainer.parameters:,}" for name, trainer in networks.trainers.items()
    ]


def _work(config: configs.Config) -> list[str]:
    generations = config.loop.generations
    if config.loop.control != "none":
        shown = f"{_trained(config.classifier, generations):,}"
        return [f"training images, classifier: {shown} (a control trains classifiers alone)"]
    return [
        f"training images, diffusion: {_trained(config.diffusion, generations):,}",
        *(
            [f"training images, annotator: {config.annotator.batch * config.annotator.steps:,}"]
            if "annotator" in configs.classifiers(config)
            else []
        ),
        f"training images, classifier: {_trained(config.classifier, generations):,}"
        f" (generated_only = {config.measure.generated_only}: as many again where it applies)",
        f"network evaluations per generation, sampling: {_evaluations(config.sample):,} images x passes",
    ]


def _space(
    config: configs.Config, networks: context.Networks | None, train: int | None, unknown: str
) -> list[str]:
    if networks is None:
        return [f"disk and memory: {unknown}"]
    state = {name: _bytes(trainer.abstract) for name, trainer in networks.trainers.items()}
    image, keep = config.data.image_size**2 * 3, config.checkpoint.keep
    disk = config.loop.generations * (
        config.sample.count * image + keep * (state["diffusion"] + 2 * state["classifier"])
    )
    disk += keep * state.get("annotator", 0)
    lines = [f"disk, about: {disk / MIB:.0f} MiB"]
    if train is None:
        return [
            *lines,
            f"memory per device for states: {sum(state.values()) / MIB:.0f} MiB; pool: {unknown}",
        ]
    capacity = max(train, config.sample.count, *_pool_sizes(config, train))
    memory = sum(state.values()) + capacity * (image + 8)
    return [
        *lines,
        f"memory per device for states and pool, about: {memory / MIB:.0f} MiB, activations not counted",
    ]


def _bytes(tree: Any) -> int:
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _trained(
    section: configs.DiffusionConfig | configs.LoopClassifierConfig, generations: int
) -> int:
    """Images shown to one network over a whole run."""
    return section.batch * (section.steps + (generations - 1) * section.later.steps)


def _evaluations(sample: configs.SampleConfig) -> int:
    """Images times passes through the network for one generation's samples."""
    passes = solvers.evaluations(sample.sampler, sample.steps) * (2 if sample.guidance else 1)
    return sample.count * passes
