"""The base of the losses on wavelet bands: wavelet levels, masks, and what is compared."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from freekd_mm.checks import check_positive
from freekd_mm.compat.versions import zip_equal
from freekd_mm.frequency import WaveletBands, usable_levels
from freekd_mm.log import say
from freekd_mm.losses.bands.distance import TINY
from freekd_mm.losses.base import DistillLoss
from freekd_mm.registry import MODELS
from freekd_mm.tensors import check_same_shapes, shapes


class BandLoss(DistillLoss):
    """Compares Haar bands of all levels of student and teacher, at the positions that the teacher's prompt selects.

    Attributes:
        standardises: Bands are divided by their deviations.
        compares_low: The low band is compared too.

    Args:
        channels: Channels of the features: one number, or one per feature level.
        levels: Wavelet levels.
        min_positions: Least positions of a band. A feature level gets only the wavelet levels that leave them; one that
            has too few positions for one wavelet level is left out. 0 for no limit.
        prompt: Prompt file or URL (ours or in the released format), or the config of a mask generator, see
            :class:`freekd_mm.prompts.PoIMaskGenerator`. None for no masks.
        loss_weight: Factor on the returned value.
    """

    standardises = False
    compares_low = True

    def __init__(
        self,
        channels: int | Sequence[int],
        levels: int,
        min_positions: int,
        prompt: str | os.PathLike | dict | None,
        loss_weight: float,
    ) -> None:
        super().__init__(loss_weight)
        check_positive('levels', levels, integer=True)
        check_positive('min_positions', min_positions, integer=True, zero=True)
        self.channels = channels if isinstance(channels, int) else tuple(channels)
        for number in (channels,) if isinstance(channels, int) else channels:
            check_positive('channels', number, integer=True)
        self.levels, self.min_positions = levels, min_positions
        self.masks = self._build_masks(prompt)
        self._told: set[str] = set()

    def _build_masks(self, prompt: str | os.PathLike | dict | None) -> Any:
        if prompt is not None and not isinstance(prompt, dict):
            prompt = dict(type='freekd_mm.PoIMaskGenerator', channels=self.channels, levels=self.levels, prompt=prompt)
        return None if prompt is None else MODELS.build(prompt)

    @property
    def has_prompt(self) -> bool:
        """Whether there are masks."""
        return self.masks is not None

    def depths(self, features: Sequence[Tensor]) -> list[int]:
        """Returns how many wavelet levels each feature level has; logged once if these are not all."""
        sizes = [(level.shape[2], level.shape[3]) for level in features]
        found = [usable_levels(size, self.levels, min_positions=self.min_positions) for size in sizes]
        if min(found) < self.levels:
            said = ', '.join(f'{depth} of level {index}' for index, depth in enumerate(found) if depth < self.levels)
            self._tell_once(
                f'{type(self).__name__}: of {self.levels} wavelet levels only {said} are compared at this size, since '
                f'every band should have {self.min_positions} positions (min_positions)'
            )
        return found

    def _tell_once(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            say(message)

    def level_masks(self, features: Sequence[Tensor], depths: Sequence[int]) -> list[list[Tensor] | None]:
        """Returns the masks of each feature level, (N, T, 4, h, w) per wavelet level; None without masks."""
        return [
            stack_bands(masks, depth) if masks is not None else None
            for masks, depth in zip_equal(self.masks(features, depths), depths)
        ]

    def check(self, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> None:
        """Raises ValueError if the features do not fit the options or each other."""
        name = type(self).__name__
        if not isinstance(self.channels, int) and len(self.channels) != len(teachers):
            raise ValueError(
                f'{name}: channels should be one number or one for each of the {len(teachers)} levels '
                f'({shapes(teachers)}), but got {self.channels}'
            )
        for level, teacher in enumerate(teachers):
            wanted = self.channels if isinstance(self.channels, int) else self.channels[level]
            if teacher.ndim != 4 or teacher.shape[1] != wanted:
                raise ValueError(
                    f'{name}: level {level} of the teacher should be (N, {wanted}, H, W) after its channels option, '
                    f'but got {tuple(teacher.shape)}'
                )
        check_same_shapes(name, students, teachers)


def stack_bands(bands: WaveletBands, depth: int) -> list[Tensor]:
    """Returns bands (N, T, h, w) as (N, T, 4, h, w) per wavelet level; the low band is in the last."""
    found = []
    for index, detail in enumerate(bands.high[:depth]):
        low = bands.low if index == depth - 1 else torch.ones_like(detail.vertical)
        found.append(torch.stack((low, detail.vertical, detail.horizontal, detail.diagonal), 2))
    return found


def of_mean_one(weights: Tensor) -> Tensor:
    """Scales weights (N, 4, h, w) to a mean of 1 in each band of an image."""
    return weights / weights.mean((2, 3), keepdim=True).clamp(min=TINY)


def per_band(depth: int, low: float, high: float) -> list[list[float]]:
    """Returns the weight of each band (depth, 4); the low band counts only at the last level."""
    return [[low if level == depth - 1 else 0.0, high, high, high] for level in range(depth)]
