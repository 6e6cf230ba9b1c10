"""Your own images: the loop on a folder. docs/your_data.md goes from the folder to the report.

Claim: none, it depends on the images. Data: `data.folder.dir` with train/ and test/, each with a
metadata.csv of file_name, label and perhaps group, or with one folder a class. The composition is
the images' own (`natural`); `unbiased` makes the groups of each class equally frequent by leaving
images out, `biased` gives each class one group at a share of 0.9. A classifier of groups, trained
on the real images (`annotator`), gives generated images their groups. Training does not mirror
images: switch `augment.flip` on where left and right mean nothing.

`large`, the default: 32 pixels, for one GPU of 8 GB and up; not yet run on one. By the FLOPs that
`benchmarks.lowering` counts it takes 3 minutes at 40 % of an H100's 800 TFLOP/s, which networks of
this size do not reach. `small`: 8 pixels, for a laptop's CPU; the example of docs/your_data.md took
3 minutes and 1.7 GiB on two cores of a shared AMD EPYC server.

    python -m selfloop_jax.main --config=configs/folder.py --config.data.folder.dir=my_images
    ... --config=configs/folder.py:small,unbiased --config.data.folder.dir=my_images
    ... --config=configs/folder.py:tiny --config.data.folder.dir=my_images     # a first look
"""

from configs import common
from selfloop_jax import config as configs


def get_config(arg="large,natural"):
    sizes, biases = ("large", "small"), ("natural", "biased", "unbiased")
    size, bias, tiny = configs.parse_arg(arg, sizes, biases, common.TINY)
    config = configs.default()
    config.data.source = "folder"
    config.data.colorize = "none"
    config.data.bias.kind = {"natural": "natural", "biased": "rho", "unbiased": "unbiased"}[bias]
    config.data.bias.rho = 0.9
    config.pool.rule = "accumulate"
    config.loop.group_source = "annotator"
    {"large": _large, "small": _small}[size](config)
    if tiny:
        common.tiny(config)
    return config


def _large(config):
    config.data.image_size = 32
    config.loop.generations = 4
    common.edm_32(config)
    config.sample.count = 1_000
    config.sample.batch_per_device = 250
    common.resnet(config, "resnet18", steps=2_000, crop=4)
    config.parallel.precision = "bfloat16"


def _small(config):
    config.data.image_size = 8
    config.loop.generations = 3
    common.small_ddpm(config, steps=800, later_steps=200)
    config.sample.count = 500
    config.sample.batch_per_device = 125
    common.small_resnet(config, "classifier", "annotator", steps=300)
