"""Colorized MNIST: the loop on coloured digits, ten classes crossed with ten colours.

Claim: at 8 pixels the digits drawn are good enough to train on (`unbiased`, test split, seed 0: a
classifier of generation 0's drawn digits reaches .911 of the accuracy after real ones), and the
bias of the training images shows in the gaps (mean equal opportunity difference .728, `unbiased`
.084). docs/results.md has both. Data: `mnist5k` (the default), 5,000 genuine MNIST digits that a
package carries, at 8 pixels; `full`, the 60,000 of MNIST at 32 pixels by TFDS, downloaded once (12
MB) or taken from `data.archive_dir`. The stroke has one of the ten colours of Biased-MNIST (Bahng
et al. 2020): `unbiased`, every colour as often in every digit; `biased`, each digit's own colour
with probability .9. Held-out digits come in every colour. Pools accumulate; later generators are
fine-tuned.

`mnist5k` took 338 s and 1.3 GiB on two cores of a busy shared AMD EPYC server; `full` is for one
GPU, its time not yet measured.

    python -m selfloop_jax.main --config=configs/colormnist.py                   # mnist5k,biased
    python -m selfloop_jax.main --config=configs/colormnist.py:mnist5k,unbiased
    python -m selfloop_jax.main --config=configs/colormnist.py:full,biased       # for one GPU
"""

from selfloop_jax import config as configs


def get_config(arg="mnist5k,biased"):
    size, bias = configs.parse_arg(arg, ("mnist5k", "full"), ("biased", "unbiased"))
    config = configs.default()
    config.data.colorize = "foreground"
    config.data.bias.kind = {"biased": "rho", "unbiased": "unbiased"}[bias]
    config.data.bias.rho = 0.9
    config.pool.rule = "accumulate"
    config.diffusion.later.start = "previous"
    if size == "mnist5k":
        _small(config)
    else:
        _full(config)
    return config


def _small(config):
    """The quickstart's networks, somewhat wider."""
    config.data.source = "mnist5k"
    config.data.image_size = 8
    config.loop.generations = 2
    config.diffusion.process = "ddpm"
    config.diffusion.unet.channels = 24
    config.diffusion.steps = 1500
    config.diffusion.learning_rate = 5e-3
    config.diffusion.later.steps = 500
    config.diffusion.later.learning_rate = 2e-3
    config.sample.count = 2500
    config.sample.sampler = "ddim"
    config.sample.steps = 30
    config.sample.batch_per_device = 250
    for section in (config.classifier, config.annotator):
        section.stages = (1, 1, 1)
        section.width = 16
        section.steps = 600
        section.learning_rate = 3e-3
    config.classifier.later.steps = 600
    config.classifier.later.learning_rate = 3e-3
    config.measure.batch = 1000


def _full(config):
    config.data.source = "mnist"
    config.data.image_size = 32
    config.loop.generations = 10
    config.diffusion.unet.channels = 64
    config.diffusion.unet.multipliers = (1, 2, 2)
    config.diffusion.unet.blocks = 2
    config.diffusion.unet.attention = (16,)
    config.diffusion.unet.heads = 2
    config.diffusion.batch = 256
    config.diffusion.steps = 20_000
    config.diffusion.learning_rate = 4e-4
    config.diffusion.later.steps = 5_000
    config.diffusion.later.learning_rate = 2e-4
    config.sample.count = 42_000
    config.sample.batch_per_device = 1_000
    for section in (config.classifier, config.annotator):
        section.network = "resnet18"
        section.steps = 2_000
        section.augment.crop = 2
    config.classifier.later.steps = 2_000
    config.measure.batch = 1_000
    config.checkpoint.interval_steps = 1_000
    config.log.every_steps = 100
