"""Colorized MNIST: the loop on coloured digits, ten classes crossed with ten colours.

Claim: at 8 pixels the generated digits are good enough to train on (`unbiased`, test split, seed 0:
a classifier trained on generation 0's digits alone reaches 0.889 of the accuracy that real ones
give), and the bias of the training images shows in the gaps (mean equal opportunity difference
0.726, `unbiased` 0.085). docs/results.md has both. Data: `mnist5k` (the default), 5,000 genuine
MNIST digits that a package carries, at 8 pixels; `full`, the 60,000 of MNIST at 32 pixels by TFDS,
downloaded once (12 MB) or read from `data.archive_dir`. The stroke has one of the ten colours of
Biased-MNIST (Bahng et al. 2020): `unbiased`, every colour as often in every digit; `biased`, each
digit's own colour with probability 0.9. Held-out digits come in every colour. Pools accumulate;
later generators are fine-tuned.

`mnist5k` took 338 s and 1.3 GiB, with a former solver of more evaluations, on two cores of a busy
shared AMD EPYC server; `full` is for one GPU of 16 GB and up; not yet run. By the FLOPs that
`benchmarks.lowering` counts it takes 11 minutes at 40 % of an H100's 800 TFLOP/s, which networks
of this size do not reach.

    python -m selfloop_jax.main --config=configs/colormnist.py                 # mnist5k,biased
    python -m selfloop_jax.main --config=configs/colormnist.py:mnist5k,unbiased
    python -m selfloop_jax.main --config=configs/colormnist.py:full,biased     # for one GPU
    python -m selfloop_jax.main --config=configs/colormnist.py:tiny            # a first look
"""

from configs import common
from selfloop_jax import config as configs


def get_config(arg="mnist5k,biased"):
    sizes, biases = ("mnist5k", "full"), ("biased", "unbiased")
    size, bias, tiny = configs.parse_arg(arg, sizes, biases, common.TINY)
    config = configs.default()
    config.data.colorize = "foreground"
    config.data.bias.kind = {"biased": "rho", "unbiased": "unbiased"}[bias]
    config.data.bias.rho = 0.9
    config.pool.rule = "accumulate"
    config.measure.batch = 1_000
    {"mnist5k": _mnist5k, "full": _full}[size](config)
    if tiny:
        common.tiny(config)
    return config


def _mnist5k(config):
    """The quickstart's networks, somewhat wider."""
    config.data.source = "mnist5k"
    config.data.image_size = 8
    config.loop.generations = 2
    common.small_ddpm(config, steps=1500, later_steps=500)
    config.diffusion.unet.channels = 24
    config.diffusion.learning_rate = 5e-3
    config.diffusion.later.learning_rate = 2e-3
    config.sample.count = 2_500
    config.sample.batch_per_device = 250
    common.small_resnet(config, "classifier", "annotator", steps=600)


def _full(config):
    config.data.source = "mnist"
    config.data.image_size = 32
    config.loop.generations = 10
    common.edm_32(config)
    config.diffusion.batch = 256
    config.sample.count = 42_000
    config.sample.batch_per_device = 1_000
    common.resnet(config, "resnet18", steps=2_000, crop=2)
    config.checkpoint.interval_steps = 1_000
    config.log.every_steps = 100
    config.parallel.precision = "bfloat16"
