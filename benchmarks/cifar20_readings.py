"""Prints the numbers of docs/results.md on the CIFAR-20 study that are in none of its tables.

    python -m benchmarks.cifar20_readings [--table=docs/cifar20_study.csv]

The output is a JSON line per bias. Contrasts are [mean, low, high]: the change from generation 0 to
the last of the loop minus that of its control, with the 95 % t interval over three seeds. None of
them was planned.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from selfloop_jax.analysis import numbers
from selfloop_jax.analysis.counts_forecast import table

TABLE = Path(__file__).parent.parent / "docs" / "cifar20_study.csv"
SEEDS = range(3)
LAST = 2  # generation
FEW = 10  # images of a fine label


def readings(rows: Sequence[numbers.Row], bias: str) -> dict[str, Any]:
    """Returns the numbers of one bias, `biased` or `natural`."""
    by_run = {(row["run"], int(row["generation"])): row for row in rows}

    def values(kind: str, number: Callable[[numbers.Row], float]) -> np.ndarray:
        """A number [seeds,2] of generation 0 and of the last."""
        return np.array(
            [[number(by_run[f"{kind}-{bias}-{s}", g]) for g in (0, LAST)] for s in SEEDS]
        )

    def compared(number: Callable[[numbers.Row], float]) -> dict[str, list[float]]:
        loop, control = (values(kind, number) for kind in ("accumulate", "no_synthetic"))
        change = np.diff(loop)[:, 0] - np.diff(control)[:, 0]
        return {"loop": _rounded(loop.mean(0)), "contrast": _interval(change)}

    def metric(name: str) -> Callable[[numbers.Row], float]:
        return lambda row: float(row[f"metrics.{name}"])

    def few(row: numbers.Row) -> float:
        return float((table(row, "generated.subgroup_counts").sum(0) < FEW).sum())

    found = {
        "bias": bias,
        "best_recall": compared(lambda row: np.nanmax(table(row, numbers.RECALL), 1).mean()),
        "worst_recall": compared(lambda row: np.nanmin(table(row, numbers.RECALL), 1).mean()),
        "worst_to_best": compared(metric("disparate_impact_ratio_mean")),
        "cas_ratio": [_interval(one) for one in values("accumulate", metric("cas_ratio")).T],
        "agreement": _rounded(values("accumulate", metric("classifier_agreement")).mean(0)),
        "labels_with_few_images": values("accumulate", few).astype(int).tolist(),
    }
    if bias == "biased":
        share = values("accumulate", metric("bias_aligned_share"))
        found["aligned_share"] = {
            "loop": _rounded(share.mean(0)),
            "change": _interval(np.diff(share)[:, 0]),
        }
    return found


def _interval(values: np.ndarray) -> list[float]:
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return _rounded(values.mean() + half * np.array([0, -1, 1]))


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 3) for value in values]


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, default=TABLE)
    args = parser.parse_args(argv)
    rows = numbers.read_csv(args.table)
    for bias in ("biased", "natural"):
        print(json.dumps(readings(rows, bias)))


if __name__ == "__main__":
    main()
