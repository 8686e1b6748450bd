"""Pictures side by side with their titles; PoI masks over an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from torch import Tensor

from freekd_mm.files import write_bytes

#: Longer side of a tile, in pixels.
SIDE = 256
TITLE, GAP = 22, 6
#: Title of the image that masks lie over.
MASKED = 'image; masks: red is 1, blue is 0'


class Tile(NamedTuple):
    """A picture with its title."""

    title: str
    picture: np.ndarray  # (H, W, 3), RGB


def mask_pictures(image: np.ndarray, masks: Mapping[str, Mapping[str, Tensor]], folder: Path) -> list[Path]:
    """Writes one PNG per prompted output, e.g. ``neck_0.png``: a row per group of bands, over an image (H, W, 3), RGB.

    The masks (T, h, w) are by place, e.g. ``'neck[0]'``, and name of the bands.
    """
    written = []
    for place, groups in masks.items():
        name = place.replace('[', '_').replace(']', '').replace('.', '_')
        rows = [[Tile(MASKED, shrink(image)), *row] for row in mask_tiles(image, groups)]
        written.append(write_bytes(folder / f'{name}.png', png(grid(rows))))
    return written


def mask_tiles(image: np.ndarray, groups: Mapping[str, Tensor], prefix: str = '') -> list[list[Tile]]:
    """Returns the masks of the tokens over an image (H, W, 3), a row per group of bands; red is 1 and blue is 0.

    The masks (T, h, w) are by the name of their bands. Titles begin with the prefix.
    """
    canvas = shrink(image)
    return [
        [Tile(f'{prefix}{name}, token {token}', overlay(canvas, mask)) for token, mask in enumerate(tokens.numpy())]
        for name, tokens in groups.items()
    ]


def overlay(canvas: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns an RGB picture with values (h, w) in [0, 1] over it, from blue to red."""
    size = (canvas.shape[1], canvas.shape[0])
    level = cv2.resize((255 * values.clip(0, 1)).astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    heat = cv2.cvtColor(cv2.applyColorMap(level, cv2.COLORMAP_JET), cv2.COLOR_BGR2RGB)
    return cv2.addWeighted(canvas, 0.4, heat, 0.6, 0)


def shrink(image: np.ndarray) -> np.ndarray:
    """Returns an image, scaled to SIDE pixels on its longer side."""
    scale = SIDE / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)


def grid(rows: Sequence[Sequence[Tile]]) -> np.ndarray:
    """Returns rows of tiles as one RGB picture, each below its title, on white."""
    drawn = [np.hstack([_titled(tile) for tile in row]) for row in rows]
    width = max(row.shape[1] for row in drawn)
    return np.vstack([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in drawn])


def _titled(tile: Tile) -> np.ndarray:
    framed = np.pad(tile.picture, ((TITLE, GAP), (0, GAP), (0, 0)), constant_values=255)
    place = (2, TITLE - 7)
    return cv2.putText(framed, tile.title, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (40, 40, 40), 1, cv2.LINE_AA)


def png(picture: np.ndarray) -> bytes:
    """Returns the PNG file of an RGB picture (H, W, 3)."""
    return cv2.imencode('.png', picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()


def jpeg(picture: np.ndarray) -> bytes:
    """Returns the JPEG file of an RGB picture: a tenth of the size of a PNG if it has a photo in it."""
    return cv2.imencode('.jpg', picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
