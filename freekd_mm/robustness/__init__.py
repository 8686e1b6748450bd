"""The 15 common corruptions in 5 severities, drawn with NumPy and OpenCV, and what a model loses under them."""

from __future__ import annotations

from freekd_mm.robustness.corruptions import CORRUPTIONS, Corrupt, corrupt

__all__ = ['CORRUPTIONS', 'Corrupt', 'corrupt']
