"""Pictures of PoI masks over an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from freekd_mm.files import write_bytes

# Longer side of one tile, in pixels.
TILE = 256


def mask_pictures(image: np.ndarray, masks: Mapping[str, Sequence[Tensor]], folder: Path) -> list[Path]:
    """Writes one PNG a prompted output, see :func:`mask_picture`.

    Args:
        image: (H, W, 3), RGB.
        masks: By place, e.g. ``'neck[0]'``: one (T, h, w) a group of bands.
        folder: Where to write ``neck_0.png``.
    """
    written = []
    for place, groups in masks.items():
        name = place.replace('[', '_').replace(']', '').replace('.', '_')
        written.append(write_bytes(folder / f'{name}.png', png(mask_picture(image, groups))))
    return written


def mask_picture(image: np.ndarray, groups: Sequence[Tensor]) -> np.ndarray:
    """Returns the image and the masks of the tokens beside it, RGB; one row a group of bands.

    Red is 1 and blue is 0; rows run from the low band over the finest to the coarsest level.

    Args:
        image: (H, W, 3), RGB.
        groups: One (T, h, w) a group of bands.
    """
    canvas = tile(image)
    rows = []
    for tokens in groups:
        tiles = [canvas]
        for mask in tokens.numpy():
            tiles.append(overlay(canvas, mask))
        rows.append(np.hstack(tiles))
    return np.vstack(rows)


def overlay(canvas: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns an RGB picture with values (h, w) in [0, 1] over it, from blue to red."""
    import cv2

    size = (canvas.shape[1], canvas.shape[0])
    level = cv2.resize((255 * values.clip(0, 1)).astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    heat = cv2.cvtColor(cv2.applyColorMap(level, cv2.COLORMAP_JET), cv2.COLOR_BGR2RGB)
    return cv2.addWeighted(canvas, 0.4, heat, 0.6, 0)


def tile(image: np.ndarray) -> np.ndarray:
    """Returns an image, scaled down to at most TILE pixels a side."""
    import cv2

    scale = min(1.0, TILE / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def png(picture: np.ndarray) -> bytes:
    """Returns the PNG file of an RGB or RGBA picture (H, W, 3 or 4)."""
    import cv2

    order = cv2.COLOR_RGBA2BGRA if picture.shape[2] == 4 else cv2.COLOR_RGB2BGR
    return cv2.imencode('.png', cv2.cvtColor(picture, order), [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()


def jpeg(picture: np.ndarray) -> bytes:
    """Returns the JPEG file of an RGB picture: a tenth of the size of a PNG where there is a photo in it."""
    import cv2

    return cv2.imencode('.jpg', cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
