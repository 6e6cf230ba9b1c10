"""Prints the numbers of docs/results.md on the MNIST study that are in none of its tables.

    python -m benchmarks.mnist_readings [--table=docs/mnist_study.csv]

The output is a JSON line per half, and one per loop with the errors of the forecasts without seed
0, which had been seen when the exploratory one was added. None of these numbers is a planned test.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from selfloop_jax.analysis import counts_forecast, numbers
from selfloop_jax.analysis.arms import arms
from selfloop_jax.analysis.counts_forecast import table

TABLE = Path(__file__).parent.parent / "docs" / "mnist_study.csv"
GAP = "metrics.equal_opportunity_difference_mean"
SEEDS = range(8)
LAST = 5  # generation
FLOOR = 0.05  # a recall that cannot fall much further


class Half:
    """The runs of one bias."""

    def __init__(self, rows: Sequence[numbers.Row], bias: str):
        self.bias = bias
        self._rows = {(row["run"], int(row["generation"])): row for row in rows}

    def row(self, kind: str, seed: int, generation: int) -> numbers.Row:
        """Returns the row of one run and generation."""
        return self._rows[f"{kind}-{self.bias}-{seed}", generation]

    def values(self, kind: str, name: str, generation: int) -> np.ndarray:
        """Returns a number of every seed."""
        return np.array([float(self.row(kind, seed, generation)[name]) for seed in SEEDS])

    def recalls(self, kind: str, generation: int) -> np.ndarray:
        """Returns the recalls [S,C,G] of the subgroups."""
        every = [self.row(kind, seed, generation) for seed in SEEDS]
        return np.stack([table(row, numbers.RECALL) for row in every])

    def gaps(self, kind: str) -> np.ndarray:
        """Returns the gaps [generations,S]."""
        return np.stack([self.values(kind, GAP, number) for number in range(LAST + 1)])


def readings(half: Half) -> dict[str, Any]:
    """Returns the numbers of one half."""
    loop, same = half.recalls("replace", LAST), half.recalls("oracle_resample", LAST)
    worst = {
        kind: np.stack([half.recalls(kind, number).min(axis=(1, 2)) for number in (0, LAST)])
        for kind in ("accumulate", "no_synthetic")
    }
    fall = np.diff(worst["accumulate"], axis=0)[0] - np.diff(worst["no_synthetic"], axis=0)[0]
    gaps = half.gaps("replace")
    contrasts = gaps - half.gaps("fresh_real")  # the same in generation 0
    return {
        "bias": half.bias,
        "worst_subgroup_under_accumulate": [*_rounded(fall.mean()), *_rounded(_interval(fall))],
        "best_group_at_equal_composition": _rounded((loop.max(2) - same.max(2)).mean()),
        "worst_group_at_equal_composition": _rounded((loop.min(2) - same.min(2)).mean()),
        "worst_group_below_floor": _rounded((loop.min(2) < FLOOR).mean()),
        "substitution_by_generation": _rounded(contrasts.mean(axis=1)),
        "error_of_a_constant": _rounded(np.abs(gaps[1:] - gaps[1:].mean()).mean()),
        "error_of_the_aligned_share": {
            f"fitted from generation {first} on": _error_of_a_line(half, gaps, first)
            for first in (0, 1)
        },
        "cas_ratio": _rounded(half.values("replace", "metrics.cas_ratio", 0).mean()),
        "classifier_agreement": _rounded(
            [half.values("replace", "metrics.classifier_agreement", n).mean() for n in (0, LAST)]
        ),
    }


def _error_of_a_line(half: Half, gaps: np.ndarray, first: int) -> float | None:
    """Of the gap in the aligned share of the pool; judged, as all rivals, from generation 1 on."""
    every = [[half.row("replace", s, n) for s in SEEDS] for n in range(LAST + 1)]
    aligned = [
        [np.sum(row["pool.aligned_counts"]) / np.sum(row["pool.subgroup_counts"]) for row in rows]
        for rows in every
    ]
    x = np.array(aligned)
    if np.ptp(x) == 0:  # no group is aligned
        return None
    slope, intercept = np.polyfit(x[first:].ravel(), gaps[first:].ravel(), 1)
    return _rounded(np.abs(slope * x[1:] + intercept - gaps[1:]).mean())[0]


def _interval(values: np.ndarray) -> np.ndarray:
    """The 95 % t interval of a mean."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return np.array([values.mean() - half, values.mean() + half])


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 3) for value in np.atleast_1d(values)]


def main() -> None:
    """Prints the lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, default=TABLE)
    rows = numbers.read_csv(parser.parse_args().table)
    for bias in ("biased", "unbiased"):
        print(json.dumps(readings(Half(rows, bias))), flush=True)
    law = counts_forecast.law([row for row in rows if row["set"] == "side"])
    assert law is not None
    kept = [row for row in rows if row["set"] != "side" and int(row["seed"]) > 0]
    for one in counts_forecast.forecasts(arms(kept), law)[0]:
        errors = {name: _rounded(one.errors(name).mean())[0] for name in one.predicted}
        print(json.dumps({"without_seed": 0, "loop": one.arm.name, "errors": errors}), flush=True)


if __name__ == "__main__":
    main()
