"""Subgroup bias of loops on real digits: three pool rules, two biases, six seeds, controls.

Claim: docs/results.md, and no more than the verdicts there. Data: 1,000 genuine MNIST digits
(`mnist5k`) at 8 pixels in ten colours: `biased`, each digit's own colour with probability 0.5;
`unbiased`, every colour as often. Tested on 1,000 other digits, each in every colour. The generator
sees 256,000 training images in generation 0 and is fine-tuned on 38,400 in each of the four later
ones; it is conditioned on the digit and chooses the colour. It makes 400 images per generation, so
that the held-out digits, 1,000 of the reserve and 1,500 that training leaves out, suffice for every
control.

`sweep(out)` lists the runs: for each bias and seed one generation 0 (`zero-*`), which all arms of
the seed share; the loops; the controls, which train classifiers alone. `response(out)` lists the
side study that the forecast rests on: other seeds, other initial biases. `samplers(out)` repeats
one loop under other solvers and numbers of steps, to ask whether its bias comes from sampling.

A generation 0 took 100 s, a loop's four later ones 220 to 450 s, a control 75 to 100 s, each on one
core of a shared AMD EPYC server with other programs running: some hours in all, two at a time.

    python -m selfloop_jax.sweep configs/digits_study.py                           # all runs
    python -m selfloop_jax.main --config=configs/digits_study.py:replace,biased    # one arm
    python -m selfloop_jax.main --config=configs/digits_study.py:tiny              # a first look
"""

import itertools

from configs import common
from selfloop_jax import config as configs

RULES = ("accumulate", "replace", "real_plus_latest")


BIASES = ("biased", "unbiased")


SEEDS = range(6)


LEVELS = (0.15, 0.3, 0.5, 0.7)  # of the side study: initial shares of a digit's own colour


SIDE_SEEDS = (100, 101, 102, 103)


# Of `samplers`: solver, steps. The first is the default, the second what the config had before.
SAMPLERS = (("multistep", 15), ("ddim", 30), ("ddim", 100))


def get_config(arg="accumulate,biased"):
    rule, bias, tiny = configs.parse_arg(arg, RULES, BIASES, common.TINY)
    config = configs.default()
    config.data.source = "mnist5k"
    config.data.image_size = 8
    config.data.colorize = "foreground"
    config.data.bias.kind = "rho"
    config.data.bias.rho = {"biased": 0.5, "unbiased": 0.1}[bias]
    config.data.train_size = 1_000
    config.pool.rule = rule
    config.loop.generations = 5
    common.small_ddpm(config, steps=2000, later_steps=300)
    config.sample.count = 400
    config.sample.batch_per_device = 200
    common.small_resnet(config, "classifier", steps=300)
    config.measure.batch = 1_000
    config.measure.generated_only = "first"
    config.verdict.metrics = ("equal_opportunity_difference_mean",)
    config.verdict.margin = 0.05
    # Two runs at a time make better use of two cores than one run on both.
    config.parallel.cpu_devices = 1
    config.parallel.nproc = 1
    if tiny:
        common.tiny(config)
    return config


def sweep(out):
    """Stages of runs (name, argument, overrides); a stage needs runs of the stages before it."""
    for bias in BIASES:
        shared = {}  # by seed, what all runs but those of generation 0 override
        for seed in SEEDS:
            shared[seed] = {"seed": seed, "loop.branch_from": f"{out}/zero-{bias}-{seed}"}
        yield [
            (f"zero-{bias}-{seed}", f"accumulate,{bias}", {"seed": seed, "loop.generations": 1})
            for seed in SEEDS
        ]
        yield [
            (f"{rule}-{bias}-{seed}", f"{rule},{bias}", shared[seed])
            for seed in SEEDS
            for rule in RULES
        ]
        without = {"loop.control": "no_synthetic"}
        yield [
            (f"no_synthetic-{bias}-{seed}", f"accumulate,{bias}", shared[seed] | without)
            for seed in SEEDS
        ]
        controls = []
        for seed in SEEDS:
            for rule in RULES:
                arm = f"{rule}-{bias}-{seed}"
                fresh = {"loop.control": "fresh_real"}
                again = {"loop.control": "oracle_resample", "loop.control_of": f"{out}/{arm}"}
                controls += [
                    (f"fresh_real-{arm}", f"{rule},{bias}", shared[seed] | fresh),
                    (f"oracle_resample-{arm}", f"{rule},{bias}", shared[seed] | again),
                ]
        yield controls


def response(out):
    """Stages of the side study: the shares that generators make, the gaps that classifiers have."""
    points = [(level, seed) for seed in SIDE_SEEDS for level in LEVELS]
    yield [
        (f"side-{level}-{seed}", "accumulate,biased", _at(level, seed) | {"loop.generations": 1})
        for level, seed in points
    ]
    later = []
    for level, seed in points:
        for rule in ("replace", "real_plus_latest"):
            branch = {"loop.generations": 2, "loop.branch_from": f"{out}/side-{level}-{seed}"}
            later.append(
                (f"side-{rule}-{level}-{seed}", f"{rule},biased", _at(level, seed) | branch)
            )
    yield later


def samplers(out):
    """Stages of the ablation: `replace` in the biased half, two seeds, and its control."""
    zeros, loops, controls = [], [], []
    for seed, (sampler, steps) in itertools.product(SEEDS[:2], SAMPLERS):
        run = f"replace-biased-{seed}"
        zero = f"zero-biased-{seed}"
        own = {"seed": seed}
        if (sampler, steps) == SAMPLERS[0]:
            # The runs that `sweep` lists as well. The control trains classifiers alone, so it is
            # the same under every sampler.
            shared = own | {"loop.branch_from": f"{out}/{zero}", "loop.control": "fresh_real"}
            controls.append((f"fresh_real-{run}", "replace,biased", shared))
        else:
            own |= {"sample.sampler": sampler, "sample.steps": steps}
            run, zero = (f"{sampler}_{steps}-{name}" for name in (run, zero))
        zeros.append((zero, "accumulate,biased", own | {"loop.generations": 1}))
        loops.append((run, "replace,biased", own | {"loop.branch_from": f"{out}/{zero}"}))
    yield zeros
    yield [*loops, *controls]


def _at(level, seed):
    return {"seed": seed, "data.bias.rho": level}
