"""Every field of a config with its default, and the check that a config makes sense.

A config file's `get_config` starts from `default()` and changes what its study needs. Section by
section the comments name the paper a default follows; where they name none, the default is ours.
"""

import math
from typing import Any

from ml_collections import ConfigDict

from selfloop_jax.data import colorize, dataset
from selfloop_jax.data.sources.base import TFDS
from selfloop_jax.errors import UsageError


def default() -> ConfigDict:
    """The default config, types locked."""
    return ConfigDict(
        {
            "seed": 0,
            "data": {
                # digits | mnist5k | mnist | cifar20 | cifar100 | hardimagenet | folder |
                # tfds:<name>
                "source": "digits",
                "image_size": 8,
                "colorize": "two_colour",  # none | two_colour | foreground | background
                "bias": "unbiased",  # natural | unbiased | rho | geometric | per_class
                "rho": 0.9,  # P(a class's own group | class) under bias = rho
                "ratio": 0.5,  # of each group's share to the one before it under bias = geometric
                "per_class": (),  # P(group | class) under bias = per_class: see bias.group_table
                "train_size": 0,  # training images after subsampling; 0: as many as the bias leaves
                "validation_share": 0.1,  # of the training images, where a source has no such split
                "reserve_share": 0.2,  # likewise, for pool.rule = fresh and for controls
                "placement": "device",  # device | host: where the pool lies while training
                "dir": "",  # folder: the images; mnist, cifar, tfds: prepared data ('': where TFDS keeps it)
                "archive_dir": "",  # mnist, cifar: official archives already on this machine
                "checksums": "",  # mnist, cifar: a table that replaces the official one (STAND-IN data)
                "label_feature": "label",  # tfds: dotted path of the label
                "group_feature": "",  # tfds: dotted path of the group, '' none
                "images_dir": "",  # hardimagenet: <images_dir>/{train,val}/<wnid>/
                "masks_dir": "",  # hardimagenet: <masks_dir>/{train,val}/
                "meta_dir": "",  # hardimagenet: the pickles
                "group": "rank",  # hardimagenet: rank | mask_area
                "bands": 2,  # hardimagenet: groups that ranks or mask areas are cut into
                "holdout": 40,  # hardimagenet, group = rank: test images per class and band
                "on_bad_image": "refuse",  # hardimagenet, folder: refuse | skip
                "cache_dir": "",  # hardimagenet, folder: decoded images ('': ~/.cache/selfloop_jax_data)
            },
            "pool": {  # the training set of generation g > 0; generation 0 trains on real data alone
                "rule": "accumulate",
                "budget": 0,  # accumulate_subsample: images kept
                "alpha": 0.5,  # substitute: probability that a real image is swapped
                "match_group": False,  # substitute: only for a generated image of the same group
                "n_real": 0,  # fresh: real images from the reserve, new in every generation
                "n_generated": 0,  # fresh: images of the latest generator
            },
            "loop": {
                "generations": 4,
                "label_source": "condition",  # condition | previous | frozen
                "group_source": "oracle",  # oracle | condition | annotator
                "generation_zero": "",  # workdir of a run whose generation 0 is taken over
                "control": "none",  # none | no_synthetic | fresh_real | oracle_resample: classifiers alone
                "control_of": "",  # oracle_resample: workdir of the run whose drawn images are replaced
            },
            "diffusion": {
                "process": "edm",  # ddpm | edm
                "ddpm": {"schedule": "cosine", "timesteps": 1000, "prediction": "v"},
                "edm": {  # Karras et al. 2022, table 1
                    "sigma_data": 0.5,
                    "p_mean": -1.2,
                    "p_std": 1.2,
                    "sigma_min": 0.002,
                    "sigma_max": 80.0,
                    "rho": 7.0,
                },
                "condition_on": "label",  # label | label_group
                "label_dropout": 0.1,
                "augment": {"flip": False},  # left and right, probability one half
                "unet": {
                    "channels": 64,
                    "multipliers": (1, 2),
                    "blocks": 1,
                    "attention": (),  # sides, in pixels, of the feature maps with self-attention
                    "heads": 1,
                    "dropout": 0.0,
                    "stem": 1,  # stem x stem pixels are folded into channels before the first layer
                    "remat": False,  # compute activations again in the backward pass: less memory, more time
                    "scale_shift": True,  # how the embedding enters a block; False: added (Ho et al. 2020)
                },
                **_training(batch=128, steps=2000, learning_rate=1e-3, ema_decay=0.999),
            },
            "sample": {
                "count": 900,
                "condition": "real",  # uniform | pool | real
                "sampler": "heun",  # ddpm: ddim | ancestral; edm: euler | heun
                "steps": 18,
                "guidance": 0.0,  # w in (1 + w) conditional - w unconditional
                "temperature": 1.0,  # factor on the initial noise
                "clip": True,  # keep every estimate of x_0 in [-1, 1]
                "batch_per_device": 150,
            },
            "classifier": {
                **_classifier(),
                **_training(batch=128, steps=1000, learning_rate=1e-3, ema_decay=0.0),
            },
            "annotator": {  # loop.group_source = annotator: the frozen group classifier of generation 0
                **_classifier(),
                **_training(batch=128, steps=1000, learning_rate=1e-3, ema_decay=0.0, later=False),
            },
            "measure": {
                "split": "test",  # test | validation: tune on validation alone
                "generated_only": "every",  # never | first | every: classification accuracy score
                "batch": 600,
                "level": 0.95,  # of the intervals of fairness numbers
                "replicates": 1000,  # permutations behind a null band, draws behind an interval
                "neighbours": 5,  # k of precision, recall, density and coverage
            },
            "verdict": {  # on a loop's change of bias, from several seeds: to be fixed before they are run
                # What the change is held against: fresh_real | no_synthetic | oracle_resample.
                "control": "fresh_real",
                "metrics": (
                    "equal_opportunity_difference_mean",
                ),  # a family of m needs 2**seeds >= 40 m
                "margin": 0.0,  # mean contrasts nearer to 0 count as no change; 0: no such claim
                "alpha": 0.05,
            },
            "checkpoint": {"interval_steps": 500, "keep": 1},
            "parallel": {
                "processes": 1,  # that make the run together, each with its own devices
                "connect_seconds": 120.0,  # that they wait for each other at the start
                "cpu_devices": 2,  # of one process
                "nproc": 2,  # threads of the CPU backend
                "steps_per_dispatch": 0,  # 0: one on a CPU, up to ten on an accelerator
                "deterministic": True,
                # float32 | bfloat16: of activations; weights, statistics, losses and sums stay
                # float32
                "precision": "float32",
            },
            "log": {"every_steps": 50, "every_seconds": 10.0},
            "report": {"enabled": True},
        },
        convert_dict=True,
    ).lock()


def parse_arg(arg: str, *options: tuple[str, ...]) -> list[str]:
    """The argument of a config file, words with commas between: at most one of each of `options`.

    What is not named is the first of its options. UsageError on anything else.
    """
    words = [word for word in arg.split(",") if word]
    named = [[word for word in words if word in allowed] for allowed in options]
    if sum(map(len, named)) != len(words) or any(len(found) > 1 for found in named):
        lists = " and ".join(f"one of {' | '.join(allowed)}" for allowed in options) or "no words"
        raise UsageError(f"--config=FILE:{arg}: allowed after the colon are {lists}")
    return [
        found[0] if found else allowed[0] for found, allowed in zip(named, options, strict=True)
    ]


def _classifier() -> dict[str, Any]:
    """The fields of an image classifier."""
    return {
        "network": "resnet",  # resnet | resnet18 | resnet50 | vgg11 | vgg16 | lenet
        "stages": (2, 2, 2, 2),  # resnet: basic blocks per stage; 2-2-2-2 is ResNet-18
        "width": 64,  # channels of the first stage
        "layout": "small",  # small | imagenet: stem of ResNet and head of VGG, as torchvision has them
        "normalize": "unit",  # unit: pixels to [-1, 1] | imagenet: its mean and deviation
        "init_from": "",  # weights with torchvision's names, .safetensors or .pth
        "freeze": False,  # train the head alone, statistics of BatchNorm fixed
        "label_smoothing": 0.0,
        "augment": {
            "flip": False,  # left and right, probability one half
            "crop": 0,  # pixels of padding for a random crop
            "brightness": 0.0,  # jitter: factors drawn from 1 - x to 1 + x
            "contrast": 0.0,
            "saturation": 0.0,
            "hue": 0.0,  # turns drawn from -x to x of a full circle
        },
    }


def _training(
    batch: int, steps: int, learning_rate: float, ema_decay: float, later: bool = True
) -> dict[str, Any]:
    """The fields of a trained network; `later`: whether generations after 0 train it again."""
    again = {
        "later": {  # generations from 1 on
            "start": "scratch",  # scratch | previous: from the network of the generation before
            "steps": steps,
            "learning_rate": learning_rate,
        }
    }
    return {
        "batch": batch,
        "steps": steps,
        "learning_rate": learning_rate,
        "warmup_steps": 50,
        "weight_decay": 0.0,
        "clip_norm": 1.0,
        "adam_b2": 0.99,
        "ema_decay": ema_decay,  # 0: no averaging
        **(again if later else {}),
    }


CHOICES = {
    "data.colorize": ("none", *colorize.MODES),
    "data.bias": ("natural", "unbiased", "rho", "geometric", "per_class"),
    "data.placement": ("device", "host"),
    "data.group": ("rank", "mask_area"),
    "data.on_bad_image": ("refuse", "skip"),
    "pool.rule": (
        *("replace", "real_plus_latest", "accumulate"),
        *("accumulate_subsample", "substitute", "fresh"),
    ),
    "loop.label_source": ("condition", "previous", "frozen"),
    "loop.group_source": ("oracle", "condition", "annotator"),
    "loop.control": ("none", "no_synthetic", "fresh_real", "oracle_resample"),
    "diffusion.process": ("ddpm", "edm"),
    "diffusion.ddpm.schedule": ("linear", "cosine"),
    "diffusion.ddpm.prediction": ("eps", "v"),
    "diffusion.condition_on": ("label", "label_group"),
    "diffusion.later.start": ("scratch", "previous"),
    "sample.condition": ("uniform", "pool", "real"),
    "classifier.later.start": ("scratch", "previous"),
    **{
        f"{name}.{field}": allowed
        for name in ("classifier", "annotator")
        for field, allowed in {
            "network": ("resnet", "resnet18", "resnet50", "vgg11", "vgg16", "lenet"),
            "layout": ("small", "imagenet"),
            "normalize": ("unit", "imagenet"),
        }.items()
    },
    "measure.split": ("test", "validation"),
    "parallel.precision": ("float32", "bfloat16"),
    "verdict.control": ("fresh_real", "no_synthetic", "oracle_resample"),
    "measure.generated_only": ("never", "first", "every"),
}


# The measured biases that a verdict can be about.
BIASES = (
    *(
        "equal_opportunity_difference_mean",
        "equal_opportunity_difference_max",
        "equalized_odds_difference",
    ),
    *("demographic_parity_difference", "maximal_disparity", "macro_std", "aligned_contrast"),
    *("disparate_impact_ratio_mean", "disparate_impact_ratio_min"),
    *("worst_group_accuracy", "worst_subgroup_accuracy"),
)


POSITIVE = (
    *("loop.generations", "diffusion.ddpm.timesteps", "sample.count", "sample.steps"),
    *("sample.batch_per_device", "measure.batch", "checkpoint.interval_steps"),
    *("measure.replicates", "measure.neighbours"),
    *("classifier.width", "annotator.width", "data.ratio", "data.image_size", "data.holdout"),
    *("checkpoint.keep", "parallel.cpu_devices", "parallel.nproc"),
    *("parallel.processes", "parallel.connect_seconds"),
    *(
        "diffusion.unet.channels",
        "diffusion.unet.blocks",
        "diffusion.unet.heads",
        "diffusion.unet.stem",
    ),
    *(
        "diffusion.edm.sigma_data",
        "diffusion.edm.p_std",
        "diffusion.edm.sigma_min",
        "diffusion.edm.rho",
    ),
    *("log.every_steps", "log.every_seconds", "sample.temperature"),
    *(
        f"{net}.{field}"
        for net in ("diffusion", "classifier", "annotator")
        for field in ("batch", "steps", "learning_rate", "warmup_steps", "clip_norm")
    ),
    *(
        f"{net}.later.{field}"
        for net in ("diffusion", "classifier")
        for field in ("steps", "learning_rate")
    ),
)


SHARES = (
    *("data.rho", "data.ratio", "data.validation_share", "data.reserve_share", "pool.alpha"),
    *("diffusion.label_dropout", "diffusion.unet.dropout"),
    *("classifier.label_smoothing", "annotator.label_smoothing"),
    *(
        f"{net}.{field}"
        for net in ("diffusion", "classifier", "annotator")
        for field in ("ema_decay", "adam_b2")
    ),
)


def classifiers(config: ConfigDict) -> tuple[str, ...]:
    """The sections of the classifiers that a run trains."""
    return (
        ("classifier", "annotator") if config.loop.group_source == "annotator" else ("classifier",)
    )


def check(config: ConfigDict) -> None:
    """Raises UsageError in one line naming field, value and what is allowed."""
    values = dict(_leaves(config))
    for field, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            _refuse(field, value, "finite numbers")
    if not 0 <= config.seed < 2**32:
        _refuse("seed", config.seed, "0 to 2**32 - 1")
    for field, allowed in CHOICES.items():
        if values[field] not in allowed:
            _refuse(field, values[field], " | ".join(allowed))
    for field in POSITIVE:
        if not values[field] > 0:
            _refuse(field, values[field], "numbers above 0")
    for field in SHARES:
        if not 0 <= values[field] <= 1:
            _refuse(field, values[field], "0 to 1")
    for section, field in (("measure", "level"), ("verdict", "alpha")):
        if not 0 < config[section][field] < 1:
            _refuse(f"{section}.{field}", config[section][field], "numbers between 0 and 1")
    if config.verdict.margin < 0:
        _refuse("verdict.margin", config.verdict.margin, "0 and more")
    for metric in config.verdict.metrics:
        if metric not in BIASES:
            _refuse("verdict.metrics", config.verdict.metrics, " | ".join(BIASES))
    _check_data(config)
    _check_control(config)
    _check_generator(config)
    _check_steps(config)


def _check_data(config: ConfigDict) -> None:
    data, source = config.data, config.data.source
    if source not in dataset.SOURCES and not source.startswith(TFDS):
        _refuse("data.source", source, " | ".join((*dataset.SOURCES, f"{TFDS}<name>")))
    if data.validation_share + data.reserve_share >= 1:
        _refuse(
            "data.reserve_share", data.reserve_share, "below 1 together with data.validation_share"
        )
    if data.train_size < 0:
        _refuse("data.train_size", data.train_size, "0 and more")
    if data.bands < 2:
        _refuse("data.bands", data.bands, "2 and more")
    coloured = data.colorize != "none"
    if coloured and source in ("cifar20", "cifar100", "hardimagenet"):
        _refuse("data.colorize", data.colorize, f"none for data.source = {source}")
    if not coloured and source in dataset.DIGITS:
        _refuse("data.colorize", "none", f"{' | '.join(colorize.MODES)} for data.source = {source}")
    if coloured and data.bias == "natural":
        _refuse("data.bias", "natural", "the others where data.colorize gives images their groups")
    if not coloured and config.loop.group_source == "oracle":
        _refuse("loop.group_source", "oracle", "annotator | condition where data.colorize = none")


def _check_control(config: ConfigDict) -> None:
    control, of = config.loop.control, config.loop.control_of
    if (control == "oracle_resample") != bool(of):
        allowed = "a workdir" if not of else "'' unless loop.control = oracle_resample"
        _refuse("loop.control_of", repr(of), allowed)
    if control in ("fresh_real", "oracle_resample") and config.pool.rule == "fresh":
        _refuse("loop.control", control, "none | no_synthetic where pool.rule = fresh")


def _check_generator(config: ConfigDict) -> None:
    net, sample = config.diffusion.unet, config.sample
    for field, values in (
        ("diffusion.unet.multipliers", net.multipliers),
        *((f"{name}.stages", config[name].stages) for name in ("classifier", "annotator")),
    ):
        if not values or not all(isinstance(value, int) and value > 0 for value in values):
            _refuse(field, values, "one whole number above 0, or several")
    sides = [config.data.image_size // net.stem // 2**i for i in range(len(net.multipliers))]
    if config.data.image_size % (net.stem * 2 ** (len(net.multipliers) - 1)):
        _refuse(
            "diffusion.unet.multipliers",
            net.multipliers,
            f"as many levels as data.image_size = {config.data.image_size}, "
            f"folded by diffusion.unet.stem = {net.stem}, can be halved for",
        )
    for side in net.attention:
        if side not in sides:
            _refuse(
                "diffusion.unet.attention",
                net.attention,
                f"sides of this net's feature maps, {sides}",
            )
    if any(net.channels * m % net.heads for m in net.multipliers):
        _refuse(
            "diffusion.unet.heads",
            net.heads,
            f"divisors of diffusion.unet.channels = {net.channels}",
        )
    samplers = {"ddpm": ("ddim", "ancestral"), "edm": ("euler", "heun")}[config.diffusion.process]
    if sample.sampler not in samplers:
        _refuse(
            "sample.sampler",
            sample.sampler,
            f"{' | '.join(samplers)} for diffusion.process = {config.diffusion.process}",
        )
    if config.diffusion.process == "ddpm" and sample.steps > config.diffusion.ddpm.timesteps:
        _refuse("sample.steps", sample.steps, f"up to {config.diffusion.ddpm.timesteps} timesteps")
    if config.diffusion.edm.sigma_max <= config.diffusion.edm.sigma_min:
        _refuse(
            "diffusion.edm.sigma_max",
            config.diffusion.edm.sigma_max,
            "more than diffusion.edm.sigma_min",
        )
    if sample.guidance and not config.diffusion.label_dropout:
        _refuse("sample.guidance", sample.guidance, "0 where diffusion.label_dropout = 0")
    if sample.guidance < -1:
        _refuse("sample.guidance", sample.guidance, "-1 and more")
    if config.loop.group_source == "condition" and config.diffusion.condition_on != "label_group":
        _refuse(
            "loop.group_source",
            "condition",
            "oracle | annotator where diffusion.condition_on = label",
        )


def steps_per_dispatch(config: ConfigDict, platform: str) -> int:
    """Training steps in one program: as configured or, of 0, what suits a platform (`cpu`, `gpu`, `tpu`).

    A step of a small network is over before the host has sent the next one. On a CPU a loop in a
    program costs more than that.
    """
    asked = config.parallel.steps_per_dispatch
    if asked or platform == "cpu":
        return asked or 1
    return max(
        k for k in range(1, 11) if all(steps % k == 0 for steps in _step_counts(config).values())
    )


def _step_counts(config: ConfigDict) -> dict[str, int]:
    """By field, the numbers of steps that must be whole numbers of dispatches."""
    counts = {"checkpoint.interval_steps": config.checkpoint.interval_steps}
    if "annotator" in classifiers(config):
        counts["annotator.steps"] = config.annotator.steps
    for name in ("diffusion", "classifier"):
        counts |= {
            f"{name}.steps": config[name].steps,
            f"{name}.later.steps": config[name].later.steps,
        }
    return counts


def _check_steps(config: ConfigDict) -> None:
    k = config.parallel.steps_per_dispatch
    if k < 0:
        _refuse("parallel.steps_per_dispatch", k, "0 (by platform) and more")
    for field, steps in _step_counts(config).items():
        if k and steps % k:
            _refuse(field, steps, f"multiples of parallel.steps_per_dispatch = {k}")


def check_devices(config: ConfigDict, devices: int) -> None:
    """Raises UsageError where a batch cannot be split over the devices at hand."""
    for section in ("diffusion", *classifiers(config), "measure"):
        if config[section].batch % devices:
            _refuse(
                f"{section}.batch", config[section].batch, f"multiples of the {devices} devices"
            )


def _leaves(config: ConfigDict, prefix: str = ""):
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _refuse(field: str, value: Any, allowed: str) -> None:
    raise UsageError(f"{field} = {value}: allowed are {allowed}")
