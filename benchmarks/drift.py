"""Coverage of the digits study against copy machines of its sizes. One JSON line per loop.

    python -m benchmarks.drift [--loops=400] [--seeds=6]

docs/digits_study.csv was written before tables held the counts of subgroups, so its report has no
drift null. This program makes the real images of every seed again and simulates copies of them; the
observed coverage is that of the CSV. `band`: where 95 % of the means over seeds lie.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from configs import digits_study
from selfloop_jax import config as configs
from selfloop_jax.analysis import arms, numbers
from selfloop_jax.data import dataset, drift

TABLE = Path(__file__).parent.parent / "docs" / "digits_study.csv"
RHO = {"biased": "0.5", "unbiased": "0.1"}


def cases(loops: int, seeds: int) -> Iterator[dict[str, Any]]:
    """Yields observed coverage and null of each bias and rule, over generations."""
    rows = [row for row in numbers.read_csv(TABLE) if row["set"] == "main"]
    by_name = {arm.name: arm for arm in arms.arms(rows) if arm.is_loop}
    for bias, rho in RHO.items():
        for rule in digits_study.RULES:
            observed = by_name[f"rho {rho}, {rule}"].series("subgroup_coverage")[:seeds]
            runs = [simulated(rule, bias, seed, loops) for seed in range(seeds)]
            means = np.mean(runs, axis=0)
            low, high = np.quantile(means, (0.025, 0.975), axis=0)
            yield {
                "case": f"{bias}, {rule}",
                "observed": _rounded(observed.mean(axis=0)),
                "copies": _rounded(means.mean(axis=0)),
                "band": [_rounded(low), _rounded(high)],
                "deviation_of_one_run": _rounded(np.std(runs, axis=1).mean(axis=0)),
            }


def simulated(rule: str, bias: str, seed: int, loops: int) -> np.ndarray:
    """Coverage float64[loops,G] of copies of one seed of the study."""
    config = configs.typed(digits_study.get_config(f"{rule},{bias}"))
    data = dataset.load(config.data, seed)
    real = data.train.counts(len(data.classes), len(data.groups))
    # Labels are requested in proportion.
    of_class = np.rint(config.sample.count * real.sum(axis=1) / real.sum())
    generated = np.tile(of_class, (config.loop.generations, 1))
    return drift.coverage(drift.CopyLoop(config.pool, real, generated), (seed, "drift"), loops)


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 3) for value in values]


def main() -> None:
    """Prints a line per case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loops", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=6)
    args = parser.parse_args()
    for case in cases(args.loops, args.seeds):
        print(json.dumps(case), flush=True)


if __name__ == "__main__":
    main()
