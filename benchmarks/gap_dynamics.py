"""When the gap of a loop falls, rises and rests: the law of counts under six pool rules.

    python -m benchmarks.gap_dynamics [--loops=24] [--table=docs/mnist_study.csv] [--markdown]

The learning curve of the table's side study gives the expected gap of a classifier from the counts
of its pool. Simulated loops go through the pools of the real rules; their generator copies the
shares of its pool by chance, and an image of it counts as `QUALITY` real ones. Closed form: the
same curve at the expected counts of docs/dynamics.md, without chance. `--markdown` prints the table
of docs/dynamics.md.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import closed_form
from selfloop_jax.analysis import counts_forecast, numbers
from selfloop_jax.config import PoolConfig
from selfloop_jax.data.images import REAL, Images
from selfloop_jax.measure.learning_curve import LearningCurve
from selfloop_jax.runtime import rng

TABLE = Path(__file__).parent.parent / "docs" / "mnist_study.csv"
CLASSES = GROUPS = 10
REAL_IMAGES, COUNT, GENERATIONS = 1_000, 400, 16
SHOWN = (0, 1, 5, 15)  # generations
QUALITY = 0.6

# Effective images of a class in the pool of generation g > 0, over those of the real set: what
# docs/dynamics.md derives. s: generated over real images; q: the quality.
SIZES: dict[str, tuple[PoolConfig, Callable[[int, float, float], float]]] = {
    "replace": (PoolConfig("replace"), lambda g, s, q: q * s),
    "real_plus_latest": (PoolConfig("real_plus_latest"), lambda g, s, q: 1 + q * s),
    "accumulate": (PoolConfig("accumulate"), lambda g, s, q: 1 + g * q * s),
    "accumulate_subsample, budget 1000": (
        PoolConfig("accumulate_subsample", budget=REAL_IMAGES),
        lambda g, s, q: (1 + g * q * s) / (1 + g * s),
    ),
    "substitute, alpha 0.1": (
        PoolConfig("substitute", alpha=0.1),
        lambda g, s, q: 1 - 0.1 * (1 - q),
    ),
    "fresh, 600 and 400": (
        PoolConfig("fresh", n_real=600, n_generated=400),
        lambda g, s, q: 0.6 + 0.4 * q,
    ),
    "fresh, 1000 and 400": (
        PoolConfig("fresh", n_real=1_000, n_generated=400),
        lambda g, s, q: 1 + 0.4 * q,
    ),
}


def real_images(key_path: rng.KeyPath, rho: float, count: int, first: int = 0) -> Images:
    """Real images, the classes in proportion, groups by chance: the class's own with chance rho."""
    ids = np.arange(count)
    label = ids % CLASSES
    step = 1 + np.floor((GROUPS - 1) * rng.uniforms((*key_path, "other", first), ids)).astype(int)
    own = rng.uniforms((*key_path, "own", first), ids) < rho
    group = np.where(own, label, (label + step) % GROUPS)
    return closed_form.points(label, group, REAL, first)


def simulated(
    curve: LearningCurve, section: PoolConfig, rho: float, loop: int, quality: float
) -> np.ndarray:
    """Expected gaps float64[GENERATIONS] after training on the pools of one loop."""
    key_path = (loop, "gap dynamics", section.rule)
    real = real_images((loop, "real"), rho, REAL_IMAGES)
    reserve = real_images((loop, "reserve"), rho, GENERATIONS * section.n_real + 1, REAL_IMAGES)
    gaps: list[float] = []

    def generation(g: int, pool: Images) -> Images:
        worth = np.where(pool.origin == REAL, 1.0, quality)
        counts = np.zeros((CLASSES, GROUPS))
        np.add.at(counts, (pool.label, pool.group), worth)
        gaps.append(float(curve.gap(counts)))
        shares = closed_form.table(pool, CLASSES, GROUPS)
        return closed_form.copies((*key_path, "generation", g), shares, real, g, COUNT)

    closed_form.run(section, key_path, real, reserve, GENERATIONS, generation)
    return np.array(gaps)


def expected(curve: LearningCurve, rho: float, size: float, loops: int) -> float:
    """The gap at `size` times the counts of the real images, mean over the loops' real sets."""
    gaps = []
    for loop in range(loops):
        counts = real_images((loop, "real"), rho, REAL_IMAGES).counts(CLASSES, GROUPS)
        gaps.append(float(curve.gap(size * counts)))
    return float(np.mean(gaps))


def cases(curve: LearningCurve, loops: int, quality: float = QUALITY) -> Iterator[dict[str, Any]]:
    """Yields a row per bias and rule: closed form and simulated loops at the shown generations."""
    for rho in (0.5, 0.1):
        for name, (section, size) in SIZES.items():
            runs = np.stack(
                [simulated(curve, section, rho, loop, quality) for loop in range(loops)]
            )
            sizes = [1.0, *(size(g, COUNT / REAL_IMAGES, quality) for g in SHOWN[1:])]
            closed = [expected(curve, rho, one, loops) for one in sizes]
            yield {
                "bias": rho,
                "rule": name,
                "size": [round(one, 2) for one in sizes],
                "closed_form": [round(one, 3) for one in closed],
                "simulated": [round(float(x), 3) for x in runs.mean(axis=0)[list(SHOWN)]],
                "error": [
                    round(float(x), 4) for x in runs.std(axis=0)[list(SHOWN)] / np.sqrt(loops)
                ],
            }


def fitted(table: Path) -> LearningCurve:
    """The learning curve of a table's side study."""
    law = counts_forecast.law([row for row in numbers.read_csv(table) if row["set"] == "side"])
    if law is None:
        raise SystemExit(f"{table}: has no side study of classifiers of real images")
    return law.curve


def main() -> None:
    """Prints a JSON line per case, or the table of docs/dynamics.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--loops", type=int, default=24)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args()
    found = cases(fitted(arguments.table), arguments.loops)
    if arguments.markdown:
        shown = " | ".join(f"g = {g}" for g in SHOWN)
        print(f"| own group's share | rule | effective size at g = 15 | {shown} |")
        print("|---|---|---|" + "---|" * len(SHOWN))
    for row in found:
        if not arguments.markdown:
            print(json.dumps(row), flush=True)
            continue
        pairs = zip(row["simulated"], row["closed_form"], strict=True)
        cells = " | ".join(f"{seen:.3f} ({closed:.3f})" for seen, closed in pairs)
        print(f"| {row['bias']} | {row['rule']} | {row['size'][-1]:.2f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
