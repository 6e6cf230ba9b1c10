"""Training losses from metrics.jsonl."""

import json
from pathlib import Path

import numpy as np

Losses = dict[str, dict[int, np.ndarray]]  # phase -> generation -> float64[n,2] of (step, loss)


def read_losses(path: Path, generations: set[int]) -> Losses:
    """Returns the losses of the given generations by phase.

    A resumed run logs some steps twice: the last line counts. Lines without a loss, and a last
    line that was cut off, are skipped.
    """
    losses: dict[str, dict[int, dict[int, float]]] = {}
    with path.open(encoding="utf-8", errors="replace") as lines:
        for entry in map(_entry, lines):
            if entry is None:
                continue
            phase, generation, step, loss = entry
            # A generation under way has losses but no record yet.
            if generation in generations:
                losses.setdefault(phase, {}).setdefault(generation, {})[step] = loss
    return {phase: _sorted(by_generation) for phase, by_generation in losses.items()}


def _sorted(by_generation: dict[int, dict[int, float]]) -> dict[int, np.ndarray]:
    return {g: np.array(sorted(steps.items()), float) for g, steps in sorted(by_generation.items())}


def _entry(line: str) -> tuple[str, int, int, float] | None:
    """(phase, generation, step, loss), or None for a line that has no such numbers."""
    try:
        entry = json.loads(line)
        phase = str(entry["phase"])
        return phase, int(entry["generation"]), int(entry["step"]), float(entry["loss"])
    except (ValueError, TypeError, KeyError, OverflowError):
        return None
