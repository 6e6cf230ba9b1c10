"""What the pool of each generation is made of."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from selfloop_jax.analysis.runs import Run
from selfloop_jax.report.style import RenderedFigure, figure, finish, ramp, spread

_NAMED = 9  # origins the legend names


def pool_bars(run: Run, prefix: str) -> RenderedFigure:
    """One bar per generation: real images at the bottom, above them generated ones by origin."""
    made = figure(5.1, 3.1)
    ax = made.subplots()
    numbers = [generation.number for generation in run.generations]
    base = np.zeros(len(numbers))
    layers, edge = _layers(run), min(0.8, 5 / len(numbers))
    for i, (name, counts) in enumerate(layers):
        colour = "#222222" if name == "real" else ramp(i, len(layers))
        ax.bar(
            numbers, counts, 0.62, base, color=colour, edgecolor="white", linewidth=edge, label=name
        )
        base += counts
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    ax.set_xlim(min(numbers) - 0.6, max(numbers) + 0.6)
    ax.grid(axis="x", visible=False)
    ax.set_title("Pool, images by origin")
    ax.set_xlabel("generation")
    _legend(made)
    pools = [(g.number, g.record["pool"]) for g in run.generations]
    told = "; ".join(f"generation {number}: {p['real']} real of {p['size']}" for number, p in pools)
    caption = "The training set of each generation: real images below, generated ones above, oldest first."
    return finish(made, f"{prefix}pool", f"Stacked bars. {told}.", caption)


def _layers(run: Run) -> list[tuple[str, list[int]]]:
    """(name, images in each generation's pool) of the real images and of each origin."""
    pools = [generation.record["pool"] for generation in run.generations]
    origins = sorted({int(origin) for pool in pools for origin in pool["generated"]})
    layers = [("real", [pool["real"] for pool in pools])]
    for origin in origins:
        counts = [pool["generated"].get(str(origin), 0) for pool in pools]
        layers.append((f"generation {origin}", counts))
    return layers


def _legend(made: Figure) -> None:
    """In the order of the stack; of many origins a few are named."""
    handles, labels = made.axes[0].get_legend_handles_labels()
    named = spread(range(len(handles)), _NAMED)[::-1]
    made.legend(
        [handles[i] for i in named],
        [labels[i] for i in named],
        loc="outside right upper",
        handlelength=1.2,
    )
