"""Draws what is distilled: bands, masks and weights, as panels for PNG files, pages and the visualizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from freekd_mm.compat.versions import zip_equal
from freekd_mm.pages.page import Line, draw, rgb
from freekd_mm.pictures import MASKED, SIDE, Tile, grid, mask_tiles, shrink
from freekd_mm.visualize.features import Seen, View

#: What the bands' scale ends at: the strongest hundredth of the teacher's map is cut off.
TOP = 99.0
WEIGHT_AXES = ('channels, by weight', 'weight (1 on average)')
#: Instead of a strength: a white line between bands.
LINE = 2.0
#: What the panels show.
TEXTS = {
    'bands': 'Wavelet bands of the features: the low band is top left, around it are the details of finer and finer '
    'levels, horizontal ones top right, vertical ones bottom left, diagonal ones bottom right. Bright is strong; all '
    "pictures of a row have the scale of the teacher's bands, so a difference as bright as the teacher says that "
    'nothing was learned there.',
    'masks': 'PoI masks: where the tokens of the prompt look in the bands of the teacher, red for 1 and blue for 0. '
    'Details 1 are the finest ones. All red: nothing is selected in that band, each position counts.',
    'weights': 'Relation weights: how much each channel counts in the loss. They are 1 on average and never below one '
    'half.',
}


class Panel(NamedTuple):
    """All pictures of one kind of an entry."""

    kind: str  # a key of TEXTS
    levels: list[list[list[Tile]]]  # rows of pictures by feature level
    lines: list[Line]  # of a chart instead


def panels(seen: Seen, image: np.ndarray, before: Seen | None = None) -> list[Panel]:
    """Returns what there is to see of an entry, with the student before if it is given."""
    bands = [[_band_tiles(seen, level, image, before)] for level in range(len(seen.bands))]
    masks = [mask_tiles(image, groups, f'{level}, ') for level, groups in seen.masks.items()]
    weights = [
        # The largest first.
        Line(f'level {level}', list(enumerate(np.sort(values)[::-1].tolist(), 1)), level)
        for level, values in enumerate(seen.weights)
    ]
    found = (Panel('bands', bands, []), Panel('masks', masks, []), Panel('weights', [], weights))
    return [panel for panel in found if panel.levels or panel.lines]


def overviews(view: View, before: View | None = None) -> list[tuple[str, np.ndarray]]:
    """Returns everything about one image as few RGB pictures by name, e.g. 'freekd_bands', 'freekd_masks'."""
    found = []
    for index, seen in enumerate(view.entries):
        for panel in panels(seen, view.image, before.entries[index] if before else None):
            if panel.lines:
                picture = rgb(draw(panel.lines, *WEIGHT_AXES, legend=True))
            else:
                rows = [row for level in panel.levels for row in level]
                picture = grid([[Tile(MASKED if panel.kind == 'masks' else 'image', shrink(view.image))], *rows])
            found.append((f'{seen.entry}_{panel.kind}', picture))
    return found


def _band_tiles(seen: Seen, level: int, image: np.ndarray, before: Seen | None) -> list[Tile]:
    """Returns the pyramids of teacher, student and their difference, all on the scale of the teacher's bands."""
    # They have the proportions of the image (H, W, 3).
    after, first = seen.bands[level], before.bands[level] if before else None
    drawn = [(seen.teacher, after.teacher)]
    for name in ('student', 'difference'):
        drawn += [(f'{name} before', getattr(first, name))] if first else []
        drawn += [(f'{name} after' if first else name, getattr(after, name))]
    tops = [max(float(np.percentile(band, TOP)), 1e-12) for band in after.teacher]
    return [
        Tile(f'level {level}: {title}', pyramid([band / top for band, top in zip_equal(maps, tops)], image.shape[:2]))
        for title, maps in drawn
    ]


def pyramid(bands: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Returns all bands in one RGB picture: the low band top left, around it the details of finer and finer levels.

    Of each level the horizontal detail is top right, the vertical bottom left, the diagonal bottom right. The values
    are in [0, 1]: low band, then horizontal, vertical, diagonal from the finest level on; the shape is the image's.
    """
    levels = (len(bands) - 1) // 3
    height, width = (max(2**levels, round(length * SIDE / max(shape))) for length in shape)
    drawn = _stretch(bands[0], height >> levels, width >> levels)
    for level in reversed(range(levels)):
        rows, columns = drawn.shape
        below, beside = (height >> level) - rows, (width >> level) - columns
        horizontal, vertical, diagonal = bands[1 + 3 * level : 4 + 3 * level]
        top = np.hstack([drawn, _stretch(horizontal, rows, beside)])
        drawn = np.vstack([top, np.hstack([_stretch(vertical, below, columns), _stretch(diagonal, below, beside)])])
        drawn[rows] = drawn[:, columns] = LINE
    coloured = cv2.applyColorMap((255 * drawn.clip(0, 1)).astype(np.uint8), cv2.COLORMAP_VIRIDIS)
    coloured[drawn == LINE] = 255
    return cv2.cvtColor(coloured, cv2.COLOR_BGR2RGB)


def _stretch(band: np.ndarray, height: int, width: int) -> np.ndarray:
    return cv2.resize(band.clip(0, 1).astype(np.float32), (width, height), interpolation=cv2.INTER_NEAREST)
