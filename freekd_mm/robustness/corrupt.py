"""Corrupts pictures by name, always in the same way for the same picture."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freekd_mm.checks import check_choice
from freekd_mm.registry import TRANSFORMS
from freekd_mm.robustness.corruptions import CORRUPTIONS

SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(picture: NDArray[np.uint8], corruption: str, severity: int, seed: int = 0) -> NDArray[np.uint8]:
    """Returns a corrupted copy of a picture (H, W, 3), blue, green, red; the seed is for what is random in it."""
    check_choice('corruption', corruption, CORRUPTIONS)
    check_choice('severity', severity, SEVERITIES)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f'picture should be uint8 (H, W, 3), but got {picture.dtype} {picture.shape}')
    function, parameters = CORRUPTIONS[corruption]
    result = function(picture / 255.0, np.random.default_rng(seed), *parameters[severity - 1])
    return np.round(np.clip(result, 0, 1) * 255).astype(np.uint8)


@TRANSFORMS.register_module()
class Corrupt:
    """Pipeline step after ``LoadImageFromFile``; two models see the same corrupted pictures.

    Args:
        corruption: A name of ``CORRUPTIONS``.
        severity: 1 to 5.
    """

    def __init__(self, corruption: str, severity: int) -> None:
        check_choice('corruption', corruption, CORRUPTIONS)
        check_choice('severity', severity, SEVERITIES)
        self.corruption, self.severity = corruption, severity

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Corrupts ``results['img']``; the file's name is the seed."""
        name = str(results['img_path']).replace('\\', '/').rsplit('/', 1)[-1]
        seed = zlib.crc32(f'{self.corruption}/{self.severity}/{name}'.encode())
        return {**results, 'img': corrupt(results['img'], self.corruption, self.severity, seed)}
