"""Kernels, clouds and filters that the corruptions share."""

from __future__ import annotations

from typing import Union

import cv2
import numpy as np
from numpy.typing import NDArray

# OpenCV's stubs promise no more than numbers.
Picture = NDArray[Union[np.integer, np.floating]]
Random = np.random.Generator


def disk(radius: float, sigma: float) -> Picture:
    """Returns a disk with soft edges as a kernel of sum 1."""
    reach = int(np.ceil(radius)) if radius > 8 else 8
    axis = np.arange(-reach, reach + 1)
    kernel = (axis[:, None] ** 2 + axis[None] ** 2 <= radius**2).astype(np.float64)
    size = 3 if radius <= 8 else 5
    return cv2.GaussianBlur(kernel / kernel.sum(), (size, size), sigma)


def line(length: int, sigma: float, angle: float) -> Picture:
    """Returns the kernel of a movement: half a normal curve along a line, of sum 1."""
    kernel = np.zeros((2 * length + 1, 2 * length + 1))
    for step in range(length):
        row, column = round(length + step * np.sin(angle)), round(length + step * np.cos(angle))
        kernel[row, column] += np.exp(-(step**2) / (2 * sigma**2))
    return kernel / kernel.sum()


def convolve(x: Picture, kernel: Picture) -> Picture:
    """Filters with mirrored borders."""
    return cv2.filter2D(x, -1, kernel, borderType=cv2.BORDER_REFLECT_101)


def zoom(x: Picture, factor: float) -> Picture:
    """Enlarges the middle, size unchanged."""
    height, width = x.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2 - 0.5, height / 2 - 0.5), 0, factor)
    return cv2.warpAffine(x, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def plasma(shape: tuple[int, ...], decay: float, random: Random) -> Picture:
    """Returns a cloud (H, W) in [0, 1]: noise of every octave, each ``decay`` times weaker than the coarser one."""
    height, width = shape[:2]
    cloud, weight, cells = np.zeros((height, width)), 1.0, 2
    while cells < max(height, width):
        grid = random.random((cells + 1, cells + 1))
        cloud += weight * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        weight, cells = weight / decay, cells * 2
    cloud -= cloud.min()
    return cloud / max(cloud.max(), 1e-12)
