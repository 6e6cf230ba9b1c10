"""The pre-registered study: loops on coloured MNIST, three pool rules, two biases, eight seeds.

Plan: docs/analysis_plan.md. Results: docs/results.md. Data: MNIST at 8 pixels in ten colours; each
seed trains on 1,000 digits that no other seed has, and is tested on 10,000 others, each in every
colour. `biased`: each digit has its own colour with probability 0.5; `unbiased`: every colour as
often. The generator is conditioned on the digit and chooses the colour. It sees 128,000 training
images in generation 0 and is fine-tuned on 19,200 in each of the five later ones, and makes 400
images per generation. Every classifier is trained for 300 steps.

`sweep(out)` lists generations 0 (`zero-*`), which all arms of a seed share, the loops, and the
controls, which train classifiers alone. `curve(out)` lists classifiers of real images of many sizes
and compositions, and of other seeds, for the forecast. `ablation(out)` repeats the loop under
`replace` with other numbers of steps.

All runs took 13 hours in their phases, two at a time on two cores of shared AMD EPYC servers.

    python -m selfloop_jax.sweep configs/mnist_study.py --lists=sweep,curve,ablation
    python -m selfloop_jax.main --config=configs/mnist_study.py:replace,biased    # one arm
    python -m selfloop_jax.main --config=configs/mnist_study.py:tiny              # a first look
"""

from configs import common
from selfloop_jax import config as configs

RULES = ("accumulate", "replace", "real_plus_latest")


BIASES = ("biased", "unbiased")


SEEDS = range(8)


# Of `curve`: training images, P(group | class), seeds.
SIZES = (200, 400, 1_000, 2_500)
RHOS = (0.1, 0.5, 0.9)
KEPT = (2, 5)  # colours of a class, equally frequent; it has no image of the others
CURVE_SEEDS = (100, 101)


# Of `ablation`: what differs from the loop under `replace`; the first is for as many epochs on the
# 400 generated images as on the 1,000 real ones.
ABLATIONS = {
    "epochs": {"classifier.later.steps": 120},
    "classifier_steps": {"classifier.later.steps": 600},
    "generator_steps": {"diffusion.later.steps": 600},
    "sampler_steps": {"sample.steps": 30},
}
ABLATION_SEEDS = range(2)


def get_config(arg="accumulate,biased"):
    rule, bias, tiny = configs.parse_arg(arg, RULES, BIASES, common.TINY)
    config = configs.default()
    config.data.source = "mnist"
    config.data.image_size = 8
    config.data.colorize = "foreground"
    config.data.bias.kind = "rho"
    config.data.bias.rho = {"biased": 0.5, "unbiased": 0.1}[bias]
    config.data.train_size = 1_000
    config.data.reserve_share = 0.05
    config.pool.rule = rule
    config.loop.generations = 6
    common.small_ddpm(config, steps=2000, later_steps=300)
    config.diffusion.batch = 64
    config.sample.count = 400
    config.sample.batch_per_device = 200
    common.small_resnet(config, "classifier", steps=300)
    config.measure.batch = 1_000
    config.measure.generated_only = "first"
    config.measure.replicates = 200
    config.verdict.metrics = ("equal_opportunity_difference_mean",)
    config.verdict.margin = 0.05
    # Two runs at a time make better use of two cores than one run on both.
    config.parallel.cpu_devices = 1
    config.parallel.nproc = 1
    if tiny:
        common.tiny(config)
    return config


def sweep(out):
    """Stages of runs (name, argument, overrides); a stage needs runs of the stages before it.

    Seed after seed, so that a part of the study has all arms of its seeds.
    """
    for seed in SEEDS:
        yield [(f"zero-{bias}-{seed}", f"accumulate,{bias}", _zero(seed)) for bias in BIASES]
        loops, controls = [], []
        for bias in BIASES:
            shared = {"seed": seed, "loop.branch_from": f"{out}/zero-{bias}-{seed}"}
            loops += [(f"{rule}-{bias}-{seed}", f"{rule},{bias}", shared) for rule in RULES]
            # The real images alone are the same under every rule that keeps them.
            kinds = [("no_synthetic", "accumulate", {})]
            kinds += [(kind, "replace", {}) for kind in ("fresh_real", "neutral_drift")]
            again = {"loop.control_of": f"{out}/replace-{bias}-{seed}"}
            kinds += [("oracle_resample", "replace", again)]
            controls += [
                (
                    f"{kind}-{bias}-{seed}",
                    f"{rule},{bias}",
                    shared | {"loop.control": kind} | other,
                )
                for kind, rule, other in kinds
            ]
        yield loops
        yield controls


def curve(out):
    """Stages of the side study: classifiers alone, each of one set of real images."""
    alone = {"loop.generations": 1, "loop.control": "no_synthetic"}
    shares = {f"rho_{rho}": {"data.bias.rho": rho} for rho in RHOS}
    for kept in KEPT:
        rows = tuple(tuple(_share(c, g, kept) for g in range(10)) for c in range(10))
        shares[f"kept_{kept}"] = {"data.bias.kind": "per_class", "data.bias.per_class": rows}
    yield [
        (
            f"curve-{name}-{size}-{seed}",
            "accumulate,biased",
            {"seed": seed, "data.train_size": size} | alone | share,
        )
        for seed in CURVE_SEEDS
        for size in SIZES
        for name, share in shares.items()
    ]


def ablation(out):
    """Stages of the ablation: the biased loop under `replace`, and the control where it differs."""
    runs = []
    for seed in ABLATION_SEEDS:
        for name, other in ABLATIONS.items():
            # Samples of other steps make another generation 0.
            zero = (
                {} if name == "sampler_steps" else {"loop.branch_from": f"{out}/zero-biased-{seed}"}
            )
            shared = {"seed": seed} | zero | other
            runs.append((f"{name}-replace-biased-{seed}", "replace,biased", shared))
            if "classifier.later.steps" in other:
                control = shared | {"loop.control": "fresh_real"}
                runs.append((f"{name}-fresh_real-biased-{seed}", "replace,biased", control))
    yield runs


def _zero(seed):
    return {"seed": seed, "loop.generations": 1}


def _share(c, g, kept):
    """P(group g | class c) of `kept` colours from that of the class on."""
    return 1 / kept if (g - c) % 10 < kept else 0.0
