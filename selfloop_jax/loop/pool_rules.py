"""The pool rules: which images generation g trains on. Pure functions of sets and an address.

Sources: `replace` and `fresh` as in MAD (arXiv 2307.01850), `accumulate` and `accumulate_subsample`
as in arXiv 2404.01413 and Collapse-or-Thrive, `substitute` as in arXiv 2404.03242.
"""

from collections.abc import Sequence

import numpy as np

from selfloop_jax.config import Config, PoolConfig, check_choice
from selfloop_jax.data.images import Images, concatenate
from selfloop_jax.errors import UsageError
from selfloop_jax.runtime import rng


def source_generations(section: PoolConfig, generation: int) -> range:
    """The generations whose images the pool of `generation` is made from."""
    everything = section.rule in ("accumulate", "accumulate_subsample")
    return range(0 if everything else max(0, generation - 1), generation)


def build(
    section: PoolConfig,
    address: rng.KeyPath,
    g: int,
    real: Images,
    reserve: Images,
    generated: Sequence[Images],
) -> Images:
    """The pool of generation g from the real images and, in order, the drawn sets of `needs(section, g)`.

    `address` is the run's, not the generation's. Without drawn sets, as in generation 0, the pool
    is real data only. UsageError on a shortage.
    """
    if section.rule == "accumulate_subsample":
        everything = concatenate([real, *generated])
        return _subset((*address, g, "subsample"), everything, section.budget, "pool.budget")
    if not generated:
        return real
    latest = generated[-1]
    if section.rule == "replace":
        return latest
    if section.rule == "real_plus_latest":
        return concatenate([real, latest])
    if section.rule == "accumulate":
        return concatenate([real, *generated])
    if section.rule == "substitute":
        return _substitute(address, g - 1, real, latest, section.alpha, section.match_group)
    return concatenate(
        [
            _fresh_real(address, reserve, section.n_real, g),
            _subset((*address, g, "generated"), latest, section.n_generated, "pool.n_generated"),
        ]
    )


def size(section: PoolConfig, generation: int, real: int, count: int) -> int:
    """Images in the pool of a generation: `real` training images, `count` drawn per generation."""
    if section.rule == "accumulate_subsample":
        return section.budget
    if not generation:
        return real
    return {
        "replace": count,
        "real_plus_latest": real + count,
        "accumulate": real + generation * count,
        "substitute": real,
        "fresh": section.n_real + section.n_generated,
    }[section.rule]


RULES = (
    *("replace", "real_plus_latest", "accumulate"),
    *("accumulate_subsample", "substitute", "fresh"),
)


def check(config: Config) -> None:
    """Raises UsageError where the pool rule is none."""
    check_choice("pool.rule", config.pool.rule, RULES)


def check_data(
    section: PoolConfig,
    address: rng.KeyPath,
    generations: int,
    real: Images,
    reserve: int,
    count: int,
) -> None:
    """Raises UsageError where a rule is sure to ask for more images than there will be."""
    if section.rule == "substitute" and generations > 1:
        swapped = int((rng.uniforms((*address, "swap"), real.id) < section.alpha).sum())
        if swapped > count:
            raise UsageError(
                f"pool.alpha = {section.alpha}: {swapped} images are to be swapped, allowed are up to "
                f"sample.count = {count}"
            )
    check_sizes(section, generations, len(real), reserve, count)


def check_sizes(section: PoolConfig, generations: int, real: int, reserve: int, count: int) -> None:
    """The part of `check_data` that needs only the numbers of real and reserve images."""
    if section.rule == "accumulate_subsample" and not 0 < section.budget <= real:
        raise UsageError(f"pool.budget = {section.budget}: allowed are 1 to the {real} real images")
    if section.rule == "fresh":
        needed = section.n_real * (generations - 1)
        if needed > reserve or section.n_real < 0:
            raise UsageError(
                f"pool.n_real = {section.n_real}: {generations - 1} generations need {needed} images, "
                f"the reserve has {reserve}"
            )
        if not 0 <= section.n_generated <= count or not section.n_real + section.n_generated:
            raise UsageError(
                f"pool.n_generated = {section.n_generated}: allowed are 0 to sample.count = {count}, "
                "and not 0 together with pool.n_real"
            )


def _subset(address: rng.KeyPath, images: Images, count: int, field: str) -> Images:
    """`count` images without replacement, in their old order."""
    if count > len(images):
        raise UsageError(f"{field} = {count}: allowed are up to the {len(images)} images at hand")
    return images.take(np.sort(rng.permutation(address, len(images))[:count]))


def _fresh_real(address: rng.KeyPath, reserve: Images, count: int, generation: int) -> Images:
    """Generation g's own stretch of the reserve: no image serves two generations."""
    if generation * count > len(reserve):
        raise UsageError(
            f"pool.n_real = {count}: generation {generation} needs {generation * count} images, "
            f"the reserve has {len(reserve)}"
        )
    order = rng.permutation((*address, "reserve"), len(reserve))
    return reserve.take(np.sort(order[(generation - 1) * count : generation * count]))


def unused_reserve(
    section: PoolConfig, address: rng.KeyPath, reserve: Images, generation: int
) -> Images:
    """The part of the reserve that no pool up to that of a generation has taken."""
    if section.rule != "fresh":
        return reserve
    order = rng.permutation((*address, "reserve"), len(reserve))
    return reserve.take(np.sort(order[generation * section.n_real :]))


def _substitute(
    address: rng.KeyPath,
    drawn_in: int,
    real: Images,
    latest: Images,
    alpha: float,
    match_group: bool,
) -> Images:
    """Real image i is swapped when u_i < alpha for one of generation `drawn_in` asked for under its label.

    u_i is keyed by the image's id alone, so the swapped sets are nested in alpha, and so are their
    stand-ins: within a label the image of the k-th smallest u takes the k-th generated image of a
    keyed order. With `match_group` the stand-in has the real image's group as well.
    """
    u = rng.uniforms((*address, "swap"), real.id)
    shuffled = rng.permutation((*address, drawn_in, "stand-in"), len(latest))
    offered = latest.condition[shuffled]
    wanted = real.label
    if match_group:
        base = int(max(latest.group.max(), real.group.max())) + 2
        offered = offered * base + latest.group[shuffled] + 1
        wanted = wanted * base + real.group + 1
    stand_in = np.full(len(real), -1)
    for cell in np.unique(wanted):
        swapped = np.flatnonzero((wanted == cell) & (u < alpha))
        swapped = swapped[np.argsort(u[swapped], kind="stable")]
        candidates = shuffled[offered == cell]
        if len(swapped) > len(candidates):
            raise UsageError(
                f"pool.alpha = {alpha}: {len(swapped)} images of one condition are to be swapped, "
                f"{len(candidates)} were generated: raise sample.count"
            )
        stand_in[swapped] = candidates[: len(swapped)]
    both = concatenate([real, latest])
    return both.take(np.where(stand_in >= 0, len(real) + stand_in, np.arange(len(real))))
