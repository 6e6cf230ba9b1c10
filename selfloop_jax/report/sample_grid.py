"""Sample grids: images of each class or group, real ones first, then those of the generations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from selfloop_jax.analysis.arrays import TILES, Tiles
from selfloop_jax.analysis.runs import Run
from selfloop_jax.report.style import CSS, DPI, RenderedFigure, figure, finish, spread

_BLOCKS = 7  # generations shown


_COLUMNS = 20  # classes or groups shown


_LEFT, _GAP, _MARK, _BETWEEN, _WIDTH = 98, 4, 16, 16, 1040  # CSS pixels


_LETTER = 5.6  # CSS pixels a letter of the class names takes


_EMPTY = np.full((1, 1, 3), 238, np.uint8)  # a cell without an image is grey


@dataclass(frozen=True)
class _Block:
    """One generation, or the real images: tiles per class, and int[C,G] counts of all its images."""

    title: str
    tiles: Tiles
    joint: np.ndarray | None


@dataclass(frozen=True)
class _Sheet:
    """Where things lie, in CSS pixels from the upper left corner."""

    classes: list[int]
    names: list[str]
    blocks: int
    side: int

    @property
    def slanted(self) -> bool:
        """Class names that are wider than their column are slanted."""
        return max(map(len, self.names)) * _LETTER > self.side + _GAP

    @property
    def top(self) -> int:
        """Height of the line of class names."""
        return 24 + self.slanted * round(0.7 * _LETTER * max(map(len, self.names)))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the sheet."""
        over = self.slanted * round(0.7 * _LETTER * len(self.names[-1]))
        return self.y(self.blocks), _LEFT + len(self.classes) * (self.side + _GAP) + over

    def y(self, block: int, row: int = 0) -> int:
        """Top of a row of images; row TILES is where the marks stand."""
        tall = TILES * (self.side + _GAP) + _MARK + _BETWEEN
        return self.top + block * tall + row * (self.side + _GAP)

    def x(self, column: int) -> int:
        """Left edge of a column of images."""
        return _LEFT + column * (self.side + _GAP)


def sample_grid(run: Run, prefix: str) -> RenderedFigure | None:
    """All blocks of a run on one sheet, by class, or None where there is no image to show."""
    blocks = _blocks(run)
    return _grid(
        run, f"{prefix}samples", "classes", blocks, lambda sheet: _marks(run, blocks, sheet)
    )


def group_grid(run: Run, prefix: str) -> RenderedFigure | None:
    """The same by group, of the real images and the first and last generation; None with a single group."""
    if len(run.data["groups"]) < 2:
        return None
    real = [_Block("real", run.real_groups, None)] if run.real_groups is not None else []
    drawn = [g for g in run.generations if g.group_tiles is not None]
    shown = [_Block(f"generation {g.number}", g.group_tiles, None) for g in spread(drawn, 2)]
    return _grid(run, f"{prefix}samples_by_group", "groups", real + shown, lambda sheet: [])


def _grid(
    run: Run, name: str, of: str, blocks: list[_Block], mark: Callable[[_Sheet], list[list[str]]]
) -> RenderedFigure | None:
    if not any(len(tile) for block in blocks for tile in block.tiles):
        return None
    columns = spread(range(len(run.data[of])), _COLUMNS)
    names = [str(run.data[of][c]) for c in columns]
    sheet = _Sheet(columns, names, len(blocks), _side(blocks, len(columns)))
    marks = mark(sheet)
    pixels = _pixels(blocks, sheet)
    made = figure(pixels.shape[1] / DPI, pixels.shape[0] / DPI, layout=None)
    made.figimage(pixels, 0, 0, origin="upper")
    _write(made, blocks, sheet, marks)
    alt = f"Grid of images, one column for each of the {of} {', '.join(names)}; from the top: "
    alt += ", ".join(block.title for block in blocks)
    return finish(made, name, f"{alt}.", _caption(run, of, blocks, sheet, bool(marks)))


def _blocks(run: Run) -> list[_Block]:
    """Real images, then the generations shown; what has no file is left out."""
    real = [_Block("real", run.real, run.reference)] if run.real is not None else []
    shown = spread([g for g in run.generations if g.tiles is not None], _BLOCKS)
    return real + [_Block(f"generation {g.number}", g.tiles, g.joint) for g in shown]


def _side(blocks: Sequence[_Block], columns: int) -> int:
    """Side of a cell: a whole multiple, or a whole fraction, of the image's own side."""
    own = max(tile.shape[1] for block in blocks for tile in block.tiles)
    most = int(np.clip((_WIDTH - _LEFT) / columns - _GAP, 24, 72))
    return own * (most // own) if own <= most else -(-own // -(-own // most))


def _pixels(blocks: Sequence[_Block], sheet: _Sheet) -> np.ndarray:
    """The sheet without text, uint8[H,W,3], at DPI / CSS pixels per CSS pixel."""
    scale = DPI // CSS
    height, width = sheet.size
    pixels = np.full((height * scale, width * scale, 3), 255, np.uint8)
    for b, row, column in np.ndindex(len(blocks), TILES, len(sheet.classes)):
        tiles = blocks[b].tiles[sheet.classes[column]]
        top, left, side = sheet.y(b, row) * scale, sheet.x(column) * scale, sheet.side * scale
        tile = resized(tiles[row] if row < len(tiles) else _EMPTY, side)
        pixels[top : top + side, left : left + side] = tile
    return pixels


def resized(tile: np.ndarray, side: int) -> np.ndarray:
    """uint8[H,W,3] -> uint8[side,side,3] by nearest neighbour: every pixel stays a visible square."""
    rows, columns = (np.arange(side) * length // side for length in tile.shape[:2])
    return tile[rows][:, columns]


def _marks(run: Run, blocks: Sequence[_Block], sheet: _Sheet) -> list[list[str]]:
    """Per block and class the share of the group most frequent among real images; [] if they do not fit."""
    reference = run.reference
    if reference is None or run.nested:
        return []
    groups = reference.argmax(axis=1)
    names = [str(run.data["groups"][g]) for g in groups]
    marks = [
        [_mark(names[c], block.joint[c], groups[c]) for c in sheet.classes] for block in blocks
    ]
    fits = max(len(mark) for row in marks for mark in row) * _LETTER * 0.9 < sheet.side + _GAP
    return marks if fits else []


def _mark(name: str, counts: np.ndarray, group: int) -> str:
    total = counts.sum()
    return f"{name} {100 * counts[group] / total:.0f}%" if total else "none"


def _write(made: Figure, blocks: Sequence[_Block], sheet: _Sheet, marks: list[list[str]]) -> None:
    """Class names above, titles at the left, marks below each block."""
    for column, name in enumerate(sheet.names):
        look = {"rotation": 40, "ha": "left"} if sheet.slanted else {"ha": "center"}
        x = sheet.x(column) + sheet.side / (3 if sheet.slanted else 2)
        _text(made, sheet, x, sheet.top - 6, name, va="bottom", size=8.5, **look)
    for b, block in enumerate(blocks):
        middle = (sheet.y(b) + sheet.y(b, TILES) - _GAP) / 2
        _text(made, sheet, 0, middle, block.title, ha="left", size=8.5)
        for column, mark in enumerate(marks[b] if marks else ()):
            x = sheet.x(column) + sheet.side / 2
            _text(made, sheet, x, sheet.y(b, TILES) + 6, mark, ha="center", size=7, color="#555555")


def _text(made: Figure, sheet: _Sheet, x: float, y: float, text: str, **look) -> None:
    height, width = sheet.size
    made.text(
        x / width, 1 - y / height, text, **({"va": "center", "rotation_mode": "anchor"} | look)
    )


def _caption(run: Run, of: str, blocks: Sequence[_Block], sheet: _Sheet, marked: bool) -> str:
    """What one sees, and what is left out."""
    one = {"classes": "class", "groups": "group"}[of]
    parts = [
        f"One column per {one}. Of each generation its first {TILES} images by id, not picked."
    ]
    if blocks[0].title == "real":
        parts.append("Real images stand first, for comparison.")
    if marked:
        parts.append(
            "Below: the group most frequent among real images of the class, and its share in the block."
        )
    shown = sum(block.title != "real" for block in blocks)
    if shown < len(run.generations):
        parts.append(f"{shown} of {len(run.generations)} generations are shown.")
    if len(sheet.classes) < len(run.data[of]):
        parts.append(f"{len(sheet.classes)} of {len(run.data[of])} {of} are shown.")
    return " ".join(parts)
