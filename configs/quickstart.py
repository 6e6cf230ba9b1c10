"""Four generations of a self-consuming loop on real handwritten digits, in minutes on a laptop."""

from selfloop_jax import config as configs


def get_config():
    config = configs.default()
    config.data.source = "digits"
    config.data.colorize = "two_colour"
    config.data.bias = "per_class"
    config.data.per_class = (0.3,) * 5 + (0.7,) * 5  # P(green | digit), after arXiv 2403.07857
    config.pool.rule = "accumulate"
    config.loop.generations = 4
    config.diffusion.unet.channels = 16
    config.diffusion.unet.multipliers = (1, 2)
    config.diffusion.steps = 1500
    config.diffusion.learning_rate = 3e-3
    config.diffusion.later.start = "previous"
    config.diffusion.later.steps = 400
    config.diffusion.later.learning_rate = 1e-3
    config.classifier.stages = (1, 1, 1)
    config.classifier.width = 16
    config.classifier.steps = 300
    config.classifier.later.steps = 300
    config.classifier.learning_rate = 3e-3
    config.classifier.later.learning_rate = 3e-3
    config.sample.count = 900
    return config
