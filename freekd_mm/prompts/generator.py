"""The masks of a prompt file for the features of a teacher, in stage 2."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import nn

from freekd_mm.compat.versions import zip_equal
from freekd_mm.frequency import WaveletBands
from freekd_mm.prompts.masks import Grouping, poi_masks
from freekd_mm.prompts.prompt_file import PromptFile, load_prompt
from freekd_mm.registry import MODELS
from freekd_mm.tensors import Levels, as_levels


@MODELS.register_module()
class PoIMaskGenerator(nn.Module):
    """Holds the frozen tokens of all feature levels and computes their masks.

    Any module with this ``forward`` can replace it in :class:`freekd_mm.losses.WaveletLoss`.

    Args:
        channels: Channels of the features: one number, or one per feature level.
        prompt: Prompt file or URL, ours or in the released format.
        levels: Wavelet levels that the prompt file should have; not checked by default.
        indices: Which of the file's prompts belong to the features, e.g. ``(1, 2, 3)`` if only the levels 1 to
            3 of the neck are distilled. All of them by default.
    """

    def __init__(
        self,
        channels: int | Sequence[int],
        prompt: str | os.PathLike,
        levels: int | None = None,
        indices: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        #: The file with its wiring and the hash of its teacher.
        self.file: PromptFile = load_prompt(prompt)
        #: Which bands share their masks.
        self.grouping: Grouping = self.file.grouping
        if levels not in (None, self.file.levels):
            raise ValueError(f'levels should be {self.file.levels}, as in the prompt file {prompt}, but got {levels}')
        places = list(self.file.tokens)
        if indices is not None:
            unknown = [index for index in indices if not 0 <= index < len(places)]
            if unknown:
                raise ValueError(f'indices should be in 0..{len(places) - 1}, but got {unknown}: {prompt} has no such')
            places = [places[index] for index in indices]
        #: Where the prompt of each feature level was trained, e.g. ('neck[0]', 'neck[1]').
        self.places = tuple(places)
        per_place = (channels,) * len(places) if isinstance(channels, int) else tuple(channels)
        if len(per_place) != len(places):
            raise ValueError(
                f'channels should be one number or one for each of the {len(places)} prompts '
                f'({", ".join(self.places)}), but got {channels}'
            )
        for level, place in enumerate(places):
            tokens, bias = self.file.tokens[place], self.file.bias.get(place)
            if tokens.shape[2] != per_place[level]:
                raise ValueError(
                    f'channels of level {level} should be {tokens.shape[2]}, as in the prompt of {place} in {prompt}, '
                    f'but got {per_place[level]}'
                )
            self.register_buffer(f'tokens{level}', tokens.detach().float().clone())
            self.register_buffer(f'bias{level}', None if bias is None else bias.detach().float().clone())

    @torch.no_grad()
    def forward(self, features: Levels, depths: Sequence[int] | None = None) -> tuple[WaveletBands | None, ...]:
        """Returns the masks of every band of every level, (N, T, h, w) each; None for a level of depth 0.

        Args:
            features: All levels of the teacher, each (N, C, H, W).
            depths: How many wavelet levels each of them has, if these are not all: 0 for no masks. The low band
                of fewer levels uses the tokens of the low band.
        """
        levels = as_levels(features)
        if len(levels) != len(self.places):
            raise ValueError(
                f'features should have one level for each of the {len(self.places)} prompts '
                f'({", ".join(self.places)}), but got {len(levels)}; choose prompts with indices=...'
            )
        file, found = self.file, []
        for index, (level, depth) in enumerate(zip_equal(levels, depths or [self.file.levels] * len(levels))):
            tokens, bias = self.get_buffer(f'tokens{index}'), getattr(self, f'bias{index}')
            found.append(poi_masks(level, tokens, depth, file.grouping, file.evidence, bias) if depth else None)
        return tuple(found)
