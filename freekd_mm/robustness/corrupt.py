"""Corrupts pictures by name, always in the same way for the same picture."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freekd_mm.checks import check_choice
from freekd_mm.registry import TRANSFORMS
from freekd_mm.robustness import blur, digital, noise, weather
from freekd_mm.robustness.picture import Picture, Random

SEVERITIES = (1, 2, 3, 4, 5)
#: The 15 corruptions of the benchmark, in its order.
CORRUPTIONS: dict[str, Callable[[Picture, int, Random], Picture]] = {
    function.__name__: function
    for function in (
        noise.gaussian_noise,
        noise.shot_noise,
        noise.impulse_noise,
        blur.defocus_blur,
        blur.glass_blur,
        blur.motion_blur,
        blur.zoom_blur,
        weather.snow,
        weather.frost,
        weather.fog,
        weather.brightness,
        digital.contrast,
        digital.elastic_transform,
        digital.pixelate,
        digital.jpeg_compression,
    )
}


def corrupt(picture: NDArray[np.uint8], corruption: str, severity: int, seed: int = 0) -> NDArray[np.uint8]:
    """Returns a corrupted copy.

    Args:
        picture: (H, W, 3), blue, green, red, as OpenCV and the MM packages load it.
        corruption: A name of ``CORRUPTIONS``.
        severity: 1 to 5.
        seed: What is random in it.
    """
    check_choice('corruption', corruption, CORRUPTIONS)
    check_choice('severity', severity, SEVERITIES)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f'picture should be uint8 (H, W, 3), but got {picture.dtype} {picture.shape}')
    result = CORRUPTIONS[corruption](picture / 255.0, severity, np.random.default_rng(seed))
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
