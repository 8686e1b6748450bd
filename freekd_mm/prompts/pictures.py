"""Pictures of PoI masks over an image."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from freekd_mm.files import write_atomically

# Longer side of one tile, in pixels.
TILE = 256


def mask_pictures(image: Tensor, masks: Mapping[str, Sequence[Tensor]], folder: Path) -> list[Path]:
    """Writes one PNG a prompted output: the image, then the masks of the tokens; one row a group of bands.

    Red is 1 and blue is 0; rows run from the low band over the finest to the coarsest level.

    Args:
        image: (3, H, W), BGR, of any range.
        masks: By place, e.g. ``'neck[0]'``: one (T, h, w) a group of bands.
        folder: Where to write ``neck_0.png``.
    """
    import cv2

    canvas = _as_picture(image)
    scale = min(1.0, TILE / max(canvas.shape[:2]))
    size = (max(1, round(canvas.shape[1] * scale)), max(1, round(canvas.shape[0] * scale)))
    canvas = cv2.resize(canvas, size, interpolation=cv2.INTER_AREA)
    written = []
    for place, groups in masks.items():
        rows = []
        for tokens in groups:
            tiles = [canvas]
            for mask in tokens.numpy():
                level = cv2.resize((255 * mask.clip(0, 1)).astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
                heat = cv2.applyColorMap(level, cv2.COLORMAP_JET)
                tiles.append(cv2.addWeighted(canvas, 0.4, heat, 0.6, 0))
            rows.append(np.hstack(tiles))
        name = place.replace('[', '_').replace(']', '').replace('.', '_')
        written.append(_write_png(np.vstack(rows), folder / f'{name}.png'))
    return written


def _write_png(picture: np.ndarray, path: Path) -> Path:
    import cv2

    encoded = cv2.imencode('.png', picture)[1].tobytes()

    def write(part: Path) -> None:
        part.write_bytes(encoded)

    return write_atomically(path, write)


def _as_picture(image: Tensor) -> np.ndarray:
    image = image.detach().float().cpu()
    low, high = image.amin(), image.amax()
    picture = (image - low) / (high - low).clamp(min=1e-12) * 255
    return picture.round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
