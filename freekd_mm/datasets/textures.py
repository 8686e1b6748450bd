"""Noise, ground textures and light for the generated scenes: float32 fields of numpy, made from one generator."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Field = NDArray[Any]  # float32; OpenCV and numpy promise less to the type checker
Rng = np.random.Generator

# Dark ink between the planks and threads: a narrow line needs a steep profile.
_LINE_SHARPNESS = 8.0


def grid(size: int) -> tuple[Field, Field]:
    """Returns the pixel coordinates x and y, each (size, size)."""
    axis = np.arange(size, dtype=np.float32)
    y, x = np.meshgrid(axis, axis, indexing='ij')
    return x, y


def smooth_noise(rng: Rng, size: int, cells: int) -> Field:
    """Returns (size, size) noise of unit variance at the knots, with ``cells`` knots a side, cubic in between."""
    knots = rng.standard_normal((cells, cells), dtype=np.float32)
    return cv2.resize(knots, (size, size), interpolation=cv2.INTER_CUBIC)


def fine_noise(rng: Rng, size: int, sigma: float) -> Field:
    """Returns white noise blurred by ``sigma`` pixels and brought back to unit variance."""
    noise = cv2.GaussianBlur(rng.standard_normal((size, size), dtype=np.float32), (0, 0), sigma)
    return noise / np.float32(noise.std() + 1e-6)


def random_colour(rng: Rng) -> Field:
    """Returns a muted colour (3,) in [0, 1]; every class draws from it, so that colour tells nothing."""
    return np.clip(rng.uniform(0.25, 0.75) + rng.uniform(-0.18, 0.18, 3), 0.05, 0.95).astype(np.float32)


def two_colours(rng: Rng) -> tuple[Field, Field]:
    """Returns two colours that differ in brightness by enough to be told apart."""
    first = random_colour(rng)
    contrast = rng.uniform(0.28, 0.55) * (-1.0 if first.mean() > 0.5 else 1.0)
    second = first + contrast + rng.uniform(-0.08, 0.08, 3)
    return first, np.clip(second, 0.0, 1.0).astype(np.float32)


def _lines(phase: Field) -> Field:
    """Returns a pattern with one thin dark line a period of ``phase`` (in radians)."""
    return 1 - 2 * np.exp(_LINE_SHARPNESS * (np.cos(phase) - 1))


def ground_pattern(rng: Rng, name: str, size: int) -> Field:
    """Returns the texture of one kind of stuff, (size, size), roughly in [-1, 1].

    Sand and gravel differ by the grain alone; planks and weave by the second direction of their lines.
    """
    if name == 'sand':
        return 0.5 * fine_noise(rng, size, 0.6)
    if name == 'gravel':
        return 0.6 * np.tanh(1.5 * fine_noise(rng, size, 1.4))
    x, y = grid(size)
    angle, period = rng.uniform(0, math.pi), rng.uniform(6, 9)
    bend = 1.5 * smooth_noise(rng, size, 4)
    scale = 2 * math.pi / period
    along = _lines(scale * (math.cos(angle) * x + math.sin(angle) * y + bend))
    if name == 'weave':
        # Half the density in each of two directions: as much ink as the planks have.
        across = _lines(scale / 2 * (math.sin(angle) * x - math.cos(angle) * y + bend))
        along = np.minimum(_lines(scale / 2 * (math.cos(angle) * x + math.sin(angle) * y + bend)), across)
    return 0.5 * along + 0.2 * fine_noise(rng, size, 0.7)


def region_map(rng: Rng, size: int, regions: int) -> NDArray[np.intp]:
    """Returns (size, size) indices 0 .. regions - 1: nearest of random points, with crooked borders."""
    x, y = grid(size)
    x = x + 0.08 * size * smooth_noise(rng, size, 6)
    y = y + 0.08 * size * smooth_noise(rng, size, 6)
    points = rng.uniform(0, size, (regions, 2)).astype(np.float32)
    return np.argmin([(x - px) ** 2 + (y - py) ** 2 for px, py in points], axis=0)


def light(rng: Rng, size: int) -> Field:
    """Returns a factor on the brightness, (size, size, 3): a slope, soft patches of shade, and a tint."""
    x, y = grid(size)
    angle = rng.uniform(0, 2 * math.pi)
    slope = (math.cos(angle) * (x / size - 0.5) + math.sin(angle) * (y / size - 0.5)) * rng.uniform(0, 0.7)
    patches = rng.uniform(0, 0.16) * smooth_noise(rng, size, 4)
    tint = rng.uniform(0.9, 1.1, 3).astype(np.float32)
    return (np.clip(rng.uniform(0.75, 1.15) + slope + patches, 0.3, 1.6)[..., None] * tint).astype(np.float32)
