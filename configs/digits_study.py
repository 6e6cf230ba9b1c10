"""The real study: does a loop change subgroup bias on real digits? Three pool rules, two biases, six seeds.

Claim: docs/results.md, and no more than the verdicts there. Data: 1,000 genuine MNIST digits
(`mnist5k`) at 8 pixels in ten colours: `biased`, each digit's own colour with probability .5;
`unbiased`, every colour as often. Tested on 1,000 other digits, each in every colour. The generator
sees 256,000 training images in generation 0 and is fine-tuned on 38,400 in each of the four later
ones; it is told the digit and chooses the colour. 400 images are drawn per generation, so that the
held-out digits, 1,000 of the reserve and 1,500 that training leaves out, suffice for every control.

`sweep(out)` lists the runs: for each bias and seed one generation 0 (`zero-*`), which all arms of
the seed share; the loops; the controls, which train classifiers alone. `response(out)` lists the
side study that the prediction rests on: other seeds, other initial biases.

A generation 0 took 100 s, a loop's four later ones 220 to 450 s, a control 75 to 100 s, each on one
core of a shared AMD EPYC server with other programs running: some hours in all, two at a time.

    python -m selfloop_jax.sweep configs/digits_study.py                                   # all runs
    python -m selfloop_jax.main --config=configs/digits_study.py:replace,biased            # one arm
"""

from selfloop_jax import config as configs

RULES = ("accumulate", "replace", "real_plus_latest")


BIASES = ("biased", "unbiased")


SEEDS = range(6)


LEVELS = (0.15, 0.3, 0.5, 0.7)  # initial shares of a digit's own colour in the side study


SIDE_SEEDS = (100, 101, 102, 103)


def get_config(arg="accumulate,biased"):
    rule, bias = configs.parse_arg(arg, RULES, BIASES)
    config = configs.default()
    config.data.source = "mnist5k"
    config.data.image_size = 8
    config.data.colorize = "foreground"
    config.data.bias.kind = "rho"
    config.data.bias.rho = {"biased": 0.5, "unbiased": 0.1}[bias]
    config.data.train_size = 1000
    config.pool.rule = rule
    config.loop.generations = 5

    config.diffusion.process = "ddpm"
    config.diffusion.unet.channels = 16
    config.diffusion.steps = 2000
    config.diffusion.learning_rate = 1e-2
    config.diffusion.later.start = "previous"
    config.diffusion.later.steps = 300
    config.diffusion.later.learning_rate = 3e-3
    config.sample.count = 400
    config.sample.sampler = "ddim"
    config.sample.steps = 30
    config.sample.batch_per_device = 200

    config.classifier.stages = (1, 1, 1)
    config.classifier.width = 16
    config.classifier.steps = 300
    config.classifier.learning_rate = 3e-3
    config.classifier.later.steps = 300
    config.classifier.later.learning_rate = 3e-3
    config.measure.batch = 1000
    config.measure.generated_only = "first"
    config.verdict.metrics = ("equal_opportunity_difference_mean",)
    config.verdict.margin = 0.05
    config.parallel.cpu_devices = (
        1  # two runs at a time make better use of two cores than one run on both
    )
    config.parallel.nproc = 1
    return config


def sweep(out):
    """Stages of runs; a run is (name, argument, overrides). What a stage needs, the stages before it made."""
    for bias in BIASES:
        seeds = [
            (seed, {"seed": seed, "loop.branch_from": f"{out}/zero-{bias}-{seed}"})
            for seed in SEEDS
        ]
        arms = [(rule, seed, shared) for seed, shared in seeds for rule in RULES]
        yield [
            (f"zero-{bias}-{s}", f"accumulate,{bias}", {"seed": s, "loop.generations": 1})
            for s in SEEDS
        ]
        yield [(f"{rule}-{bias}-{s}", f"{rule},{bias}", shared) for rule, s, shared in arms]
        yield [
            (
                f"no_synthetic-{bias}-{s}",
                f"accumulate,{bias}",
                shared | {"loop.control": "no_synthetic"},
            )
            for s, shared in seeds
        ]
        yield [
            (
                f"{control}-{rule}-{bias}-{s}",
                f"{rule},{bias}",
                shared
                | {"loop.control": control}
                | (
                    {"loop.control_of": f"{out}/{rule}-{bias}-{s}"}
                    if control == "oracle_resample"
                    else {}
                ),
            )
            for rule, s, shared in arms
            for control in ("fresh_real", "oracle_resample")
        ]


def response(out):
    """The side study, in stages like `sweep`: what generators draw, and what classifiers make of it."""
    points = [(level, seed) for seed in SIDE_SEEDS for level in LEVELS]
    yield [
        (
            f"side-{level}-{s}",
            "accumulate,biased",
            {"seed": s, "data.bias.rho": level, "loop.generations": 1},
        )
        for level, s in points
    ]
    yield [
        (
            f"side-{rule}-{level}-{s}",
            f"{rule},biased",
            {
                "seed": s,
                "data.bias.rho": level,
                "loop.generations": 2,
                "loop.branch_from": f"{out}/side-{level}-{s}",
            },
        )
        for level, s in points
        for rule in ("replace", "real_plus_latest")
    ]
