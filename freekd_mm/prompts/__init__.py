"""Frequency prompts: the tokens, their files, and their masks."""

from __future__ import annotations

from freekd_mm.prompts.generator import PoIMaskGenerator
from freekd_mm.prompts.masks import mask_similarity, poi_masks
from freekd_mm.prompts.prompt import FrequencyPrompt
from freekd_mm.prompts.prompt_file import PromptFile, load_prompt, save_prompt

__all__ = [
    'FrequencyPrompt',
    'PoIMaskGenerator',
    'PromptFile',
    'load_prompt',
    'mask_similarity',
    'poi_masks',
    'save_prompt',
]
