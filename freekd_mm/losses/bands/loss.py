"""The base of the losses on wavelet bands: depths, masks, and the weights of positions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import get_world_size
from torch import Tensor

from freekd_mm.checks import check_positive
from freekd_mm.compat.versions import uncompiled, zip_equal
from freekd_mm.frequency import WaveletBands
from freekd_mm.frequency.inputs import usable_levels
from freekd_mm.log import say
from freekd_mm.losses.bands.distance import TINY, Level
from freekd_mm.losses.base import DistillLoss
from freekd_mm.registry import MODELS
from freekd_mm.tensors import check_same_shapes, shapes


class BandLoss(DistillLoss):
    """Compares Haar bands of all levels of student and teacher, at the positions that the teacher's prompt selects.

    Subclasses implement :meth:`band_weights`, :meth:`weigh` and :meth:`compare`.

    Attributes:
        standardises: Bands are divided by their deviations, weights of positions by their mean.
        compares_low: The low band is compared too.
        refines: The masks of the student's bands count too.

    Args:
        channels: Channels of the features: one number, or one per feature level.
        levels: Wavelet levels.
        min_positions: Least positions of a band: of all images together, within the map, if it is standardised, else of
            one image. A feature level gets only the wavelet levels that leave them; one that has too few is left out.
            0: no limit.
        prompt: Prompt file or URL (ours or in the released format), or the config of a mask generator, see
            :class:`freekd_mm.prompts.PoIMaskGenerator`. None for no masks.
        loss_weight: Factor on the returned value.
    """

    standardises = False
    compares_low = True
    refines = False

    def __init__(
        self,
        channels: int | Sequence[int],
        levels: int = 3,
        min_positions: int = 16,
        prompt: str | os.PathLike | dict | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(loss_weight)
        self.channels = tuple(channels) if isinstance(channels, Sequence) else channels
        for number in channels if isinstance(channels, Sequence) else [channels]:
            check_positive('channels', number, integer=True)
        check_positive('levels', levels, integer=True)
        check_positive('min_positions', min_positions, integer=True, zero=True)
        self.levels, self.min_positions = levels, min_positions
        if prompt is not None and not isinstance(prompt, dict):
            prompt = dict(type='freekd_mm.PoIMaskGenerator', channels=self.channels, levels=levels, prompt=prompt)
        self.masks: Any = None if prompt is None else MODELS.build(prompt)
        known = getattr(getattr(self.masks, 'file', None), 'levels', levels)
        if known < levels:
            raise ValueError(f'levels should be at most {known}, as in the prompt file, but got {levels}')
        self._told: set[str] = set()

    @uncompiled
    def compute(self, students: tuple[Tensor, ...], teachers: tuple[Tensor, ...]) -> Tensor:
        """Returns the loss; ``terms`` holds the part of each level."""
        name = type(self).__name__
        channels = [self.channels] * len(teachers) if isinstance(self.channels, int) else list(self.channels)
        if [x.shape[1] for x in teachers if x.ndim == 4] != channels:
            raise ValueError(
                f'{name}: channels should be those of the teacher, one number or one per level, but got '
                f'{self.channels} for levels of the shapes {shapes(teachers)}'
            )
        check_same_shapes(name, students, teachers)
        depths = self._depths(teachers)
        masks = self._position_weights(students, teachers, depths)
        given = zip_equal(teachers, self.band_weights(teachers, depths), masks)
        levels = [Level(teacher, low, high, weights) for teacher, (low, high), weights in given]
        values = self.compare(students, levels)
        self.terms = {f'level{level}/{self.part}': value for level, value in enumerate(values.detach().unbind())}
        return values.sum()

    def band_weights(self, teachers: Sequence[Tensor], depths: Sequence[int]) -> list[tuple[float, list[float]]]:
        """Returns the weights of the bands of each feature level, which has ``depths`` wavelet levels."""
        raise NotImplementedError

    def weigh(self, theirs: Tensor, ours: Tensor) -> Tensor:
        """Returns weights of the positions (N, 4, h, w) for the masks (N, T, 4, h, w) of teacher and student."""
        raise NotImplementedError

    def compare(self, students: Sequence[Tensor], levels: Sequence[Level]) -> Tensor:
        """Returns the value of each level (levels,)."""
        raise NotImplementedError

    def _position_weights(
        self, students: Sequence[Tensor], teachers: Sequence[Tensor], depths: Sequence[int]
    ) -> list[list[Tensor]]:
        """Returns the weights of the positions, (N, 4, h, w) per wavelet level of each feature level; none for 1."""
        if self.masks is None:
            return [[]] * len(teachers)
        students = [student.detach() for student in students]
        theirs = [_stacked(bands) for bands in self.masks(teachers, depths)]
        ours = [_stacked(bands) for bands in self.masks(students, depths)] if self.refines else theirs
        found = [list(map(self.weigh, *pair)) for pair in zip_equal(theirs, ours)]
        for teacher, weights in zip_equal(teachers, found):
            for level, weight in enumerate(weights if self.standardises else (), 1):
                # A mean of 1 over what counts in each band of an image.
                counted = weight[..., : teacher.shape[2] >> level, : teacher.shape[3] >> level]
                weight.div_(counted.mean((2, 3), keepdim=True).clamp(min=TINY))
        return found

    def _depths(self, features: Sequence[Tensor]) -> list[int]:
        """Returns how many wavelet levels each feature level has; logged once if these are not all."""
        least = self.min_positions / (max(len(features[0]) * get_world_size(), 1) if self.standardises else 1)
        found = [usable_levels(x.shape[2:], self.levels, least, self.standardises) for x in features]
        said = ', '.join(f'{depth} of level {index}' for index, depth in enumerate(found) if depth < self.levels)
        if said and said not in self._told:
            self._told.add(said)
            say(
                f'{type(self).__name__}: of {self.levels} wavelet levels only {said} are compared at this size, since '
                f'every band should have {max(self.min_positions, 1)} positions (min_positions)'
                f'{" within the map" if self.standardises else ""}'
            )
        return found


def _stacked(bands: WaveletBands | None) -> list[Tensor]:
    """Returns bands (N, T, h, w) as (N, T, 4, h, w) per wavelet level; the low band counts only at the last level."""
    if bands is None:
        return []
    pairs = zip_equal([*(detail.vertical for detail in bands.high[:-1]), bands.low], bands.high)
    return [torch.stack((low, detail.vertical, detail.horizontal, detail.diagonal), 2) for low, detail in pairs]
