"""Losses on wavelet bands: their base, and our own recipe, the high bands standardised over the batch."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from freekd_mm.checks import check_choice, check_positive
from freekd_mm.compat.versions import uncompiled, zip_equal
from freekd_mm.frequency import WaveletBands
from freekd_mm.frequency.inputs import usable_levels
from freekd_mm.log import say
from freekd_mm.losses.bands.distance import TINY, Correlation, Level, standardised
from freekd_mm.losses.base import DistillLoss
from freekd_mm.registry import MODELS
from freekd_mm.tensors import check_same_shapes, shapes

#: A feature level is weighted by this power of its area (in positions).
POWERS = {'equal': 0.0, 'root': 0.5, 'area': 1.0}


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
        min_positions: Least positions of a band. A feature level gets only the wavelet levels that leave them; one that
            has too few positions for one wavelet level is left out. 0 for no limit.
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
        self.channels = channels if isinstance(channels, int) else tuple(channels)
        for number in [channels] if isinstance(channels, int) else channels:
            check_positive('channels', number, integer=True)
        check_positive('levels', levels, integer=True)
        check_positive('min_positions', min_positions, integer=True, zero=True)
        self.levels, self.min_positions = levels, min_positions
        if prompt is not None and not isinstance(prompt, dict):
            prompt = dict(type='freekd_mm.PoIMaskGenerator', channels=self.channels, levels=levels, prompt=prompt)
        self.masks: Any = None if prompt is None else MODELS.build(prompt)
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
        for weight in itertools.chain(*found) if self.standardises else ():
            # A mean of 1 in each band of an image.
            weight.div_(weight.mean((2, 3), keepdim=True).clamp(min=TINY))
        return found

    def _depths(self, features: Sequence[Tensor]) -> list[int]:
        """Returns how many wavelet levels each feature level has; logged once if these are not all."""
        found = [usable_levels(x.shape[2:], self.levels, self.min_positions) for x in features]
        said = ', '.join(f'{depth} of level {index}' for index, depth in enumerate(found) if depth < self.levels)
        if said and said not in self._told:
            self._told.add(said)
            say(
                f'{type(self).__name__}: of {self.levels} wavelet levels only {said} are compared at this size, since '
                f'every band should have {self.min_positions} positions (min_positions)'
            )
        return found


@MODELS.register_module()
class WaveletLoss(BandLoss):
    r"""Squared differences of the high Haar bands, each divided by its deviation over the batch.

    With :math:`a_k, b_k` band k of teacher and student in one channel, and means over all images and positions of all
    processes,

    .. math::
        L = \sum_l v_l \frac{1}{3 J_l C_l} \sum_{k,c} \Big\langle \Big(\frac{b_k}{s(b_k)} - \frac{a_k}{s(a_k)}\Big)^2
        \Big\rangle = \sum_l v_l \, \overline{2 - 2 r_k}, \quad r_k = \frac{\langle a_k b_k \rangle}{s(a_k) s(b_k)}

    High bands have no mean, so r is their correlation. The value lies between 0 and 4 for every model. With a prompt
    the means are weighted by its masks, scaled to a mean of 1 in each band of an image: the prompt says where to look,
    and not how much.

    Args:
        channels: Channels of the features: one number, or one per feature level.
        level_weights: Weights v of the feature levels: ``'equal'``, ``'area'`` (a level weighs by its positions, so
            that each position of the features counts the same), ``'root'`` (by the root of them, in between), each
            with a sum of 1; or one number per level, divided by their count.
        loss_weight: Factor on the returned value.
        **bands: Options of :class:`~freekd_mm.losses.wavelet.BandLoss`: ``levels``, ``min_positions``, ``prompt``.
    """

    standardises = True
    compares_low = False
    part = 'high'
    #: What is computed from the means of products.
    judge = staticmethod(standardised)

    def __init__(
        self,
        channels: int | Sequence[int],
        *,
        level_weights: Literal['equal', 'root', 'area'] | Sequence[float] = 'root',
        loss_weight: float = 2.0,
        **bands: Any,
    ) -> None:
        super().__init__(channels, loss_weight=loss_weight, **bands)
        if isinstance(level_weights, str):
            check_choice('level_weights', level_weights, POWERS)
        else:
            level_weights = tuple(level_weights)
            for weight in level_weights:
                check_positive('level_weights', weight, zero=True)
        self.level_weights = level_weights

    def compare(self, students: Sequence[Tensor], levels: Sequence[Level]) -> Tensor:
        """Returns the value of each level (levels,)."""
        return Correlation.apply(levels, self.judge, self.levels, self.loss_weight, *students)

    def weigh(self, theirs: Tensor, ours: Tensor) -> Tensor:
        """Returns the squares of the teacher's masks."""
        return theirs.square().sum(1)

    def band_weights(self, teachers: Sequence[Tensor], depths: Sequence[int]) -> list[tuple[float, list[float]]]:
        """Returns the weights of the bands: a low band counts as much as all high bands together, or nothing."""
        if isinstance(self.level_weights, str):
            power = POWERS[self.level_weights]
            sizes = [(x.shape[2] * x.shape[3]) ** power if depth else 0.0 for x, depth in zip_equal(teachers, depths)]
            shares = [size / (sum(sizes) or 1.0) for size in sizes]
        elif len(self.level_weights) == len(teachers):
            shares = [weight / len(teachers) for weight in self.level_weights]
        else:
            raise ValueError(
                f"level_weights should be 'equal', 'root', 'area' or one number for each of the {len(teachers)} "
                f'levels, but got {self.level_weights}'
            )
        found = []
        for teacher, depth, share in zip_equal(teachers, depths, shares):
            share /= max(teacher.shape[1], 1)
            found.append((share if self.compares_low else 0.0, [share / (3 * depth) for _ in range(depth)]))
        return found


def _stacked(bands: WaveletBands | None) -> list[Tensor]:
    """Returns bands (N, T, h, w) as (N, T, 4, h, w) per wavelet level; the low band counts only at the last level."""
    if bands is None:
        return []
    pairs = zip_equal([*(detail.vertical for detail in bands.high[:-1]), bands.low], bands.high)
    return [torch.stack((low, detail.vertical, detail.horizontal, detail.diagonal), 2) for low, detail in pairs]
