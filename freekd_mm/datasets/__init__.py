"""Small generated scenes for the demo and the tests: numpy and OpenCV, no MM package."""

from __future__ import annotations

from freekd_mm.datasets.scenes import CLASSES, DET_METAINFO, SEG_METAINFO, STUFF, THINGS, render_scene
from freekd_mm.datasets.writer import CITY, write_scenes

__all__ = ['CITY', 'CLASSES', 'DET_METAINFO', 'SEG_METAINFO', 'STUFF', 'THINGS', 'render_scene', 'write_scenes']
