"""CIFAR-20: the loop on CIFAR-100 with its 20 coarse classes, the five fine labels of each as nested groups.

Claim: none yet; not yet run on the real images (a machine without them cannot). Data: CIFAR-100 by
TFDS, downloaded once (161 MB) or taken from `data.archive_dir`: 35,000 training, 5,000 validation,
10,000 reserve and 10,000 test images of 32 pixels. Training images are 11,666 either way:
`unbiased`, every fine label as often; `biased`, the first fine label of each class makes up .6 of
it and the others .1 each. The generator knows the coarse class alone, so a drawn image's fine label
is told by a classifier of fine labels that is trained on the real images of generation 0 and then
frozen (`annotator`). Networks: the DDPM U-Net of Ho et al. 2020 (128 channels, 1-2-2-2, two blocks,
attention at 16), ResNet-18.

For one GPU of 16 GB and up; time: not yet measured. `--dry_run` prints sizes.

    python -m selfloop_jax.main --config=configs/cifar20.py            # biased
    python -m selfloop_jax.main --config=configs/cifar20.py:unbiased
"""

from selfloop_jax import config as configs


def get_config(arg="biased"):
    (bias,) = configs.parse_arg(arg, ("biased", "unbiased"))
    config = configs.default()
    config.data.source = "cifar20"
    config.data.image_size = 32
    config.data.colorize = "none"
    config.data.bias.kind = {"biased": "rho", "unbiased": "unbiased"}[bias]
    config.data.bias.rho = 0.6
    config.data.train_size = 11_666
    config.pool.rule = "accumulate"
    config.loop.generations = 5
    config.loop.group_source = "annotator"

    config.diffusion.process = "ddpm"
    config.diffusion.ddpm.schedule = "linear"
    config.diffusion.ddpm.prediction = "eps"
    config.diffusion.unet.channels = 128
    config.diffusion.unet.multipliers = (1, 2, 2, 2)
    config.diffusion.unet.blocks = 2
    config.diffusion.unet.attention = (16,)
    config.diffusion.unet.dropout = 0.1
    config.diffusion.unet.scale_shift = False
    config.diffusion.batch = 128
    config.diffusion.steps = 100_000
    config.diffusion.learning_rate = 2e-4
    config.diffusion.warmup_steps = 5_000
    config.diffusion.ema_decay = 0.9999
    config.diffusion.adam_b2 = 0.999
    config.diffusion.augment.flip = True
    config.diffusion.later.start = "previous"
    config.diffusion.later.steps = 20_000
    config.diffusion.later.learning_rate = 1e-4
    config.sample.count = 11_666
    config.sample.request = "real"
    config.sample.sampler = "ddim"
    config.sample.steps = 100
    config.sample.guidance = 0.0
    config.sample.batch_per_device = 500

    for section in (config.classifier, config.annotator):
        section.network = "resnet18"
        section.batch = 128
        section.steps = 12_000
        section.weight_decay = 0.05
        section.augment.flip = True
        section.augment.crop = 4
    config.classifier.later.steps = 12_000
    config.measure.batch = 1_000
    config.checkpoint.interval_steps = 2_000
    config.log.every_steps = 100
    return config
