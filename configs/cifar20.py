"""CIFAR-20: the loop on CIFAR-100's 20 coarse classes, with their fine labels as nested groups.

Claim: none is decided. `small`, three seeds at 16 pixels, gives numbers with intervals: recall
falls for all fine labels, most for the best (docs/results.md). Data: CIFAR-100 by TFDS, downloaded
once (161 MB) or read from `data.archive_dir`: 35,000 training, 5,000 validation, 10,000 reserve and
10,000 test images of 32 pixels. Training images are 11,666 either way: `unbiased`, every fine label
as often; `natural`, as they come, which is almost the same; `biased`, the first fine label of each
class makes up 0.6 of it and the other four 0.1 each. The generator is conditioned on the coarse
class alone, so a classifier of fine labels, trained on all 35,000 real images and then frozen
(`annotator`), gives generated images their groups. Networks: the DDPM U-Net of Ho et al. 2020 (128
channels, 1-2-2-2, two blocks, attention at 16 pixels), ResNet-18.

For one GPU of 16 GB and up; not yet run. Training the generators of a seed takes about 1.2 hours at
the speed that an earlier commit had on one H200 (docs/performance.md), the rest some minutes.
`--dry_run` prints sizes. `small` has 16 pixels and small networks, for two CPU cores: about 25
minutes for generation 0, 8 for a later one of the loop and 2 of its control, two runs at a time.
`sweep(out)` lists its loops and controls, for three seeds, natural and biased.

    python -m selfloop_jax.main --config=configs/cifar20.py            # biased
    python -m selfloop_jax.main --config=configs/cifar20.py:unbiased
    python -m selfloop_jax.sweep configs/cifar20.py            # `small`, three seeds, controls
    python -m selfloop_jax.main --config=configs/cifar20.py:tiny       # a first look, on a CPU
"""

from configs import common
from selfloop_jax import config as configs

SEEDS = range(3)


def get_config(arg="biased"):
    bias, size, tiny = configs.parse_arg(
        arg, ("biased", "unbiased", "natural"), ("", "small"), common.TINY
    )
    config = configs.default()
    config.data.source = "cifar20"
    config.data.colorize = "none"
    config.data.bias.kind = {"biased": "rho"}.get(bias, bias)
    config.data.bias.rho = 0.6
    config.data.train_size = 11_666
    config.pool.rule = "accumulate"
    config.loop.group_source = "annotator"
    config.diffusion.later.start = "previous"
    config.measure.batch = 1_000
    config.log.every_steps = 100
    {"": _full, "small": _small}[size](config)
    if tiny:
        common.tiny(config)
    return config


def _full(config):
    """For one GPU."""
    config.data.image_size = 32
    config.loop.generations = 5
    common.ho_ddpm(config)
    config.diffusion.steps = 100_000
    config.diffusion.later.steps = 20_000
    config.diffusion.later.learning_rate = 1e-4
    config.sample.count = 11_666
    config.sample.batch_per_device = 500
    common.resnet(config, "resnet18", steps=12_000, crop=4)
    common.flip_and_decay(config)
    config.checkpoint.interval_steps = 2_000
    config.parallel.precision = "bfloat16"


def _small(config):
    """For two CPU cores."""
    config.data.image_size = 16
    config.loop.generations = 3
    config.diffusion.process = "ddpm"
    config.diffusion.unet.channels = 16
    config.diffusion.unet.multipliers = (1, 2)
    # Squares of 2x2 pixels as channels: four times as many images in the same time.
    config.diffusion.unet.stem = 2
    config.diffusion.batch = 128
    config.diffusion.steps = 4_000
    config.diffusion.learning_rate = 4e-3
    config.diffusion.augment.flip = True
    config.diffusion.later.steps = 800
    config.diffusion.later.learning_rate = 1e-3
    config.sample.count = 8_000
    config.sample.batch_per_device = 250
    for section, steps in ((config.classifier, 800), (config.annotator, 2_400)):
        section.network = "resnet"
        section.stages = (1, 1, 1)
        section.width = 16
        section.steps = steps
        section.learning_rate = 3e-3
        section.augment.crop = 2
    common.flip_and_decay(config)
    common.retrain_alike(config)
    config.checkpoint.interval_steps = 500
    # Two runs at a time make better use of two cores than one run on both.
    config.parallel.cpu_devices = 1
    config.parallel.nproc = 1


def sweep(out):
    """Stages of `small`: loops, and the control that asks what including generated images does."""
    zeros, loops, controls = [], [], []
    for seed in SEEDS:
        for bias in ("natural", "biased"):
            argument, zero = f"{bias},small", f"zero-{bias}-{seed}"
            shared = {"seed": seed, "loop.branch_from": f"{out}/{zero}"}
            zeros.append((zero, argument, {"seed": seed, "loop.generations": 1}))
            loops.append((f"accumulate-{bias}-{seed}", argument, shared))
            without = shared | {"loop.control": "no_synthetic"}
            controls.append((f"no_synthetic-{bias}-{seed}", argument, without))
    yield zeros
    yield [*loops, *controls]
