"""Digital corruptions. Parameters by severity are those of ImageNet-C."""

from __future__ import annotations

import cv2
import numpy as np

from freekd_mm.robustness.picture import Picture, Random, pick


def contrast(x: Picture, severity: int, random: Random) -> Picture:
    """Shrinks the values towards the mean of each channel."""
    mean = x.mean((0, 1), keepdims=True)
    return (x - mean) * pick(severity, 0.4, 0.3, 0.2, 0.1, 0.05) + mean


def elastic_transform(x: Picture, severity: int, random: Random) -> Picture:
    """Stretches locally: a smooth random displacement, its size relative to the shorter side."""
    reach, smooth, affine = pick(
        severity, (2.0, 0.7, 0.1), (2.0, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)
    )
    height, width = x.shape[:2]
    size = min(height, width)
    middle, third = np.array([width, height], np.float32) / 2, size / 3
    corners = np.array([middle + third, [middle[0] + third, middle[1] - third], middle - third], np.float32)
    moved = corners + random.uniform(-affine * size * 0.1, affine * size * 0.1, corners.shape).astype(np.float32)
    x = cv2.warpAffine(x, cv2.getAffineTransform(corners, moved), (width, height), borderMode=cv2.BORDER_REFLECT_101)
    field = [
        cv2.GaussianBlur(random.uniform(-1, 1, (height, width)), (0, 0), max(smooth * size, 0.5)) * reach * size
        for _ in range(2)
    ]
    rows, columns = np.indices((height, width))
    return cv2.remap(
        x,
        (columns + field[0]).astype(np.float32),
        (rows + field[1]).astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT_101,
    )


def pixelate(x: Picture, severity: int, random: Random) -> Picture:
    """Reduces and enlarges."""
    share = pick(severity, 0.6, 0.5, 0.4, 0.3, 0.25)
    height, width = x.shape[:2]
    small = cv2.resize(x, (max(int(width * share), 1), max(int(height * share), 1)), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)


def jpeg_compression(x: Picture, severity: int, random: Random) -> Picture:
    """Saves as JPEG of low quality."""
    quality = pick(severity, 25, 18, 15, 10, 7)
    pixels = np.round(np.clip(x, 0, 1) * 255).astype(np.uint8)
    _, data = cv2.imencode('.jpg', pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(data, cv2.IMREAD_COLOR).astype(x.dtype) / 255
