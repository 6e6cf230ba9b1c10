"""Stacked bars: the composition of each generation's pool."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from selfloop_jax.analysis.runs import Run
from selfloop_jax.report.style import INK, RenderedFigure, figure, finish, ramp, spread

LEGEND = 9  # origins that the legend names
CAPTION = (
    "Training set of each generation: real images below, generated ones above, oldest origin first."
)


def pool_bars(run: Run, prefix: str) -> RenderedFigure:
    """Returns one bar per generation: real images below, generated ones above, by origin."""
    fig = figure(5.1, 3.1)
    ax = fig.subplots()
    numbers = [generation.number for generation in run.generations]
    layers = _layers(run)
    edge = min(0.8, 5 / len(numbers))  # thin bars keep thin edges
    base = np.zeros(len(numbers))
    for i, (name, counts) in enumerate(layers):
        colour = INK if name == "real" else ramp(i, len(layers))
        look: dict[str, Any] = {"color": colour, "edgecolor": "white", "linewidth": edge}
        ax.bar(numbers, counts, 0.62, base, label=name, **look)
        base += counts
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    ax.set_xlim(min(numbers) - 0.6, max(numbers) + 0.6)
    ax.grid(axis="x", visible=False)
    ax.set_title("Pool, images by origin")
    ax.set_xlabel("generation")
    _add_legend(fig)
    sizes = []
    for generation in run.generations:
        pool = generation.record["pool"]
        sizes.append(f"generation {generation.number}: {pool['real']} real of {pool['size']}")
    return finish(fig, f"{prefix}pool", f"Stacked bars. {'; '.join(sizes)}.", CAPTION)


def _layers(run: Run) -> list[tuple[str, list[int]]]:
    """(name, images in each generation's pool) of the real images and of each origin."""
    pools = [generation.record["pool"] for generation in run.generations]
    origins: set[int] = set()
    for pool in pools:
        origins.update(int(origin) for origin in pool["generated"])
    layers = [("real", [pool["real"] for pool in pools])]
    for origin in sorted(origins):
        counts = [pool["generated"].get(str(origin), 0) for pool in pools]
        layers.append((f"generation {origin}", counts))
    return layers


def _add_legend(fig: Figure) -> None:
    """A legend in the order of the stack; of many origins it names a few."""
    handles, labels = fig.axes[0].get_legend_handles_labels()
    # Reversed, so that the legend begins at the top of the stack.
    named = spread(range(len(handles)), LEGEND)[::-1]
    fig.legend(
        [handles[i] for i in named],
        [labels[i] for i in named],
        loc="outside right upper",
        handlelength=1.2,
    )
