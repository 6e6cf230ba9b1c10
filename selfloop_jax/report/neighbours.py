"""Drawn images beside the training images nearest to them: has the generator learned, or copied?"""

import numpy as np

from selfloop_jax.analysis.runs import Run
from selfloop_jax.report.sample_grid import resized
from selfloop_jax.report.style import CSS, DPI, RenderedFigure, figure, finish, spread

_PAIRS, _IN_A_ROW = 30, 10  # shown, at most


_SIDE, _GAP, _BELOW = 44, 3, 15  # CSS pixels: a picture, between two of a pair, for the distance


def pairs(run: Run, prefix: str) -> RenderedFigure | None:
    """Pairs of the last generation, drawn left and nearest real right, its distance below; None without."""
    found = run.last.neighbours
    if found is None or not len(found["id"]):
        return None
    shown = np.array(spread(range(len(found["id"])), _PAIRS))
    width, height = 2 * _SIDE + _GAP + 10, _SIDE + _BELOW + 6
    rows = -(-len(shown) // _IN_A_ROW)
    scale = DPI // CSS
    sheet = np.full((rows * height * scale, _IN_A_ROW * width * scale, 3), 255, np.uint8)
    made = figure(sheet.shape[1] / DPI, sheet.shape[0] / DPI, layout=None)
    for place, i in enumerate(shown):
        top, left = place // _IN_A_ROW * height, place % _IN_A_ROW * width
        for offset, name in ((0, "pixels"), (_SIDE + _GAP, "neighbour")):
            x, y, side = (left + offset) * scale, top * scale, _SIDE * scale
            sheet[y : y + side, x : x + side] = resized(found[name][i], side)
        made.text(
            (left + _SIDE) / (_IN_A_ROW * width),
            1 - (top + _SIDE + _BELOW / 2) / (rows * height),
            f"{found['distance'][i]:.2g}",
            ha="center",
            va="center",
            fontsize=7,
            color="#555555",
        )
    made.figimage(sheet, 0, 0, origin="upper")
    caption = (
        f"Images drawn by generation {run.last.number}, each beside the training image nearest to it in the "
        "features of the classifier of generation 0, with their distance. Copies would look alike; how often "
        "drawn images are nearer to training images than to others is under Metrics over generations."
    )
    return finish(
        made, f"{prefix}neighbours", f"{len(shown)} pairs of a drawn and a real image.", caption
    )
