"""Frequency prompts: the first stage of FreeKD, its files, and the masks that they give."""

from freekd_mm.prompts.files import PromptFile, load_prompt, save_prompt
from freekd_mm.prompts.generator import PoIMaskGenerator
from freekd_mm.prompts.hook import FrequencyPromptHook
from freekd_mm.prompts.masks import mask_similarity, poi_masks
from freekd_mm.prompts.prompt import FrequencyPrompt

__all__ = [
    'FrequencyPrompt',
    'FrequencyPromptHook',
    'PoIMaskGenerator',
    'PromptFile',
    'load_prompt',
    'mask_similarity',
    'poi_masks',
    'save_prompt',
]
