"""The pictures as parts of an HTML page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from freekd_mm.pictures import jpeg, png
from freekd_mm.report.charts import number
from freekd_mm.report.page import heading, paragraph, picture, pictures, table
from freekd_mm.visualize.draw import Tile, level_tiles, mask_tiles, weight_tiles
from freekd_mm.visualize.features import Seen, View

BANDS = (
    'Wavelet bands of the features: the low band is top left, around it lie the details of ever finer levels, '
    'horizontal ones top right, vertical ones bottom left, diagonal ones bottom right. Bright is strong; all pictures '
    "of a row have the scale of the teacher's bands, so a difference as bright as the teacher says that nothing was "
    'learned there.'
)
DISTANCES = 'Mean distance in each band; 1 is the finest wavelet level.'
BEFORE_AND_AFTER = 'Mean distance in each band, before \u2192 after; 1 is the finest wavelet level.'
MASKS = (
    'PoI masks: where the prompt looks in the bands of the teacher, red for 1 and blue for 0. One column a token; rows '
    'are the low band, then the details from the finest to the coarsest level.'
)
WEIGHTS = 'Relation weights: how much each channel counts in the loss. They are 1 on average and never below one half.'


def view_parts(view: View, before: View | None = None) -> str:
    """Returns everything about one image, with what the pictures mean."""
    parts = []
    for index, seen in enumerate(view.entries):
        parts.append(entry_parts(seen, view.image, before.entries[index] if before else None))
    return ''.join(parts)


def entry_parts(seen: Seen, image: np.ndarray, before: Seen | None = None) -> str:
    """Returns bands, distances, masks and weights of one entry."""
    if seen.note:
        return heading(seen.entry) + paragraph(f'Nothing to show: {seen.note}.', soft=True)
    parts = [heading(seen.entry), paragraph(' '.join([BANDS, *seen.remarks]), soft=True)]
    for level in range(len(seen.bands)):
        tiles = level_tiles(seen, level, image, before)
        parts.append(pictures(*_figures(tiles, f'level {level}: '), columns=len(tiles)))
    parts += [paragraph(BEFORE_AND_AFTER if before else DISTANCES, soft=True), distance_table(seen, before)]
    if seen.masks:
        parts += [
            paragraph(MASKS, soft=True),
            pictures(*_figures(mask_tiles(seen, image), photo=True), columns=3, least=300),
        ]
    if seen.weights:
        parts += [paragraph(WEIGHTS, soft=True), pictures(*_figures(weight_tiles(seen)), columns=3, least=300)]
    return ''.join(parts)


def distance_table(seen: Seen, before: Seen | None = None) -> str:
    """Returns the mean distance of each band and level, before and after."""

    def cell(level: int, band: int) -> str:
        now = number(float(seen.bands[level].difference[band].mean()), 3)
        if before is None:
            return now
        return f'{number(float(before.bands[level].difference[band].mean()), 3)} \u2192 {now}'

    levels = range(len(seen.bands))
    rows = [[name, *(cell(level, band) for level in levels)] for band, name in enumerate(seen.bands[0].names)]
    return table(['', *(f'level {level}' for level in levels)], rows, 't' + 'n' * len(levels))


def _figures(tiles: Sequence[Tile], prefix: str = '', photo: bool = False) -> list[str]:
    encode = jpeg if photo else png
    return [picture(encode(tile.picture), f'{prefix}{tile.title}') for tile in tiles]
