"""How many real images the seeds of a study share: what their independence rests on."""

import itertools
from collections.abc import Sequence

import numpy as np

from selfloop_jax.analysis.runs import Run

SETS = ("train", "test")


def shares(runs: Sequence[Run]) -> dict[str, float]:
    """By set, the share of a run's images that a run of another seed has too: mean over pairs.

    Of the runs that say which images they have, the first of each seed. {} below two seeds.
    """
    by_seed: dict[int, Run] = {}
    for run in runs:
        if run.real_ids is not None:
            by_seed.setdefault(run.seed, run)
    if len(by_seed) < 2:
        return {}
    found = {}
    for name in SETS:
        ids = [run.real_ids[name] for run in by_seed.values() if run.real_ids]
        pairs = itertools.combinations(ids, 2)
        found[name] = float(np.mean([_shared(a, b) for a, b in pairs]))
    return found


def _shared(a: np.ndarray, b: np.ndarray) -> float:
    """Common images over those of the smaller set."""
    return len(np.intersect1d(a, b)) / max(min(len(a), len(b)), 1)
