"""What a classifier rests on: noise on the object against noise around it."""

from selfloop_jax.analysis.runs import Run
from selfloop_jax.report.style import RenderedFigure, figure, finish, line, ramp, spread

_LINES = 6  # generations drawn


def sensitivity(run: Run, prefix: str) -> RenderedFigure | None:
    """Relative foreground sensitivity over the noise's deviation, one line per generation."""
    shown = spread([g for g in run.generations if g.record.get("spurious")], _LINES)
    if not shown:
        return None
    made = figure(5.1, 3.1)
    ax = made.subplots()
    ends = []
    for i, generation in enumerate(shown):
        noise = generation.record["spurious"]["noise"]
        sigmas, found = [row["sigma"] for row in noise], [row["rfs"] for row in noise]
        found = [float("nan") if value is None else value for value in found]
        look = {**line(i), "color": ramp(i, len(shown))}
        ax.plot(sigmas, found, label=str(generation.number), linewidth=1.6, **look)
        ends.append(f"generation {generation.number} {min(found):.2f} to {max(found):.2f}")
    ax.axhline(0, color="#777777", linewidth=0.8)
    ax.set_title("Relative foreground sensitivity")
    ax.set_xlabel("deviation of the noise")
    made.legend(loc="outside right upper", title="generation", handlelength=2.2)
    caption = (
        "From accuracy under noise on the object and around it, mean over classes. Above 0 noise on the "
        "object does more harm: the classifier rests on the object; below 0 it rests on what is around."
    )
    return finish(made, f"{prefix}sensitivity", f"Lines over sigma: {'; '.join(ends)}.", caption)
