"""Sample grids: real images of each class or group, then those of each generation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from selfloop_jax.analysis.runs import EXAMPLES, Examples, Run
from selfloop_jax.report.style import CSS, DPI, RenderedFigure, figure, finish, spread

BLOCKS = 7  # generations shown, at most
COLUMNS = 20  # classes or groups shown, at most

# CSS pixels: width of the titles, gap between images, height of the text below a block, gap
# between blocks, width of the sheet, width of a letter.
LEFT = 98
GAP = 4
TEXT = 16
BETWEEN = 16
WIDTH = 1040
LETTER = 5.6

EMPTY = np.full((1, 1, 3), 238, np.uint8)  # grey where there is no image


@dataclass(frozen=True)
class _Block:
    """One generation, or the real images: examples per column, int[C,G] counts of all images."""

    title: str
    examples: Examples
    counts: np.ndarray | None


@dataclass(frozen=True)
class _Sheet:
    """The layout of a sheet, in CSS pixels from the upper left corner."""

    columns: list[int]  # the classes or groups shown
    names: list[str]
    blocks: int
    side: int

    @property
    def slanted(self) -> bool:
        """Whether the names are wider than their columns, so that they are slanted."""
        return max(map(len, self.names)) * LETTER > self.side + GAP

    @property
    def top(self) -> int:
        """Height of the line of names."""
        # 0.7 lies between the sine and the cosine of 40 degrees, the slant of the names.
        return 24 + self.slanted * round(0.7 * LETTER * max(map(len, self.names)))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the sheet."""
        # The last slanted name reaches beyond its column.
        overhang = self.slanted * round(0.7 * LETTER * len(self.names[-1]))
        return self.y(self.blocks), LEFT + len(self.columns) * (self.side + GAP) + overhang

    def y(self, block: int, row: int = 0) -> int:
        """Returns the top of a row of images; the text is in row EXAMPLES."""
        height = EXAMPLES * (self.side + GAP) + TEXT + BETWEEN
        return self.top + block * height + row * (self.side + GAP)

    def x(self, column: int) -> int:
        """Returns the left edge of a column of images."""
        return LEFT + column * (self.side + GAP)


def sample_grid(run: Run, prefix: str) -> RenderedFigure | None:
    """Returns all blocks of a run on one sheet, by class; None where there is no image."""
    blocks = []
    if run.real_by_class is not None:
        blocks.append(_Block("real", run.real_by_class, run.real_counts))
    for generation in spread([g for g in run.generations if g.by_class is not None], BLOCKS):
        if generation.by_class is not None:
            title = f"generation {generation.number}"
            blocks.append(_Block(title, generation.by_class, generation.generated_counts))
    name = f"{prefix}samples"
    return _grid(run, name, "classes", blocks, lambda sheet: _majority(run, blocks, sheet))


def group_grid(run: Run, prefix: str) -> RenderedFigure | None:
    """Returns real images and the first and last generation by group; None with one group."""
    if len(run.groups) < 2:
        return None
    blocks = []
    if run.real_by_group is not None:
        blocks.append(_Block("real", run.real_by_group, None))
    for generation in spread([g for g in run.generations if g.by_group is not None], 2):
        if generation.by_group is not None:
            blocks.append(_Block(f"generation {generation.number}", generation.by_group, None))
    return _grid(run, f"{prefix}samples_by_group", "groups", blocks, lambda sheet: [])


def _grid(
    run: Run,
    name: str,
    axis: str,
    blocks: Sequence[_Block],
    text_below: Callable[[_Sheet], list[list[str]]],
) -> RenderedFigure | None:
    if not any(_has_images(block) for block in blocks):
        return None
    columns = spread(range(len(run.data[axis])), COLUMNS)
    names = [str(run.data[axis][column]) for column in columns]
    sheet = _Sheet(columns, names, len(blocks), _side(blocks, len(columns)))
    text = text_below(sheet)
    pixels = _pixels(blocks, sheet)
    fig = figure(pixels.shape[1] / DPI, pixels.shape[0] / DPI, layout=None)
    fig.figimage(pixels, 0, 0, origin="upper")
    _write(fig, blocks, sheet, text)
    titles = ", ".join(block.title for block in blocks)
    alt = f"Grid of images, a column for each of the {axis} {', '.join(names)}; rows: {titles}."
    return finish(fig, name, alt, _caption(run, axis, blocks, sheet, bool(text)))


def _has_images(block: _Block) -> bool:
    return any(len(images) for images in block.examples)


def _side(blocks: Sequence[_Block], columns: int) -> int:
    """Side of a square: a whole multiple, or a whole fraction, of the image's own side."""
    # Otherwise nearest-neighbour scaling would make the pixels of one image unequal.
    own = 0
    for block in blocks:
        own = max(own, *(images.shape[1] for images in block.examples))
    most = int(np.clip((WIDTH - LEFT) / columns - GAP, 24, 72))
    # Enlarged by a whole factor, or reduced by the smallest whole divisor that fits.
    return own * (most // own) if own <= most else -(-own // -(-own // most))


def _pixels(blocks: Sequence[_Block], sheet: _Sheet) -> np.ndarray:
    """The sheet without text, uint8[H,W,3], at DPI / CSS pixels per CSS pixel."""
    scale = DPI // CSS
    height, width = sheet.size
    pixels = np.full((height * scale, width * scale, 3), 255, np.uint8)
    side = sheet.side * scale
    for b, row, column in np.ndindex(len(blocks), EXAMPLES, len(sheet.columns)):
        images = blocks[b].examples[sheet.columns[column]]
        top = sheet.y(b, row) * scale
        left = sheet.x(column) * scale
        image = images[row] if row < len(images) else EMPTY
        pixels[top : top + side, left : left + side] = resized(image, side)
    return pixels


def resized(image: np.ndarray, side: int) -> np.ndarray:
    """uint8[H,W,3] -> uint8[side,side,3] by nearest neighbour: each pixel stays a square."""
    # In integers, so that no rounding decides which pixel is taken.
    rows = np.arange(side) * image.shape[0] // side
    columns = np.arange(side) * image.shape[1] // side
    return image[rows][:, columns]


def _majority(run: Run, blocks: Sequence[_Block], sheet: _Sheet) -> list[list[str]]:
    """Per block and class the share of the real images' most frequent group; [] if too wide."""
    real = run.real_counts
    if real is None or run.nested:
        return []
    groups = real.argmax(axis=1)
    text = []
    for block in blocks:
        # A block without counts, of unknown composition, gets dashes.
        counts = np.zeros_like(real) if block.counts is None else block.counts
        text.append([_share(run.groups[groups[c]], counts[c], groups[c]) for c in sheet.columns])
    # Text wider than its column would run into the next one.
    longest = max(len(max(row, key=len)) for row in text)
    return text if longest * LETTER * 0.9 < sheet.side + GAP else []


def _share(name: str, counts: np.ndarray, group: int) -> str:
    total = counts.sum()
    return f"{name} {100 * counts[group] / total:.0f}%" if total else "–"


def _write(
    fig: Figure, blocks: Sequence[_Block], sheet: _Sheet, text: Sequence[Sequence[str]]
) -> None:
    """Names of the columns above, titles at the left, the text below each block."""
    for column, name in enumerate(sheet.names):
        look: dict[str, Any] = {"ha": "center"}
        x = sheet.x(column) + sheet.side / 2
        if sheet.slanted:
            look = {"rotation": 40, "ha": "left"}
            x = sheet.x(column) + sheet.side / 3
        _text(fig, sheet, x, sheet.top - 6, name, va="bottom", size=8.5, **look)
    for b, block in enumerate(blocks):
        middle = (sheet.y(b) + sheet.y(b, EXAMPLES) - GAP) / 2
        _text(fig, sheet, 0, middle, block.title, ha="left", size=8.5)
        for column, words in enumerate(text[b] if text else ()):
            x = sheet.x(column) + sheet.side / 2
            y = sheet.y(b, EXAMPLES) + 6
            _text(fig, sheet, x, y, words, ha="center", size=7, color="#555555")


def _text(fig: Figure, sheet: _Sheet, x: float, y: float, text: str, **look: Any) -> None:
    height, width = sheet.size
    look = {"va": "center", "rotation_mode": "anchor"} | look
    # matplotlib counts from the lower left corner, the sheet from the upper left one.
    fig.text(x / width, 1 - y / height, text, **look)


def _caption(run: Run, axis: str, blocks: Sequence[_Block], sheet: _Sheet, shares: bool) -> str:
    """What the sheet shows and what it leaves out."""
    one = {"classes": "class", "groups": "group"}[axis]
    parts = [
        f"One column per {one}. Of each generation its first {EXAMPLES} images by id, not "
        "cherry-picked."
    ]
    if blocks[0].title == "real":
        parts.append("Real images come first, for comparison.")
    if shares:
        parts.append(
            "Below each block: the most frequent group among the real images of the class, and its "
            "share in the block."
        )
    shown = sum(block.title != "real" for block in blocks)
    if shown < len(run.generations):
        parts.append(f"{shown} of {len(run.generations)} generations are shown.")
    if len(sheet.columns) < len(run.data[axis]):
        parts.append(f"{len(sheet.columns)} of {len(run.data[axis])} {axis} are shown.")
    return " ".join(parts)
