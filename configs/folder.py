"""Your own images: the loop on a folder. docs/your_data.md walks from the folder to the report.

Claim: none, it hangs on the images. Data: `data.folder.dir` with train/ and test/, each with a
metadata.csv of file_name, label and perhaps group, or with one folder a class. The composition is
the images' own (`natural`); `unbiased` makes the groups of each class equally frequent by leaving
images out, `biased` gives each class one group at a share of .9. The group of a drawn image is told
by a classifier of groups trained on the real images (`annotator`). Mirrored images are not trained
on: switch `augment.flip` on where left and right mean nothing.

`large`, the default: 32 pixels, for one GPU; time: not yet measured.
`small`: 8 pixels, for a laptop's CPU, where the walk of docs/your_data.md took
3 minutes and 1.7 GiB on two cores of a shared AMD EPYC server.

    python -m selfloop_jax.main --config=configs/folder.py --config.data.folder.dir=my_images
    python -m selfloop_jax.main --config=configs/folder.py:small,unbiased --config.data.folder.dir=my_images
"""

from selfloop_jax import config as configs


def get_config(arg="large,natural"):
    size, bias = configs.parse_arg(arg, ("large", "small"), ("natural", "biased", "unbiased"))
    config = configs.default()
    config.data.source = "folder"
    config.data.colorize = "none"
    config.data.bias.kind = {"natural": "natural", "biased": "rho", "unbiased": "unbiased"}[bias]
    config.data.bias.rho = 0.9
    config.pool.rule = "accumulate"
    config.loop.group_source = "annotator"
    config.diffusion.later.start = "previous"
    {"large": _large, "small": _small}[size](config)
    return config


def _small(config):
    config.data.image_size = 8
    config.loop.generations = 3
    config.diffusion.process = "ddpm"
    config.diffusion.unet.channels = 16
    config.diffusion.steps = 800
    config.diffusion.learning_rate = 1e-2
    config.diffusion.later.steps = 200
    config.diffusion.later.learning_rate = 3e-3
    config.sample.count = 500
    config.sample.sampler = "ddim"
    config.sample.steps = 30
    config.sample.batch_per_device = 125
    for section in (config.classifier, config.annotator):
        section.stages = (1, 1, 1)
        section.width = 16
        section.steps = 300
        section.learning_rate = 3e-3
    config.classifier.later.steps = 300
    config.classifier.later.learning_rate = 3e-3


def _large(config):
    config.data.image_size = 32
    config.loop.generations = 4
    config.diffusion.unet.channels = 64
    config.diffusion.unet.multipliers = (1, 2, 2)
    config.diffusion.unet.blocks = 2
    config.diffusion.unet.attention = (16,)
    config.diffusion.unet.heads = 2
    config.diffusion.steps = 20_000
    config.diffusion.learning_rate = 4e-4
    config.diffusion.later.steps = 5_000
    config.diffusion.later.learning_rate = 2e-4
    config.sample.count = 1_000
    config.sample.batch_per_device = 250
    for section in (config.classifier, config.annotator):
        section.network = "resnet18"
        section.steps = 2_000
        section.augment.crop = 4
    config.classifier.later.steps = 2_000
