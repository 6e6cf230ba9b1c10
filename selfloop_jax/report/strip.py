"""The strip at the top of a page: a few real and generated images, generation by generation."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from selfloop_jax.analysis.runs import Examples, Run
from selfloop_jax.report.sample_grid import EMPTY, resized
from selfloop_jax.report.style import CSS, DPI, RenderedFigure, figure, finish, spread

GENERATIONS = 6  # shown, at most
LOOPS = 3  # shown, at most
ROWS, CLASSES = 2, 5  # images of a class, and classes, in a block at most

# CSS pixels: width of the sheet, of the names of the loops, gap between images, between blocks,
# height of the titles, largest side of an image of one loop and of several.
WIDTH, NAMES, GAP, BETWEEN, TITLE = 1040, 128, 2, 12, 20
LARGEST, SMALLER = 40, 26

Blocks = dict[int, Examples]  # by generation, -1: the real images


@dataclass(frozen=True)
class _Layout:
    """Where the blocks of a strip are, in CSS pixels from the upper left corner."""

    loops: int
    columns: int
    classes: int
    own: int  # side of the largest image

    @property
    def left(self) -> int:
        """Where the blocks begin: one loop needs no name."""
        return NAMES if self.loops > 1 else 0

    @property
    def side(self) -> int:
        """Of an image: a whole multiple, or a whole fraction, of its own; see `sample_grid`."""
        room = (WIDTH - self.left) // self.columns - BETWEEN
        # Rows of several loops must leave the sentences below them on the first screen.
        largest = LARGEST if self.loops == 1 else SMALLER
        most = int(np.clip(room // self.classes - GAP, 12, largest))
        if self.own <= most:
            return self.own * (most // self.own)
        return -(-self.own // -(-self.own // most))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the strip."""
        return self.y(self.loops) - BETWEEN, self.x(self.columns) - BETWEEN

    def x(self, column: int) -> int:
        """Returns the left edge of a block."""
        return self.left + column * (self.classes * (self.side + GAP) + BETWEEN)

    def y(self, loop: int) -> int:
        """Returns the upper edge of a block."""
        return TITLE + loop * (ROWS * (self.side + GAP) + BETWEEN)


def strip(runs: Mapping[str, Run]) -> RenderedFigure | None:
    """Returns a row of blocks per run by its name, the real images first; None without images.

    A block has the first images, by id, of up to five classes.
    """
    found = {name: _blocks(run) for name, run in runs.items()}
    with_samples = {name: blocks for name, blocks in found.items() if max(blocks, default=-1) >= 0}
    shown = dict(list(with_samples.items())[:LOOPS])
    if not shown:
        return None
    every = sorted({g for blocks in shown.values() for g in blocks if g >= 0})
    # -1 stays in front, also where the real images are missing: their block is gray then.
    columns = [-1, *spread(every, GENERATIONS)]
    examples = [block for blocks in shown.values() for block in blocks.values()]
    own = max(images.shape[1] for block in examples for images in block)
    layout = _Layout(len(shown), len(columns), min(CLASSES, len(examples[0])), own)
    fig = _figure(shown, columns, layout)
    titles = ", ".join(map(_title, columns))
    loops = f", a row for each of the loops {'; '.join(shown)}" if len(shown) > 1 else ""
    caption = ["Real images, then samples by generation: the first of a few classes, by id."]
    if len(shown) < len(runs):
        caption.append(f"{len(shown)} of {len(runs)} loops are shown.")
    if len(columns) - 1 < len(every):
        caption.append(f"{len(columns) - 1} of {len(every)} generations are shown.")
    return finish(fig, "strip", f"Strip of images: {titles}{loops}.", " ".join(caption))


def _blocks(run: Run) -> Blocks:
    blocks = {g.number: g.by_class for g in run.generations if g.by_class is not None}
    if run.real_by_class is not None:
        blocks[-1] = run.real_by_class
    return blocks


def _title(generation: int) -> str:
    return f"generation {generation}" if generation >= 0 else "real"


def _figure(shown: Mapping[str, Blocks], columns: Sequence[int], layout: _Layout) -> Figure:
    """The images, with generations above and the names of several loops at the left."""
    scale = DPI // CSS
    height, width = layout.size
    pixels = np.full((height * scale, width * scale, 3), 255, np.uint8)
    fig = figure(width / CSS, height / CSS, layout=None)
    for row, (name, blocks) in enumerate(shown.items()):
        for column, generation in enumerate(columns):
            _paste(pixels, blocks.get(generation, ()), layout, row, column)
        if layout.left:
            middle = layout.y(row) + ROWS * (layout.side + GAP) / 2
            lines = "\n".join(textwrap.wrap(name, 20)[:3])
            fig.text(0, 1 - middle / height, lines, va="center", ha="left", size=8)
    for column, generation in enumerate(columns):
        x = layout.x(column) / width
        fig.text(x, 1 - (TITLE - 5) / height, _title(generation), va="bottom", ha="left", size=8.5)
    fig.figimage(pixels, 0, 0, origin="upper")
    return fig


def _paste(pixels: np.ndarray, examples: Examples, layout: _Layout, row: int, column: int) -> None:
    """One block into uint8[H,W,3]; gray where there is no image."""
    scale = DPI // CSS
    side = layout.side * scale
    classes = spread(range(len(examples)), layout.classes)
    for i, j in np.ndindex(ROWS, layout.classes):
        images = examples[classes[j]] if j < len(classes) else ()
        top = (layout.y(row) + i * (layout.side + GAP)) * scale
        left = (layout.x(column) + j * (layout.side + GAP)) * scale
        image = images[i] if i < len(images) else EMPTY
        pixels[top : top + side, left : left + side] = resized(image, side)
