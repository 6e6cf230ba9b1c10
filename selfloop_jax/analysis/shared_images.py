"""How many real images the seeds of a study share: what their independence rests on."""

import itertools
import json
from collections.abc import Sequence

import numpy as np

from selfloop_jax.analysis.runs import Run

SETS = ("train", "test")


def shares(runs: Sequence[Run]) -> dict[str, tuple[float, float]]:
    """By set, the share of a run's images that a run of another seed has too: mean over pairs.

    The lowest and the highest mean of an initial bias, for each leaves out images of its own. Of
    the runs that say which images they have, the first of each seed. {} below two seeds.
    """
    by_bias: dict[str, dict[int, Run]] = {}
    for run in runs:
        if run.real_ids is not None:
            bias = json.dumps(run.config.get("data", {}).get("bias"), sort_keys=True)
            by_bias.setdefault(bias, {}).setdefault(run.seed, run)
    found = {}
    for name in SETS:
        means = []
        for by_seed in by_bias.values():
            ids = [run.real_ids[name] for run in by_seed.values() if run.real_ids]
            pairs = [_shared(a, b) for a, b in itertools.combinations(ids, 2)]
            means += [float(np.mean(pairs))] if pairs else []
        if means:
            found[name] = (min(means), max(means))
    return found


def _shared(a: np.ndarray, b: np.ndarray) -> float:
    """Common images over those of the smaller set."""
    return len(np.intersect1d(a, b)) / max(min(len(a), len(b)), 1)
