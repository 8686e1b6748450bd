"""Draws bands, masks and weights as RGB pictures, and puts them side by side with their titles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from freekd_mm.compat.versions import zip_equal
from freekd_mm.pictures import TILE, mask_picture
from freekd_mm.visualize.features import BandMaps, Seen, View

#: What the bands' scale ends at: the strongest hundredth of the teacher's map is cut off.
TOP = 99.0
BARS = '#3b82c4'
#: Readable on a light and on a dark page.
INK = '#808b96'
TITLE = 22
GAP = 6


@dataclass(frozen=True)
class Tile:
    """A picture with its title.

    Attributes:
        title: What it shows.
        picture: (H, W, 3) RGB or (H, W, 4) RGBA.
    """

    title: str
    picture: np.ndarray


def band_tiles(after: BandMaps, before: BandMaps | None = None, shape: tuple[int, int] = (1, 1)) -> list[Tile]:
    """Returns the pyramids of teacher, student and their difference, all on the scale of the teacher's bands.

    Args:
        after: The bands of one level.
        before: Those of the student before the distillation.
        shape: Height and width of the image, for its proportions.
    """
    tops = [max(float(np.percentile(band, TOP)), 1e-12) for band in after.teacher]

    def draw(title: str, maps: Sequence[np.ndarray]) -> Tile:
        return Tile(title, pyramid([band / top for band, top in zip_equal(maps, tops)], shape))

    if before is None:
        students = [draw('student', after.student), draw('difference', after.difference)]
    else:
        students = [
            draw('student before', before.student),
            draw('student after', after.student),
            draw('difference before', before.difference),
            draw('difference after', after.difference),
        ]
    return [draw('teacher', after.teacher), *students]


def pyramid(bands: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Returns all bands in one RGB picture: the low band top left, around it the details of ever finer levels.

    Of each level the horizontal detail is top right, the vertical bottom left, the diagonal bottom right.

    Args:
        bands: Values in [0, 1]: low band, then horizontal, vertical, diagonal from the finest level on.
        shape: Height and width, for the proportions.
    """
    import cv2

    scale = TILE / max(shape)
    height, width = (max(2, round(length * scale)) for length in shape)
    canvas = np.zeros((height, width), np.float32)
    lines = np.zeros((height, width), bool)

    def place(band: np.ndarray, top: int, left: int, bottom: int, right: int) -> None:
        if bottom > top and right > left:
            size = (right - left, bottom - top)
            canvas[top:bottom, left:right] = cv2.resize(band.astype(np.float32), size, interpolation=cv2.INTER_NEAREST)

    for level in range((len(bands) - 1) // 3):
        half_h, half_w = height // 2, width // 2
        horizontal, vertical, diagonal = bands[1 + 3 * level : 4 + 3 * level]
        place(horizontal, 0, half_w, half_h, width)
        place(vertical, half_h, 0, height, half_w)
        place(diagonal, half_h, half_w, height, width)
        lines[half_h : half_h + 1, :width] = lines[:height, half_w : half_w + 1] = True
        height, width = half_h, half_w
    place(bands[0], 0, 0, height, width)
    coloured = cv2.applyColorMap((255 * canvas.clip(0, 1)).astype(np.uint8), cv2.COLORMAP_VIRIDIS)
    coloured[lines] = 255
    return cv2.cvtColor(coloured, cv2.COLOR_BGR2RGB)


def weights_picture(weights: np.ndarray, level: int) -> np.ndarray:
    """Returns a bar plot of the weights (C,) of a level's channels, the largest first, on nothing (RGBA)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 2.5), dpi=110, layout='constrained')
    canvas = FigureCanvasAgg(figure)
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.bar(range(1, len(weights) + 1), np.sort(weights)[::-1], width=1.0, color=BARS)
    axes.axhline(1.0, color=INK, linestyle='--', linewidth=1)
    axes.set_xlim(0.5, len(weights) + 0.5)
    axes.set_ylim(0, max(1.1, float(weights.max()) * 1.08))
    axes.set_xlabel(f'channels of level {level}, by weight', color=INK)
    axes.set_ylabel('weight (1 on average)', color=INK)
    axes.tick_params(colors=INK)
    for spine in axes.spines.values():
        spine.set_color(INK)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()


def level_tiles(seen: Seen, level: int, image: np.ndarray, before: Seen | None = None) -> list[Tile]:
    """Returns the bands of one level, before and after."""
    shape = (image.shape[0], image.shape[1])
    return band_tiles(seen.bands[level], before.bands[level] if before else None, shape)


def mask_tiles(seen: Seen, image: np.ndarray) -> list[Tile]:
    """Returns the masks of every level over the image."""
    return [Tile(f'level {level}', mask_picture(image, groups)) for level, groups in enumerate(seen.masks)]


def weight_tiles(seen: Seen) -> list[Tile]:
    """Returns the weights of the channels of every level."""
    return [Tile(f'level {level}', weights_picture(weights, level)) for level, weights in enumerate(seen.weights)]


def strip(tiles: Sequence[Tile]) -> np.ndarray:
    """Returns tiles side by side on white, each below its title."""
    import cv2

    height = max(tile.picture.shape[0] for tile in tiles) + TITLE
    columns = []
    for tile in tiles:
        picture = on_white(tile.picture)
        column = np.full((height, picture.shape[1] + GAP, 3), 255, np.uint8)
        column[TITLE : TITLE + picture.shape[0], : picture.shape[1]] = picture
        cv2.putText(column, tile.title, (2, TITLE - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (40, 40, 40), 1, cv2.LINE_AA)
        columns.append(column)
    return np.hstack(columns)


def stack(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Returns RGB pictures below each other, on white."""
    width = max(row.shape[1] for row in rows)
    return np.vstack([np.pad(row, ((0, GAP), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows])


def on_white(picture: np.ndarray) -> np.ndarray:
    """Returns a picture without transparency."""
    if picture.shape[2] == 3:
        return picture
    alpha = picture[..., 3:].astype(np.float32) / 255
    return (picture[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)


def overviews(view: View, before: View | None = None) -> list[tuple[str, np.ndarray]]:
    """Returns everything about one image as few RGB pictures by name, e.g. 'freekd_bands', 'freekd_masks'."""
    found = []
    for index, seen in enumerate(view.entries):
        first = before.entries[index] if before else None
        rows = []
        for level in range(len(seen.bands)):
            tiles = level_tiles(seen, level, view.image, first)
            rows.append(strip([Tile(f'level {level}: {tile.title}', tile.picture) for tile in tiles]))
        for name, drawn in (
            ('bands', rows),
            ('masks', [strip([tile]) for tile in mask_tiles(seen, view.image)]),
            ('weights', [strip([tile]) for tile in weight_tiles(seen)]),
        ):
            if drawn:
                found.append((f'{seen.entry}_{name}', stack(drawn)))
    return found
