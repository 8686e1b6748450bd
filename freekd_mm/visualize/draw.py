"""Draws what is distilled as tiles: bands, masks and weights."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from freekd_mm.compat.versions import zip_equal
from freekd_mm.pages.charts import Line, draw, rgb
from freekd_mm.pictures import SIDE, Tile, grid, mask_tiles, shrink
from freekd_mm.visualize.features import Seen, View

#: What the bands' scale ends at: the strongest hundredth of the teacher's map is cut off.
TOP = 99.0
WEIGHT_AXES = ('channels, by weight', 'weight (1 on average)')
#: Instead of a strength: a white line between bands.
LINE = 2.0


def band_tiles(seen: Seen, level: int, image: np.ndarray, before: Seen | None = None) -> list[Tile]:
    """Returns the pyramids of teacher, student and their difference, all on the scale of the teacher's bands.

    They have the proportions of the image (H, W, 3).
    """
    after = seen.bands[level]
    tops = [max(float(np.percentile(band, TOP)), 1e-12) for band in after.teacher]
    if before is None:
        drawn = [('teacher', after.teacher), ('student', after.student), ('difference', after.difference)]
    else:
        first = before.bands[level]
        drawn = [
            ('teacher', after.teacher),
            *(('student before', first.student), ('student after', after.student)),
            *(('difference before', first.difference), ('difference after', after.difference)),
        ]
    return [
        Tile(f'level {level}: {title}', pyramid([band / top for band, top in zip_equal(maps, tops)], image.shape[:2]))
        for title, maps in drawn
    ]


def pyramid(bands: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Returns all bands in one RGB picture: the low band top left, around it the details of finer and finer levels.

    Of each level the horizontal detail is top right, the vertical bottom left, the diagonal bottom right.

    Args:
        bands: Values in [0, 1]: low band, then horizontal, vertical, diagonal from the finest level on.
        shape: Height and width, for the proportions.
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


def weight_lines(seen: Seen) -> list[Line]:
    """Returns the weights of the channels of every level as curves, the largest first."""
    return [
        Line(f'level {level}', list(enumerate(np.sort(weights)[::-1].tolist(), 1)), level)
        for level, weights in enumerate(seen.weights)
    ]


def overviews(view: View, before: View | None = None) -> list[tuple[str, np.ndarray]]:
    """Returns everything about one image as few RGB pictures by name, e.g. 'freekd_bands', 'freekd_masks'."""
    found = []
    for index, seen in enumerate(view.entries):
        first = before.entries[index] if before else None
        if seen.bands:
            rows = [band_tiles(seen, level, view.image, first) for level in range(len(seen.bands))]
            found.append((f'{seen.entry}_bands', grid(rows)))
        if seen.masks:
            rows = [[Tile('image', shrink(view.image))]]
            for level, groups in enumerate(seen.masks):
                rows += mask_tiles(view.image, groups, f'level {level}, ')
            found.append((f'{seen.entry}_masks', grid(rows)))
        if seen.weights:
            figure = draw(weight_lines(seen), *WEIGHT_AXES, legend=True)
            found.append((f'{seen.entry}_weights', rgb(figure)))
    return found
