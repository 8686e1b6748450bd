"""Draws what is distilled: one picture of all bands, masks or weights of an entry, and the page of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from markupsafe import Markup
from mmengine.config import Config

from freekd_mm.checkpoints.sources import short_hash
from freekd_mm.checks import check_file
from freekd_mm.compat.versions import zip_equal
from freekd_mm.files import check_output, write_kept
from freekd_mm.log import quiet
from freekd_mm.pages.page import Line, draw, parts, picture, rgb, write_page
from freekd_mm.pictures import MASKED, SIDE, Tile, grid, mask_tiles, png, shrink
from freekd_mm.prompts.masks import named_groups
from freekd_mm.prompts.prompt_file import use_prompt
from freekd_mm.stage1.selectivity import describe
from freekd_mm.text import short_names
from freekd_mm.visualize.features import Seen, View, compare, read_images

#: What the bands' scale ends at: the strongest hundredth of the teacher's map is cut off.
TOP = 99.0
#: Instead of a strength: a white line between bands.
LINE = 2.0
#: What the pictures show.
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


def overviews(seen: Seen, image: np.ndarray) -> dict[str, np.ndarray]:
    """Returns what there is to see of an entry for an image (H, W, 3): one RGB picture per kind of ``TEXTS``."""
    found = {}
    if seen.bands:
        rows = [_band_tiles(seen, level, image) for level in range(len(seen.bands))]
        found['bands'] = grid([[Tile('image', shrink(image))], *rows])
    if seen.masks:
        rows = [row for level, groups in seen.masks.items() for row in mask_tiles(image, groups, f'{level}, ')]
        found['masks'] = grid([[Tile(MASKED, shrink(image))], *rows])
    if seen.weights:
        lines = [
            Line(f'level {level}', list(enumerate(np.sort(values)[::-1].tolist(), 1)), level)
            for level, values in enumerate(seen.weights)
        ]
        found['weights'] = rgb(draw(lines, 'channels, by weight', 'weight (1 on average)', legend=True))
    return found


def _band_tiles(seen: Seen, level: int, image: np.ndarray) -> list[Tile]:
    """Returns the pyramids of teacher, student and their difference, all on the scale of the teacher's bands."""
    # They have the proportions of the image (H, W, 3).
    after, before = seen.bands[level], seen.before[level] if seen.before else None
    drawn = [(seen.teacher, after.teacher)]
    for name in ('student', 'difference'):
        drawn += [(f'{name} before', getattr(before, name))] if before else []
        drawn += [(f'{name} after' if before else name, getattr(after, name))]
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


def visualize(
    cfg: Config,
    checkpoint: str | Path,
    images: Sequence[str | Path],
    out: str | Path,
    before: bool = False,
    force: bool = False,
) -> list[Path]:
    """Writes what a distilled student and its teacher compare, as the tool does: a page, or a folder of PNG files."""
    check_file('a checkpoint', checkpoint)
    is_page = Path(out).suffix.lower() in ('.html', '.htm')
    if is_page:
        check_output(out, [checkpoint, *images], force)
    use_prompt(cfg)
    with quiet():
        views = compare(cfg, checkpoint, read_images(cfg, images), before)
    for seen in views[0].entries:
        if seen.masks:
            print(f"the weight of the prompt of '{seen.entry}':\n{describe(seen.prompt)}")
    if not is_page:
        drawn = {
            Path(out) / f'{name}_{seen.entry}_{kind}.png': overview
            for name, view in zip_equal(short_names(images), views)
            for seen in view.entries
            for kind, overview in overviews(seen, view.image).items()
        }
        if not drawn:
            raise ValueError('there is nothing to show: ' + '; '.join(f'{s.entry}: {s.note}' for s in views[0].entries))
        for path in drawn:
            check_output(path, images, force)
        return [write_kept(path, png(overview)) for path, overview in drawn.items()]
    says = '/'.join(Path(checkpoint).parts[-2:]) + f' ({short_hash(checkpoint)})'
    if before:
        says = f'"Before" is the student as its training started, "after" is {says}.'
    found = [parts.section(Path(file).name, view_parts(view)) for file, view in zip_equal(images, views)]
    title = f'What {Path(cfg.filename).name} distils'
    return [write_page(out, title, Path(checkpoint).name, [parts.notes([says]), *found])]


def view_parts(view: View) -> list[Markup]:
    """Returns everything about one image, with what the pictures mean."""
    found = [parts.pictures([picture(view.image, 'the picture, as the models see it')])]
    for seen in view.entries:
        found.append(parts.heading(f'{seen.entry}: student and {seen.teacher}'))
        if seen.note:
            found.append(parts.remark(f'Nothing to show: {seen.note}.'))
        for kind, overview in overviews(seen, view.image).items():
            found.append(picture(overview, TEXTS[kind]))
            if kind == 'masks':
                found.append(parts.code(describe(seen.prompt)))
            if kind == 'bands':
                found += _distances(seen)
    return found


def _distances(seen: Seen) -> list[Markup]:
    """Returns what the loss does not see, and the mean distance of each band and level, before and after."""

    def cell(level: int, band: int) -> str:
        values = [maps[level].difference[band].mean() for maps in (seen.before, seen.bands) if maps]
        return ' \u2192 '.join(f'{value:.3g}' for value in values)

    levels, names = range(len(seen.bands)), named_groups(seen.bands[0].teacher, 'band')
    rows = [[name, *(cell(level, band) for level in levels)] for band, name in enumerate(names)]
    change = ', before \u2192 after' if seen.before else ''
    text = f'Mean distance in each band{change}; 1 is the finest wavelet level.'
    header = ['', *(f'level {level}' for level in levels)]
    return [parts.remark(' '.join([*seen.remarks, text])), parts.table(header, rows, 't' + 'n' * len(levels))]
