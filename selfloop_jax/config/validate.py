"""The rules of a config: those of single fields, and those across sections that need no table."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from selfloop_jax.config.fields import leaves
from selfloop_jax.config.schema import (
    Config,
    DiffusionConfig,
    LaterConfig,
    LoopClassifierConfig,
    TrainingConfig,
)
from selfloop_jax.errors import UsageError

BUCKET = "://"
LOCAL = "a path of this machine: a bucket has no locks"


def refuse(field: str, value: Any, must: str) -> NoReturn:
    """Raises the UsageError of a field: its name, its value, and what it must be."""
    shown = value if isinstance(value, str) and value else repr(value)
    raise UsageError(f"{field} = {shown}: must be {must}")


def check_choice(field: str, value: str, table: Iterable[str]) -> None:
    """Raises UsageError where a name is not in the table that it must come from."""
    names = tuple(table)
    if value not in names:
        refuse(field, value, f"one of {' | '.join(names)}")


def local_path(flag: str, text: str) -> Path:
    """The path that a flag names; UsageError for the address of a bucket, as gs://bucket/run.

    As a path it would name a folder `gs:` of this machine. A run locks its files, which buckets
    cannot do.
    """
    if BUCKET in text:
        raise UsageError(f"{flag}={text}: must be {LOCAL}")
    return Path(text)


def check(config: Config) -> None:
    """Raises UsageError in one line naming field, value and rule."""
    # Rules of single fields come first: those across fields divide by numbers that must be
    # positive.
    for field, value, declared in leaves(config):
        _check_finite(field, value)
        if isinstance(value, str) and BUCKET in value:
            refuse(field, value, LOCAL)
        rule = declared.metadata["rule"]
        if rule and not rule.holds(value):
            refuse(field, value, rule.words)
    _check_data(config)
    _check_unet(config)
    _check_sampling(config)
    _check_steps(config)


def _check_finite(field: str, value: Any) -> None:
    """JSON and comparisons of configs know neither NaN nor infinity."""
    # Tuples nest in data.bias.per_class.
    numbers = [value]
    while numbers:
        number = numbers.pop()
        if isinstance(number, tuple):
            numbers += number
        elif isinstance(number, float) and not math.isfinite(number):
            refuse(field, value, "finite")


def _check_data(config: Config) -> None:
    data = config.data
    # Both are shares of the training images, of which some must be left to train on.
    if data.validation_share + data.reserve_share >= 1:
        refuse(
            "data.reserve_share",
            data.reserve_share,
            f"below 1 together with data.validation_share = {data.validation_share}",
        )


def _check_unet(config: Config) -> None:
    side = config.data.image_size
    net = config.diffusion.unet
    levels = len(net.multipliers)
    # The stem divides the side once, and each level but the last halves it.
    if side % (net.stem * 2 ** (levels - 1)):
        refuse(
            "diffusion.unet.multipliers",
            net.multipliers,
            f"few enough that data.image_size = {side}, divided by diffusion.unet.stem = "
            f"{net.stem}, can be halved after each but the last",
        )
    sides = [side // net.stem // 2**level for level in range(levels)]
    if not set(net.attention) <= set(sides):
        refuse(
            "diffusion.unet.attention",
            net.attention,
            f"among {tuple(sides)}, the sides of this network's feature maps",
        )
    # Attention splits a map's channels evenly over its heads.
    if any(net.channels * multiplier % net.heads for multiplier in net.multipliers):
        channels = f"diffusion.unet.channels = {net.channels}"
        refuse("diffusion.unet.heads", net.heads, f"a divisor of {channels}")


def _check_sampling(config: Config) -> None:
    diffusion = config.diffusion
    sample = config.sample
    timesteps = diffusion.ddpm.timesteps
    # More steps than times would visit some time twice.
    if diffusion.process == "ddpm" and sample.steps > timesteps:
        refuse("sample.steps", sample.steps, f"<= diffusion.ddpm.timesteps = {timesteps}")
    # x_0 is the estimate of the noise divided by the signal: 5e-5 at the cosine's last time.
    divides = diffusion.ddpm.prediction == "eps" and diffusion.ddpm.schedule == "cosine"
    if diffusion.process == "ddpm" and divides and not sample.clip:
        refuse(
            "sample.clip",
            False,
            "True where diffusion.ddpm.prediction = eps and diffusion.ddpm.schedule = cosine, "
            "which divide by a signal of almost 0",
        )
    if diffusion.edm.sigma_max <= diffusion.edm.sigma_min:
        least = f"> diffusion.edm.sigma_min = {diffusion.edm.sigma_min}"
        refuse("diffusion.edm.sigma_max", diffusion.edm.sigma_max, least)
    # Guidance needs the network without condition, which only dropped labels train.
    if sample.guidance and not diffusion.label_dropout:
        refuse("sample.guidance", sample.guidance, "0 where diffusion.label_dropout = 0")
    # A generator that is conditioned on the class alone cannot be given a group.
    if config.loop.group_source == "requested" and diffusion.condition_on == "label":
        refuse(
            "loop.group_source",
            "requested",
            "oracle | annotator where diffusion.condition_on = label",
        )


def _check_steps(config: Config) -> None:
    per_dispatch = config.parallel.steps_per_dispatch
    for field, steps in _step_counts(config).items():
        # Training stops and saves between dispatches alone.
        if per_dispatch and steps % per_dispatch:
            multiple = f"a multiple of parallel.steps_per_dispatch = {per_dispatch}"
            refuse(field, steps, multiple)


def check_devices(config: Config, devices: int) -> None:
    """Raises UsageError where a batch cannot be split over the devices at hand."""
    batches = {f"{name}.batch": getattr(config, name).batch for name in classifiers(config)}
    batches["diffusion.batch"] = config.diffusion.batch
    batches["measure.batch"] = config.measure.batch
    for field, batch in batches.items():
        # All devices run one program, so all take the same number of rows.
        if batch % devices:
            refuse(field, batch, f"a multiple of the {devices} devices")
    parts = config.diffusion.microbatches
    if config.diffusion.batch // devices % parts:
        must = f"a divisor of {config.diffusion.batch // devices}, the images of a step per device"
        refuse("diffusion.microbatches", parts, must)


def classifiers(config: Config) -> tuple[str, ...]:
    """The sections of the classifiers that a run trains."""
    if config.loop.group_source == "annotator":
        return ("classifier", "annotator")
    return ("classifier",)


def steps_per_dispatch(config: Config, platform: str) -> int:
    """Training steps in one program on a platform: `cpu`, `gpu` or `tpu`.

    Where the config leaves it open, an accelerator takes as many up to ten as divide all numbers of
    steps: a step of a small network is over before the host has sent the next one. On a CPU a loop
    in a program costs more than that saves.
    """
    steps = config.parallel.steps_per_dispatch
    if steps or platform == "cpu":
        return steps or 1
    # A number divides all of them exactly when it divides their greatest common divisor.
    common = math.gcd(*_step_counts(config).values())
    return max(k for k in range(1, 11) if common % k == 0)


def training_section(
    section: DiffusionConfig | LoopClassifierConfig, generation: int
) -> TrainingConfig | LaterConfig:
    """Where steps and learning rate of a generation stand: the section, later its `later`."""
    return section.later if generation else section


def activation_dtype(config: Config) -> str | None:
    """The dtype of a network's activations; None: that of their input, float32."""
    precision = config.parallel.precision
    return None if precision == "float32" else precision


def environment(config: Config) -> dict[str, Any]:
    """The arguments of `runtime.environment.configure`."""
    names = ("nproc", "cpu_devices", "deterministic", "matmul_precision")
    return {name: getattr(config.parallel, name) for name in names}


def _step_counts(config: Config) -> dict[str, int]:
    """By field, the numbers of steps that must be whole numbers of dispatches."""
    counts = {
        "checkpoint.interval_steps": config.checkpoint.interval_steps,
        "diffusion.steps": config.diffusion.steps,
        "diffusion.later.steps": config.diffusion.later.steps,
        "classifier.steps": config.classifier.steps,
        "classifier.later.steps": config.classifier.later.steps,
    }
    if "annotator" in classifiers(config):
        counts["annotator.steps"] = config.annotator.steps
    return counts
