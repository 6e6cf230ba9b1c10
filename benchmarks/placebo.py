"""How often simulated studies of loops that do no harm are said to do some. One JSON line per case.

    python -m benchmarks.placebo [--studies=1000]

A study has two biases, three pool rules, their controls and eight seeds. Its *placebos*:

    nothing    loops that train on their real images alone, under rules that keep them
    copies     loops whose generator returns images of its pool, the classes in proportion

Images are numbers; a classifier's gap follows from the distinct images of its pool, falling with
the subgroups that they cover and with their number, and scatters as it does between two trainings
on the same images. Reported is the share of studies in which any planned verdict is amplification,
attenuation, harm or benefit, of which at most alpha = 0.05 is allowed, and for comparison how often
a *harm* that is there is found: a generator that makes images of only half of the groups.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from selfloop_jax.analysis import arms, verdicts
from selfloop_jax.analysis.numbers import Row
from selfloop_jax.data.controls import CONTROLS
from selfloop_jax.data.pool_rules import POOL_RULES

GAP = "equal_opportunity_difference_mean"
CLASSES, GROUPS = 10, 10
REAL, COUNT, LAST = 1000, 400, 4
RULES = ("accumulate", "replace", "real_plus_latest")
KEEPING = tuple(rule for rule in RULES if POOL_RULES[rule].keeps_real)
SCATTER = 0.02  # of the gap between two trainings on the same images
FALSE = ("amplification", "attenuation", "harm", "benefit")


@dataclass(frozen=True)
class Images:
    """Distinct real images by number, and the class and group of each."""

    number: np.ndarray
    cell: np.ndarray  # class * GROUPS + group

    def take(self, rows: np.ndarray) -> "Images":
        """The images of some rows."""
        return Images(self.number[rows], self.cell[rows])

    def __add__(self, other: "Images") -> "Images":
        return Images(
            np.concatenate([self.number, other.number]), np.concatenate([self.cell, other.cell])
        )


Generator = Callable[[np.random.Generator, Images], Images]


def real_images(random: np.random.Generator, count: int, rho: float) -> Images:
    """New images: classes in proportion, groups by chance, that of the class with chance rho."""
    label = np.arange(count) % CLASSES
    other = (label + random.integers(1, GROUPS, count)) % GROUPS
    group = np.where(random.random(count) < rho, label, other)
    return Images(random.integers(2**62, size=count), label * GROUPS + group)


def copies(random: np.random.Generator, pool: Images) -> Images:
    """COUNT images of the pool, the classes in proportion, none twice where there are as many."""
    label = pool.cell // GROUPS
    # All images by class, those of a class by chance; of each class the first ones are taken.
    order = np.lexsort((random.random(len(label)), label))
    size = np.bincount(label, minlength=CLASSES)
    first = np.cumsum(size) - size
    place = np.arange(COUNT // CLASSES)
    return pool.take(order[(first[:, None] + place % size[:, None]).ravel()])


def half_of_the_groups(random: np.random.Generator, pool: Images) -> Images:
    """The same of half of the groups alone: a generator that does harm."""
    return copies(random, pool.take(np.flatnonzero(pool.cell % GROUPS < GROUPS // 2)))


def gap(random: np.random.Generator, pool: Images) -> float:
    """The gap of a classifier that is trained on the pool."""
    distinct = len(np.unique(pool.number))
    covered = len(np.unique(pool.cell)) / (CLASSES * GROUPS)
    return 0.1 + 1.7 * (1 - covered) + 3 / np.sqrt(distinct) + SCATTER * random.normal()


def pools(rule: str, real: Images, sets: list[Images]) -> Images:
    """The pool of the next generation."""
    if rule == "replace":
        return sets[-1]
    added = sets if rule == "accumulate" else sets[-1:]
    return sum(added, real)


def course(
    random: np.random.Generator, rule: str, real: Images, first: float, make: Generator | None
) -> list[float]:
    """The gaps of generations 0 to LAST; without `make` every pool is the real images."""
    pool, sets, gaps = real, [], [first]
    for _ in range(LAST):
        if make is not None:
            sets.append(make(random, pool))
            pool = pools(rule, real, sets)
        gaps.append(gap(random, pool))
    return gaps


def study(random: np.random.Generator, seeds: int, generator: Generator | None) -> list[Row]:
    """The rows of a study's numbers.csv."""
    rows: list[Row] = []
    for rho in (0.5, 0.1):
        for seed in range(seeds):
            real = real_images(random, REAL, rho)
            first = gap(random, real)  # generation 0 is shared

            def fresh(random: np.random.Generator, _: Images, rho: float = rho) -> Images:
                return real_images(random, COUNT, rho)

            # A loop that replaces its real images cannot do nothing.
            for rule in RULES if generator else KEEPING:
                loop = course(random, rule, real, first, generator)
                rows += run_rows(rho, rule, "none", seed, loop)
                control = course(random, rule, real, first, fresh)
                rows += run_rows(rho, rule, "fresh_real", seed, control)
            alone = course(random, "accumulate", real, first, None)
            rows += run_rows(rho, "accumulate", "no_synthetic", seed, alone)
    return rows


def run_rows(rho: float, rule: str, control: str, seed: int, gaps: list[float]) -> Iterator[Row]:
    """The rows of one run, with the plan of a study."""
    assert rule in POOL_RULES
    assert control == "none" or control in CONTROLS
    for generation, value in enumerate(gaps):
        yield {
            **{"set": "main", "run": f"{control}-{rule}-{rho}-{seed}", "seed": seed},
            "generation": generation,
            **{"config.data.bias.rho": str(rho), "config.loop.control": control},
            **{"config.pool.rule": rule, "setting.pool.rule": rule},
            "setting.loop.control": control,
            **{"verdict.control": "by_rule", "verdict.metrics": GAP},
            **{"verdict.margin": "0.05", "verdict.alpha": "0.05"},
            f"metrics.{GAP}": value,
        }


CASES: dict[str, Generator | None] = {
    "nothing": None,
    "copies": copies,
    "half of the groups": half_of_the_groups,
}


def planned(rows: list[Row]) -> list[str]:
    """The planned verdicts of a study."""
    return [found.verdict for found in verdicts.findings(arms.arms(rows)) if found.planned]


def run(case: str, studies: int, seeds: int) -> dict:
    """How often the planned verdicts of such studies are what."""
    random = np.random.default_rng(0)
    counts: Counter[str] = Counter()
    any_change = 0
    for _ in range(studies):
        found = planned(study(random, seeds, CASES[case]))
        counts.update(found)
        any_change += any(verdict in FALSE for verdict in found)
    total = sum(counts.values())
    return {
        "case": case,
        "seeds": seeds,
        "studies": studies,
        "any_change": any_change / studies,
        "verdicts": {name: round(count / total, 4) for name, count in sorted(counts.items())},
    }


def main() -> None:
    """Runs every case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=1000)
    arguments = parser.parse_args()
    for case in CASES:
        for seeds in (6, 8, 12):
            print(json.dumps(run(case, arguments.studies, seeds)), flush=True)


if __name__ == "__main__":
    main()
