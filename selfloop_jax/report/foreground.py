"""Relative foreground sensitivity: noise on the object against noise around it."""

import math

from selfloop_jax.analysis.runs import Run
from selfloop_jax.report.style import GREY, RenderedFigure, figure, finish, line, ramp, spread

LINES = 6  # generations shown, at most
CAPTION = (
    "Relative foreground sensitivity (Moayeri et al. 2022), from the accuracies under noise on the "
    "object and under noise on its background, mean over classes. Above 0 noise on the object does "
    "more harm: the classifier relies on the object; below 0 it relies on the background."
)


def sensitivity(run: Run, prefix: str) -> RenderedFigure | None:
    """Returns the sensitivity over the noise level, a line per generation; None without masks."""
    measured = [g for g in run.generations if g.record.get("foreground")]
    if not measured:
        return None
    shown = spread(measured, LINES)
    fig = figure(5.1, 3.1)
    ax = fig.subplots()
    ranges = []
    for i, generation in enumerate(shown):
        noise = generation.record["foreground"]["noise"]
        sigmas = [level["sigma"] for level in noise]
        # Null: the sensitivity is undefined.
        values = [math.nan if level["rfs"] is None else level["rfs"] for level in noise]
        look = line(i) | {"color": ramp(i, len(shown))}
        ax.plot(sigmas, values, label=str(generation.number), linewidth=1.6, **look)
        ranges.append(f"generation {generation.number} {min(values):.2f} to {max(values):.2f}")
    ax.axhline(0, color=GREY, linewidth=0.8)
    ax.set_title("Relative foreground sensitivity")
    ax.set_xlabel("standard deviation of the noise")
    fig.legend(loc="outside right upper", title="generation", handlelength=2.2)
    alt = f"Lines over the noise level: {'; '.join(ranges)}."
    return finish(fig, f"{prefix}sensitivity", alt, CAPTION)
