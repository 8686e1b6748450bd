"""Noise: the pictures are float arrays (H, W, 3) in [0, 1]. Parameters by severity are those of ImageNet-C."""

from __future__ import annotations

import numpy as np

from freekd_mm.robustness.picture import Picture, Random, pick


def gaussian_noise(x: Picture, severity: int, random: Random) -> Picture:
    """Adds normal noise."""
    return x + random.normal(scale=pick(severity, 0.08, 0.12, 0.18, 0.26, 0.38), size=x.shape)


def shot_noise(x: Picture, severity: int, random: Random) -> Picture:
    """Counts few photons."""
    photons = pick(severity, 60, 25, 12, 5, 3)
    return random.poisson(np.clip(x, 0, 1) * photons) / photons


def impulse_noise(x: Picture, severity: int, random: Random) -> Picture:
    """Sets a share of the values to black or white."""
    share = pick(severity, 0.03, 0.06, 0.09, 0.17, 0.27)
    hit = random.random(x.shape) < share
    return np.where(hit, random.random(x.shape) < 0.5, x)
