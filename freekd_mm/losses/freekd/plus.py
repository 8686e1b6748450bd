"""An interpretation of FreeKD+, the journal extension of FreeKD whose text is not public in full."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from freekd_mm.compat.versions import zip_equal
from freekd_mm.frequency import WaveletBands, WaveletDetail, dwt2d
from freekd_mm.losses.freekd.bands import teacher_scale
from freekd_mm.losses.freekd.haar_step import FLOOR, TINY
from freekd_mm.losses.freekd.loss import Auto, WaveletLoss
from freekd_mm.losses.freekd.relation import Relation
from freekd_mm.registry import MODELS
from freekd_mm.tensors import full_precision


def masked_correlation(student: Tensor, teacher: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    r"""Returns the weighted Pearson correlation of each plane (N, C), and where the teacher's plane is not constant.

    .. math::
        \rho = \frac{\sum_p w (b - \bar b)(a - \bar a)}{\sqrt{\sum_p w (b - \bar b)^2 \sum_p w (a - \bar a)^2}}, \quad
        \bar x = \sum_p w x, \quad \sum_p w = 1

    Args:
        student: b (N, C, h, w).
        teacher: a (N, C, h, w).
        weight: (N or 1, 1, h, w), not negative.
    """
    weight = weight / weight.sum((2, 3), keepdim=True).clamp(min=TINY)

    def center(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x - (weight * x).sum((2, 3), keepdim=True)
        return x, (weight * x.square()).sum((2, 3))

    ours, own_variance = center(student)
    theirs, variance = center(teacher)
    says_something = variance > TINY
    one = variance.new_ones(())
    # One root each: the product of the variances of large features has no place in float32.
    scale = variance.where(says_something, one).rsqrt()
    own_scale = (own_variance + FLOOR**2 * variance).where(says_something, one).rsqrt()
    product = (ours * own_scale[..., None, None]) * (theirs * scale[..., None, None])
    return (weight * product).sum((2, 3)), says_something


@MODELS.register_module()
class FreeKDPlusLoss(WaveletLoss):
    r"""FreeKD+ as we read it: relaxed for the high bands, strong for the low band, masks refined by the student.

    **An interpretation.** The extension's text is not public in full; this follows what is known of it.

    - High bands, relaxed: :math:`1 - \rho`, with :math:`\rho` the masked Pearson correlation of each image and
      channel. The pattern has to agree, scale and offset are free.
    - Low band, strong: the absolute difference in units of the teacher's deviation. The values have to agree.
    - Masks, refined: with the masks :math:`M^s` that the same prompt gives for the student's features, a position
      weighs :math:`\tfrac{2}{T} \sum_i M^t_i \, (1 + |M^t_i - M^s_i|)`: twice where the student misses entirely what
      the teacher's prompt looks at. No gradient flows through the masks.

    Relational weights, weights of bands and levels and the prompt are those of
    :class:`~freekd_mm.losses.FreeKDLoss` in ``mode='paper'``.

    Args:
        channels: Channels of the features: one number, or one a feature level.
        num_tokens: Tokens of the prompt per band; None for what its file says.
        levels: Wavelet levels.
        wavelet: The wavelet.
        relation: As in ``FreeKDLoss``.
        low_weight: Weight of the low band.
        high_weight: Weight of the high bands.
        level_weights: Weight of the feature levels.
        prompt: As in ``FreeKDLoss``.
        grouping: ``'level'`` or ``'band'``; None for what the prompt file says.
        refine: Refine the masks with the student's.
        loss_weight: Factor on the returned value.
    """

    mode = 'paper'

    def __init__(
        self,
        channels: int | Sequence[int],
        num_tokens: int | None = None,
        levels: int = 3,
        wavelet: str = 'haar',
        relation: Relation | dict | Auto | None = 'auto',
        low_weight: float | Auto = 'auto',
        high_weight: float | Sequence[float] | Auto = 'auto',
        level_weights: float | Sequence[float] | Auto = 'auto',
        prompt: str | os.PathLike | dict | None = None,
        grouping: Literal['level', 'band'] | None = None,
        refine: bool = True,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(
            channels,
            num_tokens,
            levels,
            wavelet,
            relation=relation,
            low_weight=low_weight,
            high_weight=high_weight,
            level_weights=level_weights,
            prompt=prompt,
            grouping=grouping,
            loss_weight=loss_weight,
        )
        self.refine = refine

    def level_masks(self, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Sequence[WaveletBands | None]:
        """Returns the masks of the teacher's features, refined by those of the student's."""
        masks = self.masks(teachers)
        if not self.refine or not any(mask is not None for mask in masks):
            return masks
        own = self.masks([student.detach() for student in students])
        return [_refined(*pair) for pair in zip_equal(masks, own)]

    def level_distance(self, student: Tensor, teacher: Tensor, weights: WaveletBands) -> tuple[Tensor, Tensor]:
        """Returns the distance of each image and channel (N, C), and without gradient the low band's part."""
        ours = dwt2d(full_precision(student), self.levels, self.wavelet)
        theirs = dwt2d(full_precision(teacher), self.levels, self.wavelet)
        scale = teacher_scale(theirs.low, low=True)
        low = (weights.low * scale * (ours.low - theirs.low).abs()).sum((2, 3))
        total = low
        for detail, others, of_level in zip_equal(ours.high, theirs.high, weights.high):
            for own, other, weight in zip_equal(detail, others, of_level):
                correlation, says_something = masked_correlation(own, other, weight)
                # The weight's mean over the positions is the band's factor times its mean mask.
                relaxed = (1 - correlation).where(says_something, correlation.new_zeros(()))
                total = total + weight.sum((2, 3)) * relaxed
        return total, low.detach()


def _refined(teacher: WaveletBands | None, student: WaveletBands | None) -> WaveletBands | None:
    if teacher is None or student is None:
        return teacher
    high = tuple(
        WaveletDetail(*(mask * (1 + (mask - own).abs()) for mask, own in zip_equal(detail, others)))
        for detail, others in zip_equal(teacher.high, student.high)
    )
    return teacher._replace(low=teacher.low * (1 + (teacher.low - student.low).abs()), high=high)
