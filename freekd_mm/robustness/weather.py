"""Weather. Snow and fog follow ImageNet-C; frost is drawn here, as its photographs of ice are not ours to ship."""

from __future__ import annotations

import cv2
import numpy as np

from freekd_mm.robustness.picture import Picture, Random, convolve, gray, line, pick, plasma, zoom


def snow(x: Picture, severity: int, random: Random) -> Picture:
    """Pales the picture and lets flakes fall across it."""
    mean, scale, size, least, length, sigma, mix = pick(
        severity,
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )
    flakes = zoom(random.normal(mean, scale, x.shape[:2]), size)
    flakes[flakes < least] = 0
    flakes = convolve(np.clip(flakes, 0, 1), line(length, sigma, np.deg2rad(random.uniform(45, 135))))[..., None]
    pale = mix * x + (1 - mix) * np.maximum(x, gray(x) * 1.5 + 0.5)
    return pale + flakes + np.rot90(flakes, 2)


def frost(x: Picture, severity: int, random: Random) -> Picture:
    """Lays ice over the picture: bright needles on a cloud, the more the nearer to the border."""
    keep, ice = pick(severity, (1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))
    height, width = x.shape[:2]
    needles = np.zeros((height, width))
    for _ in range(5):
        grains = (random.random((height, width)) > 0.985).astype(np.float64)
        needles += convolve(grains, line(max(height // 12, 3), height / 20, random.uniform(0, 2 * np.pi)))
    needles = np.clip(needles / max(float(np.quantile(needles, 0.98)), 1e-12), 0, 1)
    rows, columns = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
    border = 0.4 + 0.6 * np.clip(np.hypot(rows, columns) / 1.2, 0, 1)
    sheet = border * (0.55 * plasma(x.shape, 1.7, random) + 0.45 * needles)
    return keep * x + ice * sheet[..., None] * np.array([1.0, 0.96, 0.9])


def fog(x: Picture, severity: int, random: Random) -> Picture:
    """Adds a cloud and keeps the brightest value."""
    amount, decay = pick(severity, (1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))
    most = x.max()
    return (x + amount * plasma(x.shape, decay, random)[..., None]) * most / (most + amount)


def brightness(x: Picture, severity: int, random: Random) -> Picture:
    """Raises the value of HSV."""
    hsv = cv2.cvtColor(np.clip(x, 0, 1).astype(np.float32), cv2.COLOR_BGR2HSV)
    hsv[..., 2] = np.clip(hsv[..., 2] + pick(severity, 0.1, 0.2, 0.3, 0.4, 0.5), 0, 1)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR).astype(x.dtype)
