"""Pictures of what is distilled: wavelet bands, PoI masks, channel weights."""

from __future__ import annotations

from freekd_mm.visualize.hook import DistillPicturesHook

__all__ = ['DistillPicturesHook']
