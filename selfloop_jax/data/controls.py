"""Controls, one object each in CONTROLS: the real images that stand in for generated ones.

A control is a run that trains classifiers alone. It differs from its loop in one thing, and what
the contrast of both means has a name, its *estimand*. A control says all there is to say about
itself: which real images it takes, and what its contrast with a loop of some pool rule asks. To add
one, put an object into the table.

Subgroups are chosen by chance as a loop chooses them. A generator that copied the training set
perfectly would still choose its images at random, and leave some subgroups empty: a control with
exact shares would be spared that.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from selfloop_jax.config import Config, PoolConfig, check_choice, refuse
from selfloop_jax.data import drift
from selfloop_jax.data.images import Images
from selfloop_jax.data.pool_rules import POOL_RULES
from selfloop_jax.data.splits import largest_remainder
from selfloop_jax.errors import UsageError
from selfloop_jax.runtime import rng


@dataclass(frozen=True)
class Estimand:
    """What the contrast of a loop and a control means: how much larger the loop's bias became.

    more, less: what a contrast above or below 0 is called. rises: that word is a claim about the
    loop itself, so that its own bias must have risen (fallen) since generation 0, too; where it did
    not, `more_alone` and `less_alone` are the words.
    """

    name: str
    question: str
    more: str
    less: str
    rises: bool = False
    more_alone: str = ""
    less_alone: str = ""


def _of_the_loop(name: str, question: str) -> Estimand:
    words = {"more": "amplification", "less": "attenuation"}
    return Estimand(name, question, **words, rises=True, more_alone="harm", less_alone="benefit")


INCLUSION = _of_the_loop(
    "inclusion", "what generated images do in addition to the real ones, for as many training steps"
)
SUBSTITUTION = _of_the_loop(
    "substitution", "what generated images do in the place of as many new real ones"
)
REPLACEMENT = _of_the_loop(
    "replacement", "what it does to train on generated images and no longer on the real ones"
)
FORGONE = Estimand(
    "forgone real data",
    "what as many new real images would have done in addition to the real ones",
    more="real images help more",
    less="real images help less",
)
QUALITY = Estimand(
    "image quality",
    "what generated images do in the place of real ones of the same classes and groups",
    more="harm by image quality",
    less="benefit by image quality",
)
BEYOND_DRIFT = Estimand(
    "beyond drift",
    "what generated images do that new real ones do not whose groups drift by chance alone",
    more="harm beyond drift",
    less="benefit beyond drift",
)


@dataclass(frozen=True)
class GeneratedSet:
    """A generated set of a loop, as far as its control knows it.

    generation: the one that makes it; count: its images; pool: section of the config; images: the
    set itself, where the control is one `of_a_run`.
    """

    generation: int
    count: int
    pool: PoolConfig
    images: Images | None = None


class Control(ABC):
    """What a control trains on in the place of the generated images of a loop."""

    held_out = True  # takes real images that no arm trains on
    of_a_run = False  # stands in for what the run of `loop.control_of` generated
    follows_rule = False  # takes shares from the pool rule, which has to say how they follow
    caption = ""  # what it is, after its name

    @abstractmethod
    def estimand(self, keeps_real: bool) -> Estimand:
        """What its contrast with a loop means whose pool rule `keeps_real` images, or does not."""

    @abstractmethod
    def counts(self, key_path: rng.KeyPath, real: np.ndarray, replaced: GeneratedSet) -> np.ndarray:
        """Images per subgroup, int64[C,G], in the place of one generated set.

        real: the training images, int[C,G]; key_path: the same for all sets of a run.
        """


class NoSynthetic(Control):
    """The real training images alone, for as many steps in every generation."""

    held_out = False
    caption = "trains on the real images alone, for as many steps"

    def estimand(self, keeps_real: bool) -> Estimand:
        """Where a rule drops the real images, it may do so for another number of images."""
        return INCLUSION if keeps_real else REPLACEMENT

    def counts(self, key_path: rng.KeyPath, real: np.ndarray, replaced: GeneratedSet) -> np.ndarray:
        """None."""
        return np.zeros(real.shape, np.int64)


class FreshReal(Control):
    """As many new real images, their classes in proportion and their groups by chance."""

    caption = (
        "gets new real images, as many as the loop gets generated ones, with groups by chance as "
        "those have"
    )

    def estimand(self, keeps_real: bool) -> Estimand:
        """New real images in addition to the old ones are a gain that the loop has to forgo."""
        return FORGONE if keeps_real else SUBSTITUTION

    def counts(self, key_path: rng.KeyPath, real: np.ndarray, replaced: GeneratedSet) -> np.ndarray:
        """Classes as a loop requests them, groups by chance, in the real shares of their class."""
        of_class = requested(real, replaced.count)
        counts = np.zeros(real.shape, np.int64)
        for c in np.flatnonzero(of_class):
            # Inverse of the cumulative shares, from keyed uniforms.
            shares = np.cumsum(real[c] / real[c].sum())
            path = (*key_path, replaced.generation, int(c))
            u = rng.uniforms(path, np.arange(of_class[c]))
            group = np.minimum(np.searchsorted(shares, u, side="right"), real.shape[1] - 1)
            counts[c] = np.bincount(group, minlength=real.shape[1])
        return counts


class FreshRealStratified(FreshReal):
    """The same with the exact subgroup shares of the training set."""

    caption = "gets as many new real images, in the exact subgroup shares of the training set"

    def counts(self, key_path: rng.KeyPath, real: np.ndarray, replaced: GeneratedSet) -> np.ndarray:
        """The training set's shares, by largest remainders."""
        return counts_like(real, replaced.count)


class NeutralDrift(Control):
    """New real images with the groups that a copy machine would generate in the loop's place."""

    follows_rule = True
    caption = (
        "gets new real images, as many as the loop gets generated ones, with the groups that a "
        "generator would make that copies the shares of its pool by chance"
    )

    def estimand(self, keeps_real: bool) -> Estimand:
        """Chance has taken its part from both, which leaves what the generator does."""
        return BEYOND_DRIFT

    def counts(self, key_path: rng.KeyPath, real: np.ndarray, replaced: GeneratedSet) -> np.ndarray:
        """Those of one simulated copy machine, whose sets follow from one another."""
        sizes = np.tile(requested(real, replaced.count), (replaced.generation + 1, 1))
        copies = drift.CopyLoop(replaced.pool, real, sizes)
        counts: np.ndarray = drift.generated_counts(copies, key_path, 1)[-1, 0]
        return counts


class OracleResample(Control):
    """Real images with the labels and groups of the generated ones, chance included."""

    of_a_run = True
    caption = "gets real images with the labels and groups of the images that the loop generated"

    def estimand(self, keeps_real: bool) -> Estimand:
        """The composition is the same, which leaves the images themselves."""
        return QUALITY

    def counts(self, key_path: rng.KeyPath, real: np.ndarray, replaced: GeneratedSet) -> np.ndarray:
        """Those of the generated set."""
        assert replaced.images is not None
        return counts_of(replaced.images, real)


NONE = "none"  # of loop.control: no control but a loop
BY_RULE = "by_rule"  # of verdict.control: what `by_default` gives
CONTROLS: dict[str, Control] = {
    "no_synthetic": NoSynthetic(),
    "fresh_real": FreshReal(),
    "fresh_real_stratified": FreshRealStratified(),
    "neutral_drift": NeutralDrift(),
    "oracle_resample": OracleResample(),
}


def by_default(keeps_real: bool) -> str:
    """The control that a loop is judged by: the one that differs in what is generated.

    Where the real images stay, the question is what including generated images does (arXiv
    2410.10160); in the place of real images, what generating them does.
    """
    return "no_synthetic" if keeps_real else "fresh_real"


def check(config: Config) -> None:
    """Raises UsageError where loop.control or verdict.control does not go with the config."""
    check_choice("loop.control", config.loop.control, (NONE, *CONTROLS))
    check_choice("verdict.control", config.verdict.control, (BY_RULE, *CONTROLS))
    kind = config.loop.control
    control = CONTROLS.get(kind)
    of_a_run = control is not None and control.of_a_run
    if of_a_run and not config.loop.control_of:
        refuse("loop.control_of", "", f"a workdir where loop.control = {config.loop.control}")
    if not of_a_run and config.loop.control_of:
        must = f"'' where loop.control = {config.loop.control}"
        refuse("loop.control_of", config.loop.control_of, must)
    if control is not None and control.held_out and POOL_RULES[config.pool.rule].takes_reserve:
        # Both would take the same images.
        others = [name for name, other in CONTROLS.items() if not other.held_out]
        must = f"{' | '.join([NONE, *others])} where pool.rule = {config.pool.rule}"
        refuse("loop.control", config.loop.control, must)
    follows = control is not None and control.follows_rule
    if follows and not POOL_RULES[config.pool.rule].predictable:
        must = f"a rule that says how shares follow, where loop.control = {kind}"
        refuse("pool.rule", config.pool.rule, must)


def requested(real: np.ndarray, count: int) -> np.ndarray:
    """int64[C]: images of each class among `count`, in the shares of the table real int[C,G]."""
    return largest_remainder(real.sum(axis=1) / real.sum() * count)


def counts_like(real: np.ndarray, count: int) -> np.ndarray:
    """int64[C,G] that adds up to `count`, in the shares of the table real int[C,G]."""
    return largest_remainder(real / real.sum() * count)


def counts_of(images: Images, real: np.ndarray) -> np.ndarray:
    """int64[C,G] of a generated set; unknown groups are given the real shares of their class."""
    classes, groups = real.shape
    counts = images.counts(classes, groups)
    unknown = np.bincount(images.label[images.group < 0], minlength=classes)
    for c in np.flatnonzero(unknown):
        # A class without real images has no shares: its unknown groups are spread evenly.
        row = real[c] if real[c].sum() else np.ones(groups)
        counts[c] += largest_remainder(row / row.sum() * unknown[c])
    return counts


def matched_real_sets(
    key_path: rng.KeyPath, candidates: Images, tables: Sequence[np.ndarray], field: str
) -> list[Images]:
    """One set of real images per table of counts int[C,G], no image twice among all of them.

    Of each subgroup the candidates come whose source image was used least so far, then in a keyed
    order: a digit is reused in a second colour only after every digit of its class has been used. A
    longer list of tables begins with the sets of a shorter one. UsageError names the subgroup and
    both counts where images are lacking; `field` is what asked for them.
    """
    source = candidates.id if candidates.source_id is None else candidates.source_id
    # Keyed by id, so that an image's place does not depend on the other candidates.
    order = rng.uniforms(key_path, candidates.id)
    uses = np.zeros(int(source.max(initial=0)) + 1, np.int64)  # by source image
    free = np.ones(len(candidates), bool)
    sets = []
    for table in tables:
        rows = []
        for c, g in zip(*np.nonzero(table), strict=True):
            wanted = table[c, g]
            subgroup = (candidates.label == c) & (candidates.group == g)
            rest = np.flatnonzero(subgroup & free)
            if len(rest) < wanted:
                needed = sum(int(other[c, g]) for other in tables)
                raise UsageError(
                    f"{field}: class {c}, group {g}: {needed} real images are needed for one pool, "
                    f"but {subgroup.sum()} are held out; sample.count or loop.generations must be "
                    "smaller"
                )
            # `lexsort` sorts by its last key first.
            best = rest[np.lexsort((order[rest], uses[source[rest]]))[:wanted]]
            # No two images of a subgroup share their source, so this counts each once.
            uses[source[best]] += 1
            free[best] = False
            rows.append(best)
        sets.append(_as_generated(candidates.take(np.sort(np.concatenate(rows)))))
    return sets


def _as_generated(images: Images) -> Images:
    """With what pool rules need of a generated set: the requested label is the image's own."""
    names = ("pixels", "label", "group", "origin", "id", "source_id")
    columns = {name: column for name, column in images.columns.items() if name in names}
    return Images(**columns, requested_label=images.label)
