"""The training of the frequency prompt: the first stage of FreeKD."""

from __future__ import annotations

from freekd_mm.stage1.hook import FrequencyPromptHook

__all__ = ['FrequencyPromptHook']
