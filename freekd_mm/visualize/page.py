"""What is distilled as parts of an HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
from markupsafe import Markup

from freekd_mm.pages.charts import key, line_chart
from freekd_mm.pages.page import parts, picture
from freekd_mm.pictures import Tile, mask_tiles
from freekd_mm.stage1.selectivity import describe
from freekd_mm.visualize.draw import WEIGHT_AXES, band_tiles, weight_lines
from freekd_mm.visualize.features import Seen, View

BANDS = (
    'Wavelet bands of the features: the low band is top left, around it are the details of finer and finer levels, '
    'horizontal ones top right, vertical ones bottom left, diagonal ones bottom right. Bright is strong; all pictures '
    "of a row have the scale of the teacher's bands, so a difference as bright as the teacher says that nothing was "
    'learned there.'
)
DISTANCES = 'Mean distance in each band{}; 1 is the finest wavelet level.'
MASKS = (
    'PoI masks: where the tokens of the prompt look in the bands of the teacher, red for 1 and blue for 0. Details 1 '
    'are the finest ones.'
)
WEIGHTS = 'Relation weights: how much each channel counts in the loss. They are 1 on average and never below one half.'


def view_parts(view: View, before: View | None = None) -> list[Markup]:
    """Returns everything about one image, with what the pictures mean."""
    found = [parts.pictures([picture(view.image, 'the picture, as the models see it', photo=True)])]
    for index, seen in enumerate(view.entries):
        found.append(parts.heading(seen.entry))
        found += entry_parts(seen, view.image, before.entries[index] if before else None)
    return found


def entry_parts(seen: Seen, image: np.ndarray, before: Seen | None = None) -> list[Markup]:
    """Returns bands, distances, masks and weights of one entry."""
    if seen.note:
        return [parts.remark(f'Nothing to show: {seen.note}.')]
    found = [parts.remark(' '.join([BANDS, *seen.remarks]))]
    found += [_row(band_tiles(seen, level, image, before)) for level in range(len(seen.bands))]
    found += [parts.remark(DISTANCES.format(', before \u2192 after' if before else '')), distance_table(seen, before)]
    if seen.masks:
        found += [parts.remark(MASKS), parts.code(describe(seen.prompt))]
    for level, groups in enumerate(seen.masks):
        found.append(_row([*chain(*mask_tiles(image, groups, f'level {level}, '))], photo=True))
    if seen.weights:
        lines = weight_lines(seen)
        chart = line_chart('relation weights', lines, *WEIGHT_AXES)
        legend = parts.legend([key(line.label, line.style) for line in lines])
        found += [parts.remark(WEIGHTS), legend, parts.charts([chart])]
    return found


def _row(tiles: Sequence[Tile], photo: bool = False) -> Markup:
    return parts.pictures([picture(drawn, title, photo) for title, drawn in tiles], min(len(tiles), 8), 128)


def distance_table(seen: Seen, before: Seen | None = None) -> Markup:
    """Returns the mean distance of each band and level, before and after."""

    def cell(level: int, band: int) -> str:
        values = [found.bands[level].difference[band].mean() for found in (before, seen) if found]
        return ' \u2192 '.join(f'{value:.3g}' for value in values)

    levels = range(len(seen.bands))
    rows = [[name, *(cell(level, band) for level in levels)] for band, name in enumerate(seen.bands[0].names)]
    return parts.table(['', *(f'level {level}' for level in levels)], rows, 't' + 'n' * len(levels))
