"""Blocks that configs share: networks, how they are trained, and `tiny` for a first look."""

from ml_collections import ConfigDict

TINY = ("", "tiny")  # an option of `parse_arg`: no word, or this one


def small_ddpm(config: ConfigDict, steps: int, later_steps: int) -> None:
    """A fine-tuned generator for 8-pixel images, which two CPU cores train in minutes."""
    config.diffusion.process = "ddpm"
    config.diffusion.unet.channels = 16
    config.diffusion.unet.multipliers = (1, 2)
    config.diffusion.steps = steps
    config.diffusion.learning_rate = 1e-2
    config.diffusion.later.start = "previous"
    config.diffusion.later.steps = later_steps
    config.diffusion.later.learning_rate = 3e-3


def small_resnet(config: ConfigDict, *names: str, steps: int) -> None:
    """A ResNet of three blocks for 8-pixel images, for the classifiers of these names."""
    for name in names:
        config[name].network = "resnet"
        config[name].stages = (1, 1, 1)
        config[name].width = 16
        config[name].learning_rate = 3e-3
        config[name].steps = steps
    retrain_alike(config)


def edm_32(config: ConfigDict) -> None:
    """A fine-tuned generator for 32-pixel images and one GPU: EDM (Karras et al. 2022)."""
    config.diffusion.unet.channels = 64
    config.diffusion.unet.multipliers = (1, 2, 2)
    config.diffusion.unet.blocks = 2
    config.diffusion.unet.attention = (16,)
    config.diffusion.unet.heads = 2
    config.diffusion.steps = 20_000
    config.diffusion.learning_rate = 4e-4
    config.diffusion.later.start = "previous"
    config.diffusion.later.steps = 5_000
    config.diffusion.later.learning_rate = 2e-4


def ho_ddpm(config: ConfigDict) -> None:
    """The network, process and optimizer of Ho et al. 2020 for CIFAR-10, appendix B."""
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
    config.diffusion.learning_rate = 2e-4
    config.diffusion.warmup_steps = 5_000
    config.diffusion.ema_decay = 0.9999
    config.diffusion.adam_b2 = 0.999
    config.diffusion.augment.flip = True


def resnet(config: ConfigDict, network: str, steps: int, crop: int) -> None:
    """A ResNet of He et al. 2016 for classifier and annotator, with padded random crops."""
    for section in (config.classifier, config.annotator):
        section.network = network
        section.steps = steps
        section.augment.crop = crop
    retrain_alike(config)


def flip_and_decay(config: ConfigDict) -> None:
    """Mirrored images and weight decay for classifier and annotator: for photographs."""
    for section in (config.classifier, config.annotator):
        section.augment.flip = True
        section.weight_decay = 0.05


def retrain_alike(config: ConfigDict) -> None:
    """The classifiers of all generations are trained for as many steps at the same rate."""
    config.classifier.later.steps = config.classifier.steps
    config.classifier.later.learning_rate = config.classifier.learning_rate


def tiny(config: ConfigDict) -> None:
    """Shrinks networks, steps and counts: from data to report in minutes on two cores.

    The data stay as they are, and the numbers mean nothing: it shows that all works.
    """
    config.loop.generations = 2
    config.diffusion.unet.channels = 8
    config.diffusion.unet.multipliers = (1, 2)
    config.diffusion.unet.blocks = 1
    config.diffusion.unet.attention = ()
    config.diffusion.unet.heads = 1
    config.diffusion.batch = 16
    config.diffusion.steps = 40
    config.diffusion.later.steps = 20
    config.sample.count = 100
    config.sample.steps = 4
    config.sample.batch_per_device = 25
    for section in (config.classifier, config.annotator):
        section.network = "resnet"
        section.stages = (1, 1)
        section.width = 8
        section.batch = 32
        section.steps = 40
    retrain_alike(config)
    config.measure.replicates = 100
    config.checkpoint.interval_steps = 20
    config.log.every_steps = 10
    config.parallel.precision = "float32"  # bfloat16 is slow on a CPU
