"""Blur. Parameters by severity are those of ImageNet-C, made for pictures of 224 pixels and larger."""

from __future__ import annotations

import cv2
import numpy as np

from freekd_mm.robustness.picture import Picture, Random, convolve, disk, line, pick, zoom


def defocus_blur(x: Picture, severity: int, random: Random) -> Picture:
    """Filters with a disk."""
    return convolve(x, disk(*pick(severity, (3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))))


def glass_blur(x: Picture, severity: int, random: Random) -> Picture:
    """Swaps pixels with near ones, as through frosted glass, all of a picture at the same time."""
    sigma, reach, rounds = pick(severity, (0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))
    x = cv2.GaussianBlur(x, (0, 0), sigma)
    rows, columns = np.indices(x.shape[:2])
    for _ in range(rounds):
        moved_rows = np.clip(rows + random.integers(-reach, reach + 1, rows.shape), 0, x.shape[0] - 1)
        moved_columns = np.clip(columns + random.integers(-reach, reach + 1, rows.shape), 0, x.shape[1] - 1)
        x = x[moved_rows, moved_columns]
    return cv2.GaussianBlur(x, (0, 0), sigma)


def motion_blur(x: Picture, severity: int, random: Random) -> Picture:
    """Moves the camera along a line."""
    length, sigma = pick(severity, (10, 3), (15, 5), (15, 8), (15, 12), (20, 15))
    return convolve(x, line(length, sigma, np.deg2rad(random.uniform(-45, 45))))


def zoom_blur(x: Picture, severity: int, random: Random) -> Picture:
    """Averages over rising magnifications."""
    end, step = pick(severity, (1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))
    factors = np.arange(1, end, step)
    return (x + sum(zoom(x, factor) for factor in factors)) / (len(factors) + 1)
