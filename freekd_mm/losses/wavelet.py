"""Our own recipe: the high wavelet bands of the features, standardised over the batch."""

from __future__ import annotations

import os
import typing
from collections.abc import Sequence
from typing import Literal, Union

from torch import Tensor

from freekd_mm.checks import check_choice, check_positive
from freekd_mm.compat.versions import zip_equal
from freekd_mm.losses.bands.distance import Judge, Level, correlation, standardised
from freekd_mm.losses.bands.loss import BandLoss, of_mean_one, per_band
from freekd_mm.registry import MODELS

LevelWeights = Union[Literal['equal', 'root', 'area'], typing.Sequence[float]]
#: A feature level is weighted by this power of its area (in positions).
POWERS = {'equal': 0.0, 'root': 0.5, 'area': 1.0}


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
        levels: Wavelet levels J.
        level_weights: Weights v of the feature levels: ``'equal'``, ``'area'`` (a level weighs by its positions, so
            that each position of the features counts the same), ``'root'`` (by the root of them, in between), each
            with a sum of 1; or one number per level, divided by their count.
        min_positions: Least positions of a band. A feature level gets only the wavelet levels that leave them; one that
            has too few positions for one wavelet level is left out. 0 for no limit.
        prompt: Prompt file or URL (ours or in the released format), or the config of a mask generator, see
            :class:`freekd_mm.prompts.PoIMaskGenerator`. None for no masks.
        loss_weight: Factor on the returned value.
    """

    standardises = True
    compares_low = False

    def __init__(
        self,
        channels: int | Sequence[int],
        levels: int = 3,
        level_weights: LevelWeights = 'root',
        min_positions: int = 16,
        prompt: str | os.PathLike | dict | None = None,
        loss_weight: float = 2.0,
    ) -> None:
        super().__init__(channels, levels, min_positions, prompt, loss_weight)
        if isinstance(level_weights, str):
            check_choice('level_weights', level_weights, POWERS)
        else:
            level_weights = tuple(level_weights)
            for weight in level_weights:
                check_positive('level_weights', weight, zero=True)
        self.level_weights = level_weights

    def compute(self, students: tuple[Tensor, ...], teachers: tuple[Tensor, ...]) -> Tensor:
        """Returns the loss; ``terms`` holds the part of each level."""
        self.check(students, teachers)
        depths = self.depths(teachers)
        shares = self.shares(teachers, depths)
        levels = [
            Level(teacher, depth, self.band_weights(depth, share / max(teacher.shape[1], 1)), mask)
            for teacher, depth, share, mask in zip_equal(
                teachers, depths, shares, self.position_masks(students, teachers, depths)
            )
        ]
        values = correlation(students, levels, self.levels, self.judge(), self.loss_weight)
        self.terms.update({f'level{index}/high': value for index, value in enumerate(values.detach().unbind())})
        return values.sum()

    def shares(self, features: Sequence[Tensor], depths: Sequence[int]) -> list[float]:
        """Returns the weights of the feature levels; those that are left out have none."""
        if not isinstance(self.level_weights, str):
            if len(self.level_weights) != len(features):
                raise ValueError(
                    f"level_weights should be 'equal', 'root', 'area' or one number for each of the {len(features)} "
                    f'levels, but got {self.level_weights}'
                )
            return [weight / len(features) for weight in self.level_weights]
        power = POWERS[self.level_weights]
        sizes = [(x.shape[2] * x.shape[3]) ** power if depth else 0.0 for x, depth in zip_equal(features, depths)]
        return [size / (sum(sizes) or 1.0) for size in sizes]

    def position_masks(
        self, students: Sequence[Tensor], teachers: Sequence[Tensor], depths: Sequence[int]
    ) -> list[list[Tensor] | None]:
        """Returns the weights of the positions, (N, 4, h, w) per wavelet level of each feature level."""
        if not self.has_prompt:
            return [None] * len(teachers)
        return [
            [of_mean_one(mask.square().sum(1)) for mask in masks] if masks is not None else None
            for masks in self.level_masks(teachers, depths)
        ]

    def band_weights(self, depth: int, share: float) -> list[list[float]]:
        """Returns the weight of each band of a level (depth, 4)."""
        return per_band(depth, 0.0, share / (3 * max(depth, 1)))

    def judge(self) -> Judge:
        """Returns what is computed from the means of products."""
        return standardised
