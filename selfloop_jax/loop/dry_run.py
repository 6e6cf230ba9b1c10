"""`--dry_run` of the loop: what a run will be and cost, before anything is decoded or trained."""

from typing import Any

import jax
import numpy as np

from selfloop_jax import config as configs
from selfloop_jax.config import (
    Config,
    DataConfig,
    DiffusionConfig,
    LoopClassifierConfig,
    SampleConfig,
)
from selfloop_jax.data import pool_rules, sources
from selfloop_jax.data.dataset import Dataset
from selfloop_jax.data.sources.base import Missing, Outline
from selfloop_jax.diffusion import solvers
from selfloop_jax.errors import UsageError
from selfloop_jax.loop import context, setup
from selfloop_jax.loop.context import Networks
from selfloop_jax.runtime import parallel
from selfloop_jax.training import step

MIB = 2**20
GB = 10**9
CARDS = (24, 40, 80)  # GB of memory
USABLE = 0.92  # of it; the rest is for the driver and for what XLA needs besides
ANY_RMS = 1.0  # of the pixels: no shape depends on it


def describe(config: Config) -> list[str]:
    """Sizes per generation, work, disk and memory as lines; raises UsageError as a run would.

    Where the data are not on this machine: all that does not depend on them.
    """
    lines: list[str] = []
    unknown = ""
    try:
        data = setup.load(config, prepare=False)
        classes: int | None = len(data.classes)
        groups: int | None = len(data.groups)
        train: int | None = len(data.train)
        before: int | None = len(data.train_unbiased)
        lines += _real_images(data)
    # Without the images, sizes are those that the source states about itself.
    except Missing as missing:
        known = missing.outline or sources.outline(config.data)
        unknown = _why_unknown(config.data, missing)
        classes = known.classes
        groups = known.groups
        before = known.train and _after_splits(config.data, known.train)
        train = config.data.train_size or (None if _subsamples(config.data) else before)
        _check_known(config, known, train)
        lines += _not_here(missing, known, unknown)
    # Shapes alone: no weights are made for a dry run.
    networks = Networks(config, classes, groups, ANY_RMS) if classes and groups else None
    lines += _pools(config, train, unknown)
    lines += _networks(networks, unknown)
    lines += _work(config)
    capacity = None
    # The images before subsampling count where an annotator learns from them.
    if groups and train and (before or not context.has_annotator(config, groups)):
        capacity = context.capacity(config, groups, train, before or 0)
    lines += _space(config, networks, capacity, unknown)
    return lines


def _real_images(data: Dataset) -> list[str]:
    sizes = ", ".join(f"{len(images)} {name}" for name, images in data.splits.items())
    every_colour = " (held-out images in every colour)" if data.colours else ""
    whole = data.provenance.get("before_subsampling", {})
    before = ", ".join(f"{n} {name}" for name, n in whole.items())
    nested = ", nested" if data.nested else ""
    stand_in = data.provenance.get("stand_in")
    return [
        *([f"STAND-IN data: {stand_in}"] if stand_in else []),
        f"classes: {len(data.classes)}, groups: {len(data.groups)}{nested}",
        f"real images: {sizes}{every_colour}; before subsampling: {before}",
    ]


def _why_unknown(section: DataConfig, missing: Missing) -> str:
    """Why a number is unknown, and what to do about it."""
    value: Any = section
    for name in missing.field.split(".")[1:]:
        value = getattr(value, name)
    # The field is set, so the images exist and only have to be prepared.
    if value:
        return "size unknown before a run has prepared the images"
    return f"size unknown: set {missing.field}"


def _check_known(config: Config, known: Outline, train: int | None) -> None:
    """Raises UsageError for impossible sizes, as far as they are known without the data."""
    if known.train is None or train is None:
        return
    section = config.data
    reserve = round(section.reserve_share * known.train)
    room = _after_splits(section, known.train)
    if section.train_size > room:
        raise UsageError(f"data.train_size = {section.train_size}: must be at most {room}")
    pool_rules.check_sizes(
        config.pool, config.loop.generations, train, reserve, config.sample.count
    )


def _not_here(missing: Missing, known: Outline, unknown: str) -> list[str]:
    """What is known of a source whose images are not on this machine."""

    def shown(value: int | None) -> str:
        return unknown if value is None else str(value)

    return [
        f"data: not ready: {missing}",
        f"classes: {shown(known.classes)}, groups: {shown(known.groups)}",
        f"real images: {shown(known.train)} for training (validation and reserve among them), "
        f"{shown(known.test)} for testing",
    ]


def _after_splits(section: DataConfig, train: int) -> int:
    """Training images left after validation and reserve."""
    return train - round(section.validation_share * train) - round(section.reserve_share * train)


def _subsamples(section: DataConfig) -> bool:
    """Whether the bias leaves out training images, how many of them only the images tell."""
    return section.colorize == "none" and section.bias.kind not in ("natural", "unbiased")


def _pools(config: Config, train: int | None, unknown: str) -> list[str]:
    if train is None:
        return [f"pool sizes: {unknown}"]
    pools = [context.pool_capacity(config, train, g) for g in range(config.loop.generations)]
    sizes = ", ".join(map(str, pools))
    return [f"pool sizes, generation 0 on: {sizes}"]


def _networks(networks: Networks | None, unknown: str) -> list[str]:
    if networks is None:
        return [f"parameters: {unknown}"]
    return [
        f"parameters, {name}: {trainer.parameters:,}" for name, trainer in networks.trainers.items()
    ]


def _work(config: Config) -> list[str]:
    """How many images networks are trained on, and how often they are evaluated in sampling."""
    generations = config.loop.generations
    trained = config.measure.trainings * _images_shown(config.classifier, generations)
    classifier = f"{trained:,}"
    if config.loop.control != "none":
        return [f"training images, classifier: {classifier} (a control trains classifiers alone)"]
    lines = [f"training images, diffusion: {_images_shown(config.diffusion, generations):,}"]
    if "annotator" in configs.classifiers(config):
        annotator = config.annotator.batch * config.annotator.steps
        lines.append(f"training images, annotator: {annotator:,}")
    lines.append(
        f"training images, classifier: {classifier} (generated_only = "
        f"{config.measure.generated_only}: as many again where it applies)"
    )
    evaluations = f"{_evaluations(config.sample):,}"
    lines.append(f"network evaluations per generation, sampling: {evaluations} images x passes")
    return lines


def _space(
    config: Config, networks: Networks | None, capacity: int | None, unknown: str
) -> list[str]:
    """Disk of the run, and device memory for states and pool, of `capacity` images."""
    if networks is None:
        return [f"disk and memory: {unknown}"]
    state = {name: _bytes(trainer.abstract) for name, trainer in networks.trainers.items()}
    image = config.data.image_size**2 * 3
    keep = config.checkpoint.keep
    generations = range(config.loop.generations)
    # A control generates nothing, but for generation 0 where that comes from a branch.
    generating = sum(context.trains_generator(config, g) for g in generations)
    disk = len(generations) * keep * state["classifier"] * config.measure.trainings
    # A second classifier learns from the generated images alone.
    disk += generating * keep * (state["diffusion"] + state["classifier"])
    disk += generating * config.sample.count * image
    # The annotator is trained once, in generation 0.
    disk += keep * state.get("annotator", 0) if generating else 0
    lines = [f"disk, about: {disk / MIB:.0f} MiB"]
    states = sum(state.values()) if config.loop.control == "none" else state["classifier"]
    pool = (capacity or 0) * (image + 8)  # label and group take four bytes each
    lines.append(f"memory per device, states: {states / MIB:.0f} MiB")
    lines.append(f"memory per device, pool: {f'{pool / MIB:.0f} MiB' if capacity else unknown}")
    return [*lines, *_activations(config, networks, states + pool)]


def _activations(config: Config, networks: Networks, memory: int) -> list[str]:
    """What a training step needs besides `memory`, and how many images fit on common cards.

    For the U-Net of Hard ImageNet in bfloat16, XLA's own count on a GPU was 0.54 to 0.65 of this.
    """
    devices = parallel.device_count()
    lines = []
    for name, trainer in networks.trainers.items():
        if name == "diffusion" and config.loop.control != "none":
            continue
        parts = config.diffusion.microbatches if name == "diffusion" else 1
        images = trainer.batch // devices // parts
        each = step.activation_bytes(trainer, config.data.image_size)
        # Gradients take as much as the weights.
        fixed = memory + _bytes(trainer.abstract.params)
        fit = [max(0, int((USABLE * card * GB - fixed) / each)) for card in CARDS]
        lines.append(
            f"activations, {name}: up to {each / MIB:.2f} MiB an image, {images * each / MIB:.0f} "
            f"MiB for {images} images at a time; cards of "
            f"{'/'.join(map(str, CARDS))} GB hold about {'/'.join(map(str, fit))}"
        )
    return lines


def _bytes(tree: Any) -> int:
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _images_shown(section: DiffusionConfig | LoopClassifierConfig, generations: int) -> int:
    """Images shown to one network over a whole run."""
    return section.batch * (section.steps + (generations - 1) * section.later.steps)


def _evaluations(section: SampleConfig) -> int:
    """Images times passes through the network for the samples of one generation."""
    # Guidance evaluates the network twice, with and without the label.
    passes = solvers.SOLVERS[section.sampler].evaluations(section.steps)
    return section.count * passes * (2 if section.guidance else 1)
