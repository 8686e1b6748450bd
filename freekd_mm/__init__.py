"""Frequency-domain knowledge distillation for MMDetection and MMSegmentation."""

from __future__ import annotations

from freekd_mm.version import __version__

__all__ = ['__version__']
