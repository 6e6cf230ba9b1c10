"""Hard ImageNet: the loop on 15 classes whose surroundings give them away (Moayeri et al. 2022).

Claim: none yet; not yet run on the real images (a machine without them cannot). Data: about 19,000
training and 750 validation images with a mask of the object each. Of `data.hardimagenet`,
`images_dir` is an ImageNet (only the 15 classes are read) or the 15-class image download;
`masks_dir` and `meta_dir` are folders of the published masks and meta files (a pickle that holds
more than plain containers, such as NumPy numbers, is refused: write it again with plain integers).
Groups: the half of each class that was ranked first by strength of its spurious cue, and the half
ranked last; 40 images per class and half, never trained on, are the test set. `unbiased` takes both
halves as often, `biased` nine of ten from the first, as many in all. Ablations and relative
foreground sensitivity are measured on the official validation images in every generation. The
generator is conditioned on the class alone; a classifier trained on the real images of generation 0
and then frozen (`annotator`) gives generated images their groups. Networks: a U-Net of 95M
parameters, smaller than ADM-64 (Dhariwal and Nichol 2021) because there are 6,000 training images
and not 1.3 million; at 128 pixels it folds 2x2 pixels into channels; ResNet-50, at 128 pixels with
the stem of torchvision.

Time: not yet measured. By the FLOPs that `benchmarks.lowering` counts (175 GFLOP for a training
image of the U-Net, 31 or 8 of the ResNet), at 40 % of an H100's 800 TFLOP/s, a seed takes about 2.4
hours at 64 pixels and 2.2 at 128. One card of 80 GB holds the batches; one of 40 GB does with
`--config.diffusion.microbatches=2`, one of 24 GB with 4 and at 64 pixels a batch of 96 for
`classifier` and `annotator`. 30,000 steps are 1,280 epochs of the real images: watch
`memorized_share`, which a run measures in every generation.

    data=--config.data.hardimagenet
    python -m selfloop_jax.main --config=configs/hardimagenet.py \
        $data.images_dir=DIR $data.masks_dir=DIR $data.meta_dir=DIR
    ... --config=configs/hardimagenet.py:128,unbiased                  # default: 64,biased
    ... --config=configs/hardimagenet.py:tiny                          # a first look, on a CPU
"""

from configs import common
from selfloop_jax import config as configs


def get_config(arg="64,biased"):
    side, bias, tiny = configs.parse_arg(arg, ("64", "128"), ("biased", "unbiased"), common.TINY)
    config = configs.default()
    config.data.source = "hardimagenet"
    config.data.image_size = int(side)
    config.data.colorize = "none"
    config.data.hardimagenet.group = "rank"
    config.data.bias.kind = {"biased": "per_class", "unbiased": "unbiased"}[bias]
    config.data.bias.per_class = ((0.9, 0.1),)
    config.data.train_size = 6_000
    config.pool.rule = "accumulate"
    config.loop.generations = 5
    config.loop.group_source = "annotator"

    config.diffusion.process = "edm"
    config.diffusion.unet.channels = 128
    config.diffusion.unet.multipliers = (1, 2, 3, 4)
    config.diffusion.unet.blocks = 2
    config.diffusion.unet.attention = (16, 8)
    config.diffusion.unet.heads = 4
    config.diffusion.unet.dropout = 0.15
    config.diffusion.unet.stem = int(side) // 64
    config.diffusion.batch = 256
    config.diffusion.steps = 30_000
    config.diffusion.learning_rate = 1e-4
    config.diffusion.warmup_steps = 1_000
    config.diffusion.ema_decay = 0.9999
    config.diffusion.adam_b2 = 0.999
    config.diffusion.augment.flip = True
    config.diffusion.later.start = "previous"
    config.diffusion.later.steps = 6_000
    config.diffusion.later.learning_rate = 5e-5
    config.sample.count = 6_000
    config.sample.batch_per_device = 64

    common.resnet(config, "resnet50", steps=6_000, crop=8)
    common.flip_and_decay(config)
    for section in (config.classifier, config.annotator):
        section.normalize = "imagenet"
        section.layout = {"64": "small", "128": "imagenet"}[side]
    config.measure.batch = 256
    config.checkpoint.interval_steps = 2_000
    config.log.every_steps = 100
    config.parallel.precision = "bfloat16"
    if tiny:
        common.tiny(config)
    return config
