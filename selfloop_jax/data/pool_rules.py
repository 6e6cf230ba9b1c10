"""Pool rules, one object each in POOL_RULES: which images generation g trains on.

A rule says all there is to say about itself: whose images it takes, how many, which, what it would
refuse, and how the shares of groups follow, for the forecast in `measure/dynamics.py`. All are pure
functions of sets and key paths. To add a rule, put an object into the table, in a config file of
your own if you like:

    class RealThenLatest(PoolRule):
        def capacity(self, section, g, real, count):
            return real if g % 2 else count

        def build(self, parts):
            return parts.real if parts.g % 2 else parts.latest

    POOL_RULES["real_then_latest"] = RealThenLatest()

This file lies in `data`, below `measure`, because a forecast needs the rules and reads them without
a loop.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from selfloop_jax.config import Config, PoolConfig, check_choice
from selfloop_jax.data.images import Images, concatenate
from selfloop_jax.errors import UsageError
from selfloop_jax.runtime import rng

# One number for all classes alike, or an array that broadcasts against shares.
FloatOrArray = float | np.ndarray


@dataclass(frozen=True)
class PoolInputs:
    """What the pool of generation g can be made of.

    generated: the sets of the rule's `sources(g)`, in order. `key_path` is the run's, not the
    generation's.
    """

    section: PoolConfig
    key_path: rng.KeyPath
    g: int
    real: Images
    reserve: Images
    generated: Sequence[Images]

    @property
    def latest(self) -> Images:
        """The images of the generation before."""
        return self.generated[-1]


@dataclass(frozen=True)
class Sizes:
    """Expected images per class in the sets that pools are made of.

    real: the training images; generated: those of one generation; class_share: of each class, the
    same in every set.
    """

    real: FloatOrArray
    generated: FloatOrArray
    class_share: FloatOrArray = 1.0


@dataclass(frozen=True)
class ShareInputs:
    """The same as shares P(group | class), of one group or of all.

    real: in the real set, a table [C,G], one group's shares [C] or one number; generated: likewise
    for all generations 0..g-1; reserve: likewise, or None where it is not known.
    """

    section: PoolConfig
    g: int
    real: FloatOrArray
    generated: Sequence[FloatOrArray]
    sizes: Sizes
    reserve: FloatOrArray | None = None

    @property
    def latest(self) -> FloatOrArray:
        """The share in the images of the generation before."""
        return self.generated[-1]

    @property
    def new_real(self) -> FloatOrArray:
        """The share among real images of the reserve; where it is not known, that of the real set.

        Both are samples of one population, and by class their shares can differ by 0.1 and more.
        """
        return self.real if self.reserve is None else self.reserve


class Noise(Protocol):
    """Random subsets of simulated loops, keyed by name; `dynamics.Noise` is one."""

    def binomial(self, share: FloatOrArray, n: FloatOrArray, *name: int | str) -> np.ndarray:
        """Share among n independent images."""

    def subset(
        self, share: FloatOrArray, n: FloatOrArray, of: FloatOrArray, *name: int | str
    ) -> np.ndarray:
        """Share among n of `of` images, taken without replacement."""


class PoolRule:
    """The training set of a generation g > 0.

    Generation 0, and a control without generated images, trains on the real images: the functions
    below this class see to that. The fields of section `pool` are those of the shipped rules; a
    rule of your own keeps its numbers itself.
    """

    keeps_real = True  # generated images come in addition to the real ones, not in their place
    takes_reserve = False  # takes real images from the reserve, as some controls do
    subsamples_real = False  # takes a subset even where there are real images alone

    def sources(self, g: int) -> range:
        """The generations whose images the pool is made of: by default the latest."""
        return range(g - 1, g)

    def capacity(self, section: PoolConfig, g: int, real: int, count: int) -> int:
        """The most images that the pool can have; it may get fewer than `count` generated ones."""
        raise NotImplementedError

    def build(self, parts: PoolInputs) -> Images:
        """The pool; UsageError where images are lacking."""
        raise NotImplementedError

    def check_sizes(
        self, section: PoolConfig, generations: int, real: int, reserve: int, count: int
    ) -> None:
        """Raises UsageError where these numbers of images cannot suffice."""

    def check(
        self,
        section: PoolConfig,
        key_path: rng.KeyPath,
        generations: int,
        real: Images,
        reserve: int,
        count: int,
    ) -> None:
        """Raises UsageError where the rule is sure to need more images than there will be."""
        self.check_sizes(section, generations, len(real), reserve, count)

    def unused_reserve(
        self, section: PoolConfig, key_path: rng.KeyPath, reserve: Images, g: int
    ) -> Images:
        """The part of the reserve that no pool up to that of generation g has taken."""
        return reserve

    @property
    def weighted(self) -> bool:
        """Whether the rule says how many images it takes of each set."""
        return type(self).weights is not PoolRule.weights

    @property
    def predictable(self) -> bool:
        """Whether the rule says how shares follow, so that its loops can be forecast."""
        return self.weighted or type(self).expected_share is not PoolRule.expected_share

    def weights(self, section: PoolConfig, g: int, sizes: Sizes) -> list[FloatOrArray]:
        """Expected images per class that the pool takes: real ones, then of generations 0..g-1."""
        raise NotImplementedError

    def expected_share(self, shares: ShareInputs) -> np.ndarray:
        """The expected share in the pool, of the shape of the real one: by default by `weights`.

        Exact where the classes' sizes in the pool are fixed; of random subsets, the expected sizes
        are the weights.
        """
        real = shares.new_real if self.takes_reserve else shares.real
        return mixed(
            [real, *shares.generated], self.weights(shares.section, shares.g, shares.sizes)
        )

    def sampled_share(self, shares: ShareInputs, noise: Noise) -> np.ndarray:
        """The same with the noise of the subsets that the rule takes: by default none."""
        return self.expected_share(shares)


class Replace(PoolRule):
    """The latest generated images alone: the fully synthetic loop of MAD (arXiv 2307.01850)."""

    keeps_real = False

    def capacity(self, section: PoolConfig, g: int, real: int, count: int) -> int:
        """The generated images."""
        return count

    def build(self, parts: PoolInputs) -> Images:
        """The latest set."""
        return parts.latest

    def weights(self, section: PoolConfig, g: int, sizes: Sizes) -> list[FloatOrArray]:
        """The latest set."""
        return [*[0.0] * g, sizes.generated]


class RealPlusLatest(PoolRule):
    """The real and the latest generated images: the synthetic augmentation loop of MAD."""

    def capacity(self, section: PoolConfig, g: int, real: int, count: int) -> int:
        """Both sets."""
        return real + count

    def build(self, parts: PoolInputs) -> Images:
        """One set after the other."""
        return concatenate([parts.real, parts.latest])

    def weights(self, section: PoolConfig, g: int, sizes: Sizes) -> list[FloatOrArray]:
        """Both sets."""
        return [sizes.real, *[0.0] * (g - 1), sizes.generated]


class Accumulate(PoolRule):
    """The real images and those of all generations (arXiv 2404.01413)."""

    def sources(self, g: int) -> range:
        """All generations before."""
        return range(g)

    def capacity(self, section: PoolConfig, g: int, real: int, count: int) -> int:
        """It grows by `count` in each generation."""
        return real + g * count

    def build(self, parts: PoolInputs) -> Images:
        """One set after the other."""
        return concatenate([parts.real, *parts.generated])

    def weights(self, section: PoolConfig, g: int, sizes: Sizes) -> list[FloatOrArray]:
        """All sets."""
        return [sizes.real, *[sizes.generated] * g]


class AccumulateSubsample(Accumulate):
    """`pool.budget` images of what `accumulate` would have (arXiv 2410.16713)."""

    subsamples_real = True

    def capacity(self, section: PoolConfig, g: int, real: int, count: int) -> int:
        """The budget."""
        return section.budget

    def build(self, parts: PoolInputs) -> Images:
        """A subset that is keyed by run and generation."""
        key_path = (*parts.key_path, parts.g, "subsample")
        return _subset(key_path, super().build(parts), parts.section.budget, "pool.budget")

    def check_sizes(
        self, section: PoolConfig, generations: int, real: int, reserve: int, count: int
    ) -> None:
        """Generation 0 has the real images alone."""
        if not 0 < section.budget <= real:
            raise UsageError(
                f"pool.budget = {section.budget}: must be from 1 to {real}, the number of real "
                "images"
            )

    def weights(self, section: PoolConfig, g: int, sizes: Sizes) -> list[FloatOrArray]:
        """Of all sets in proportion, as many as the budget has of a class."""
        every = super().weights(section, g, sizes)
        # A class that no set has is divided by 1.
        kept = section.budget * sizes.class_share / np.maximum(sum(every), 1)
        return [kept * weight for weight in every]

    def sampled_share(self, shares: ShareInputs, noise: Noise) -> np.ndarray:
        """With the noise of the subset."""
        sizes = shares.sizes
        # Numbers per class: the subset's expected size, and all images that it is taken from.
        kept = shares.section.budget * sizes.class_share
        everything = sizes.real + shares.g * np.asarray(sizes.generated)
        return noise.subset(expected_share(shares), kept, everything, "subset", shares.g)


class Substitute(PoolRule):
    """Real images, each replaced with probability `pool.alpha` by a generated one.

    By one of its label, as in arXiv 2404.03242; with `pool.match_group` of its group, too.
    """

    keeps_real = False

    def capacity(self, section: PoolConfig, g: int, real: int, count: int) -> int:
        """As many as there are real ones."""
        return real

    def build(self, parts: PoolInputs) -> Images:
        """Real image i is replaced where u_i < alpha, by an image requested under its label.

        u_i is keyed by the image's id alone, so the replaced sets are nested in alpha, and so are
        the replacements: within a label, the image of the k-th smallest u gets the k-th generated
        image of a keyed order.
        """
        alpha = parts.section.alpha
        real = parts.real
        latest = parts.latest
        # Keyed by the run and not by g: every generation replaces the same images.
        u = rng.uniforms((*parts.key_path, "swap"), real.id)
        # Keyed by the generation that made the candidates.
        shuffled = rng.permutation((*parts.key_path, parts.g - 1, "stand-in"), len(latest))
        offered = _requested_label(latest)[shuffled]
        wanted = real.label
        if parts.section.match_group:
            # One number for label and group; unknown groups match each other.
            base = int(max(latest.group.max(), real.group.max())) + 2
            offered = offered * base + latest.group[shuffled] + 1
            wanted = wanted * base + real.group + 1

        replacement = np.full(len(real), -1)
        for kind in np.unique(wanted):
            swapped = np.flatnonzero((wanted == kind) & (u < alpha))
            # By u, so that a larger alpha keeps the pairs of a smaller one and adds others.
            swapped = swapped[np.argsort(u[swapped], kind="stable")]
            candidates = shuffled[offered == kind]
            if len(swapped) > len(candidates):
                raise UsageError(
                    f"pool.alpha = {alpha}: {len(swapped)} images of one label are to be replaced, "
                    f"but {len(candidates)} were generated; raise sample.count"
                )
            replacement[swapped] = candidates[: len(swapped)]

        # Row i of the pool is real image i or its replacement, which comes after all real ones in
        # `both`.
        both = concatenate([real, latest])
        kept = np.arange(len(real))
        return both.take(np.where(replacement >= 0, len(real) + replacement, kept))

    def check(
        self,
        section: PoolConfig,
        key_path: rng.KeyPath,
        generations: int,
        real: Images,
        reserve: int,
        count: int,
    ) -> None:
        """Which images are replaced is known in advance."""
        # In all and not by label: which labels will be generated is not known yet.
        swapped = int((rng.uniforms((*key_path, "swap"), real.id) < section.alpha).sum())
        if generations > 1 and swapped > count:
            raise UsageError(
                f"pool.alpha = {section.alpha}: must replace at most sample.count = {count} "
                f"images, not {swapped}"
            )

    def weights(self, section: PoolConfig, g: int, sizes: Sizes) -> list[FloatOrArray]:
        """As many as there are real ones, alpha of them of the latest set."""
        alpha = section.alpha
        return [(1 - alpha) * sizes.real, *[0.0] * (g - 1), alpha * sizes.real]

    def expected_share(self, shares: ShareInputs) -> np.ndarray:
        """Matched groups leave the shares as they are."""
        if shares.section.match_group:
            return np.asarray(shares.real, np.float64)
        return super().expected_share(shares)

    def sampled_share(self, shares: ShareInputs, noise: Noise) -> np.ndarray:
        """With the noise of both subsets."""
        if shares.section.match_group:
            return self.expected_share(shares)
        n = np.asarray(shares.sizes.real, np.float64)
        # The same images are replaced in every generation, so the first two names lack g.
        swapped = n * noise.binomial(shares.section.alpha, n, "swapped")
        kept = noise.subset(shares.real, n - swapped, n, "kept")
        latest = noise.subset(shares.latest, swapped, shares.sizes.generated, "latest", shares.g)
        return mixed([kept, latest], [n - swapped, swapped])


class Fresh(PoolRule):
    """`pool.n_real` new real images, and `pool.n_generated` of the latest generated ones.

    The fresh data loop of MAD. Generation g takes its own slice of the reserve; slices are
    disjoint.
    """

    takes_reserve = True

    def capacity(self, section: PoolConfig, g: int, real: int, count: int) -> int:
        """Both parts."""
        return section.n_real + section.n_generated

    def build(self, parts: PoolInputs) -> Images:
        """One part after the other, each in its old order."""
        section = parts.section
        reserve = parts.reserve
        g = parts.g
        if g * section.n_real > len(reserve):
            raise UsageError(
                f"pool.n_real = {section.n_real}: generation {g} needs {g * section.n_real} "
                f"images, but the reserve has {len(reserve)}"
            )
        order = self._order(parts.key_path, reserve)
        # Slices of one order are disjoint, so no real image comes back in a later generation.
        new = reserve.take(np.sort(order[(g - 1) * section.n_real : g * section.n_real]))
        key_path = (*parts.key_path, g, "generated")
        latest = _subset(key_path, parts.latest, section.n_generated, "pool.n_generated")
        return concatenate([new, latest])

    def check_sizes(
        self, section: PoolConfig, generations: int, real: int, reserve: int, count: int
    ) -> None:
        """The reserve must last for all generations."""
        # Generation 0 takes nothing from the reserve.
        needed = section.n_real * (generations - 1)
        if needed > reserve or section.n_real < 0:
            raise UsageError(
                f"pool.n_real = {section.n_real}: {generations - 1} generations need {needed} "
                f"images, but the reserve has {reserve}"
            )
        if not 0 <= section.n_generated <= count or not section.n_real + section.n_generated:
            raise UsageError(
                f"pool.n_generated = {section.n_generated}: must be from 0 to sample.count = "
                f"{count}, and above 0 if pool.n_real = 0"
            )

    def unused_reserve(
        self, section: PoolConfig, key_path: rng.KeyPath, reserve: Images, g: int
    ) -> Images:
        """What follows generation g's slice."""
        return reserve.take(np.sort(self._order(key_path, reserve)[g * section.n_real :]))

    def _order(self, key_path: rng.KeyPath, reserve: Images) -> np.ndarray:
        """int64[N]: the order in which generations take from the reserve."""
        return rng.permutation((*key_path, "reserve"), len(reserve))

    def weights(self, section: PoolConfig, g: int, sizes: Sizes) -> list[FloatOrArray]:
        """The sizes of both parts; the real ones come from the reserve."""
        n_real, n_generated = (n * sizes.class_share for n in (section.n_real, section.n_generated))
        return [n_real, *[0.0] * (g - 1), n_generated]

    def sampled_share(self, shares: ShareInputs, noise: Noise) -> np.ndarray:
        """With the noise of both subsets."""
        n_real, *_, n_generated = self.weights(shares.section, shares.g, shares.sizes)
        new = noise.binomial(shares.new_real, n_real, "reserve", shares.g)
        of = shares.sizes.generated
        latest = noise.subset(shares.latest, n_generated, of, "latest", shares.g)
        return mixed([new, latest], [n_real, n_generated])


POOL_RULES: dict[str, PoolRule] = {
    "replace": Replace(),
    "real_plus_latest": RealPlusLatest(),
    "accumulate": Accumulate(),
    "accumulate_subsample": AccumulateSubsample(),
    "substitute": Substitute(),
    "fresh": Fresh(),
}


def source_generations(section: PoolConfig, g: int) -> range:
    """The generations whose images the pool of generation g is made of."""
    return POOL_RULES[section.rule].sources(g) if g else range(0)


def build(
    section: PoolConfig,
    key_path: rng.KeyPath,
    g: int,
    real: Images,
    reserve: Images,
    generated: Sequence[Images] | None,
) -> Images:
    """The pool of generation g.

    generated: the sets of `source_generations`, in order, of which a rule may ask for none; None in
    a control without generated images. Such a pool is the real images, or a subset, as is that of
    generation 0.
    """
    rule = POOL_RULES[section.rule]
    real_alone = g == 0 or generated is None
    if real_alone and not rule.subsamples_real:
        return real
    return rule.build(PoolInputs(section, key_path, g, real, reserve, generated or ()))


def capacity(section: PoolConfig, g: int, real: int, count: int) -> int:
    """The most images that the pool of generation g can have.

    Of `real` real images and up to `count` of each generation.
    """
    rule = POOL_RULES[section.rule]
    return rule.capacity(section, g, real, count) if g or rule.subsamples_real else real


def check(config: Config) -> None:
    """Raises UsageError where the rule is not in the table."""
    check_choice("pool.rule", config.pool.rule, POOL_RULES)


def check_data(
    section: PoolConfig,
    key_path: rng.KeyPath,
    generations: int,
    real: Images,
    reserve: int,
    count: int,
) -> None:
    """Raises UsageError where the rule is sure to need more images than there will be."""
    POOL_RULES[section.rule].check(section, key_path, generations, real, reserve, count)


def check_sizes(section: PoolConfig, generations: int, real: int, reserve: int, count: int) -> None:
    """The part of `check_data` that needs only the numbers of real and reserve images."""
    POOL_RULES[section.rule].check_sizes(section, generations, real, reserve, count)


def unused_reserve(section: PoolConfig, key_path: rng.KeyPath, reserve: Images, g: int) -> Images:
    """The part of the reserve that no pool up to that of generation g has taken."""
    return POOL_RULES[section.rule].unused_reserve(section, key_path, reserve, g)


def expected_share(shares: ShareInputs) -> np.ndarray:
    """The expected share in a pool; generation 0 has the real one."""
    if not shares.g:
        return np.asarray(shares.real, np.float64)
    return POOL_RULES[shares.section.rule].expected_share(shares)


def weights(section: PoolConfig, g: int, sizes: Sizes) -> list[FloatOrArray]:
    """Expected images per class in the pool: real ones, then of each generation before."""
    rule = POOL_RULES[section.rule]
    return rule.weights(section, g, sizes) if g or rule.subsamples_real else [sizes.real]


def sampled_share(shares: ShareInputs, noise: Noise) -> np.ndarray:
    """The same with the noise of the subsets that the rule takes."""
    rule = POOL_RULES[shares.section.rule]
    if not shares.g and not rule.subsamples_real:
        return np.asarray(shares.real, np.float64)
    return rule.sampled_share(shares, noise)


def mixed(shares: Sequence[FloatOrArray], weights: Sequence[FloatOrArray]) -> np.ndarray:
    """The weighted mean of shares; where nothing has a weight, all count alike."""
    total = np.asarray(sum(weights), np.float64)
    even = np.where(total > 0, 0.0, 1.0)
    pairs = zip(shares, weights, strict=True)
    mean = sum(np.asarray(share, np.float64) * (weight + even) for share, weight in pairs)
    return np.asarray(mean / (total + even * len(weights)))


def _requested_label(images: Images) -> np.ndarray:
    """int32[N]: the labels requested of a generator, or what a control has in their place."""
    if images.requested_label is None:
        raise ValueError("Images.requested_label: missing, as in sets that no generator made")
    return images.requested_label


def _subset(key_path: rng.KeyPath, images: Images, count: int, field: str) -> Images:
    """`count` images without replacement, in their old order."""
    if count > len(images):
        raise UsageError(
            f"{field} = {count}: must be at most {len(images)}, the number of images available"
        )
    return images.take(np.sort(rng.permutation(key_path, len(images))[:count]))
