"""A study in which the law of counts holds, as rows or as workdirs, without networks."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import workdirs
from scipy import special

from selfloop_jax.analysis.numbers import RECALL, SETTINGS, Row
from selfloop_jax.config import PoolConfig
from selfloop_jax.data import drift
from selfloop_jax.data.pool_rules import POOL_RULES
from selfloop_jax.measure.learning_curve import LearningCurve

CLASSES, GROUPS, REAL, COUNT, GENERATIONS = 4, 5, 400, 160, 5
CURVE = LearningCurve(
    ("own", "shortcut"),
    np.linspace(-0.5, 0.5, CLASSES),
    np.array([0.7, -1.0]),
    np.array([-2.0, -0.4, 1.0]),
)
START, FACTOR = 0.7, 0.9  # what a generated image counts
RULES = ("replace", "accumulate", "real_plus_latest")


def real_counts(random: np.random.Generator, rho: float, size: int = REAL) -> np.ndarray:
    """int[C,G]: groups by chance, that of the class with chance rho."""
    share = np.full((CLASSES, GROUPS), (1 - rho) / (GROUPS - 1))
    share[np.arange(CLASSES), np.arange(CLASSES)] = rho
    return random.multinomial(size // CLASSES, share)


def measured(random: np.random.Generator, effective: np.ndarray) -> Row:
    """Recalls about the curve, and what follows from them."""
    mean, deviation = CURVE.logit(effective)
    recall = special.expit(mean + deviation * random.normal(size=effective.shape))
    return {
        RECALL: recall.ravel(),
        "metrics.accuracy": float(recall.mean()),
        "metrics.equal_opportunity_difference_mean": float(np.ptp(recall, axis=1).mean()),
    }


def counted(place: str, counts: np.ndarray) -> Row:
    """The three columns of counts."""
    return {
        f"{place}.class_counts": counts.sum(axis=1).astype(float),
        f"{place}.aligned_counts": counts[np.arange(CLASSES), np.arange(CLASSES)].astype(float),
        f"{place}.subgroup_counts": counts.ravel().astype(float),
    }


def run(
    random: np.random.Generator, rule: str, rho: float, seed: int, mixing: float
) -> Iterator[Row]:
    """A loop of a copy machine, perfect without mixing, whose images count less and less."""
    real = real_counts(random, rho)
    section = PoolConfig(rule=rule, budget=200, n_real=40, n_generated=80)
    per_class = np.full((GENERATIONS, CLASSES), COUNT // CLASSES)
    loop = drift.CopyLoop(section, real, per_class, real, mixing)
    sets = drift.generated_counts(loop, (seed, "study", str(rho)), 1)[:, 0]
    settings = SETTINGS | {"pool.rule": rule, "pool.budget": 200, "pool.n_real": 40}
    for g in range(GENERATIONS):
        whole = drift.expected_pool(loop, g, sets[:g])
        worth = [START * FACTOR**t * made for t, made in enumerate(sets[:g])]
        cas = CURVE.recall(START * FACTOR**g * sets[g]).mean()
        yield {
            **{"set": "main", "run": f"{rule}-{rho}-{seed}", "seed": seed, "generation": g},
            **{"config.pool.rule": rule, "config.data.bias.rho": str(rho)},
            **{f"setting.{name}": str(value) for name, value in settings.items()},
            **counted("pool", np.rint(whole)),
            **counted("train", real),
            **counted("generated", sets[g]),
            **counted("reserve", real),
            "pool.size": whole.sum(),
            "pool.real": float(real.sum()) if POOL_RULES[rule].keeps_real or not g else 0.0,
            **measured(random, drift.expected_pool(loop, g, worth)),
            **({"metrics.cas": float(cas)} if not g else {}),
        }


def side_study(random: np.random.Generator, seeds: int = 2) -> Iterator[Row]:
    """Classifiers of real images alone, of many sizes and compositions."""
    for seed in range(100, 100 + seeds):
        for size in (40, 120, 400, 1200):
            for rho in (0.2, 0.5, 0.9):
                counts = real_counts(random, rho, size)
                yield {
                    **{"set": "side", "run": f"curve-{rho}-{size}-{seed}", "seed": seed},
                    "generation": 0,
                    **{"config.data.bias.rho": str(rho), "config.data.train_size": str(size)},
                    **counted("pool", counts),
                    **counted("train", counts),
                    "pool.size": float(counts.sum()),
                    "pool.real": float(counts.sum()),
                    **measured(random, counts),
                }


def make(
    rules: tuple[str, ...] = RULES, rhos: tuple[float, ...] = (0.6, 0.2), mixing: float = 0.0
) -> list[Row]:
    """All rows: two halves of eight seeds, and the side study."""
    random = np.random.default_rng(0)
    rows: list[Row] = list(side_study(random))
    for rho in rhos:
        for rule in rules:
            for seed in range(8):
                rows += run(random, rule, rho, seed, mixing)
    return rows


def make_workdirs(folder: Path, rows: list[Row]) -> dict[str, list[Path]]:
    """The runs of `rows` as workdirs in `folder`: {"main": loops, "side": classifiers}."""
    written: dict[str, list[Path]] = {"main": [], "side": []}
    for (kind, name), of_run in itertools.groupby(rows, lambda row: (row["set"], row["run"])):
        made = list(of_run)
        rule = made[0].get("config.pool.rule", "accumulate")
        control = "none" if kind == "main" else "no_synthetic"
        path = workdirs.make_workdir(
            folder / name, len(made), made[0]["seed"], rule, groups=GROUPS, control=control
        )
        workdirs.edit(path / "config.json", lambda config, row=made[0]: _configure(config, row))
        for row in made:
            workdirs.edit_record(
                path, row["generation"], lambda record, row=row: _record(record, row)
            )
        written[kind].append(path)
    return written


def _configure(config: dict[str, Any], row: Row) -> None:
    config["data"] |= {
        "bias": {"rho": float(row["config.data.bias.rho"])},
        "train_size": int(row.get("config.data.train_size", REAL)),
    }


def _record(record: dict[str, Any], row: Row) -> None:
    """Replaces what a row has."""
    tables = {
        place: np.reshape(row[f"{place}.subgroup_counts"], (CLASSES, GROUPS)).astype(int).tolist()
        for place in ("pool", "train", "generated", "reserve")
        if f"{place}.subgroup_counts" in row
    }
    record["data"] |= {
        "classes": [f"class {c}" for c in range(CLASSES)],
        "groups": [f"group {g}" for g in range(GROUPS)],
        "aligned_group": list(range(CLASSES)),
    }
    recall = np.reshape(row[RECALL], (CLASSES, GROUPS))
    record["tables"] = {"recall": {"value": recall.tolist()}}
    if "generated" in tables:
        record["tables"]["generated_counts"] = tables["generated"]
    record["pool"] |= {
        "size": int(row["pool.size"]),
        "real": int(row["pool.real"]),
        "counts": tables["pool"],
        "train_counts": tables["train"],
        "reserve_counts": tables.get("reserve", tables["train"]),
    }
    for name, value in row.items():
        if name.startswith("metrics."):
            record["metrics"][name.removeprefix("metrics.")] = {"value": value}
