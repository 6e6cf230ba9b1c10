"""Rows of a side study whose response and gap curve are known, without workdirs."""

import math

import numpy as np
from workdirs import GAP

from selfloop_jax.analysis.numbers import SETTINGS, Row

CLASSES = 10
REAL = 1000  # images of a class


def make_row(
    kind: str, run: str, seed: int, g: int, pool: float, generated: float, rule: str, **fields: str
) -> Row:
    """One generation, with the same aligned shares in all classes and the gap 0.1 + 0.4 pool."""
    settings = SETTINGS | {"pool.rule": rule, "diffusion.later.start": "previous"}
    return {
        "set": kind,
        "run": run,
        "seed": seed,
        "generation": g,
        "config.pool.rule": rule,
        **fields,
        **{f"setting.{name}": str(value) for name, value in settings.items()},
        f"metrics.{GAP}": 0.1 + 0.4 * pool,
        "pool.class_counts": np.full(CLASSES, REAL),
        "pool.aligned_counts": np.full(CLASSES, round(pool * REAL)),
        "generated.class_counts": np.full(CLASSES, 1000),
        "generated.aligned_counts": np.full(CLASSES, round(generated * 1000)),
    }


def make_side_study() -> list[Row]:
    """Four levels of bias, two pool rules.

    From scratch logit r = -0.2 + 0.9 logit B; fine-tuned -0.1 + 0.5 logit B + 0.4 logit r'.
    """
    rows = []
    for i, level in enumerate((0.2, 0.4, 0.6, 0.8)):
        first = _respond(-0.2, 0.9, 0, level)
        for rule, pool in (("replace", first), ("real_plus_latest", (5 * level + 2 * first) / 7)):
            fields = {"config.data.bias.rho": str(level)}
            run = f"side-{rule}-{i}"
            later = _respond(-0.1, 0.5, 0.4, pool, first)
            rows.append(make_row("side", run, i, 0, level, first, rule, **fields))
            rows.append(make_row("side", run, i, 1, pool, later, rule, **fields))
    return rows


def _respond(a: float, b: float, c: float, pool: float, previous: float = 0.5) -> float:
    logit = a + b * math.log(pool / (1 - pool)) + c * math.log(previous / (1 - previous))
    return 1 / (1 + math.exp(-logit))
