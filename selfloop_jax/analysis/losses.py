"""Training losses from metrics.jsonl, which may hold steps twice, other lines, and a last one cut off."""

import json
from pathlib import Path

import numpy as np

Losses = dict[str, dict[int, np.ndarray]]  # phase -> generation -> float64[n,2] of (step, loss)


def read_losses(path: Path, generations: set[int]) -> Losses:
    """Losses of the given generations; of a step logged again after a resume the last line counts."""
    found: dict[str, dict[int, dict[int, float]]] = {}
    with path.open(encoding="utf-8", errors="replace") as lines:
        for phase, generation, step, loss in filter(None, map(_entry, lines)):
            if generation in generations:
                found.setdefault(phase, {}).setdefault(generation, {})[step] = loss
    return {
        phase: {
            g: np.array(sorted(steps.items()), float) for g, steps in sorted(by_generation.items())
        }
        for phase, by_generation in found.items()
    }


def _entry(line: str) -> tuple[str, int, int, float] | None:
    """(phase, generation, step, loss), or None for a line that has no such numbers."""
    try:
        entry = json.loads(line)
        return (
            str(entry["phase"]),
            int(entry["generation"]),
            int(entry["step"]),
            float(entry["loss"]),
        )
    except (ValueError, TypeError, KeyError, OverflowError):
        return None
