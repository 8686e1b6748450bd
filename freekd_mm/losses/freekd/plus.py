"""An interpretation of FreeKD+, the journal extension of FreeKD whose full text is not public."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from freekd_mm.compat.versions import zip_equal
from freekd_mm.losses.bands.distance import TINY, standardised
from freekd_mm.losses.bands.loss import of_mean_one, per_band
from freekd_mm.losses.wavelet import WaveletLoss
from freekd_mm.registry import MODELS


def relaxed_and_strong(means: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Returns :math:`1 - r` of the high bands, and the squared error of the low band in units of the teacher's square.

    As :func:`~freekd_mm.losses.bands.distance.standardised`: values, and the factors of b and -a in their gradient.

    Args:
        means: Means of bb, ab, aa (..., 4, 3).
        weights: Weight of each band (..., 4).
    """
    values, own, other = standardised(means, weights / 2)
    student, cross, teacher = means[..., 0, :].unbind(-1)
    weight = (weights[..., 0] / teacher).masked_fill(teacher <= TINY, 0.0)
    values[..., 0] = weight * (student - 2 * cross + teacher)
    own[..., 0] = other[..., 0] = 2 * weight
    return values, own, other


@MODELS.register_module()
class FreeKDPlusLoss(WaveletLoss):
    r"""FreeKD+ as we read it: relaxed for the high bands, strong for the low band, masks refined by the student.

    **An interpretation.** The extension's full text is not public; this follows what is known of it.

    - High bands, relaxed: :math:`1 - r`, with r the correlation of each channel over the batch. The pattern must
      agree, the scale is free.
    - Low band, strong: :math:`\langle (b - a)^2 \rangle / \langle a^2 \rangle`. The values must agree.
    - Masks, refined: with the masks :math:`M^s` that the same prompt gives for the student's features, a position
      weighs :math:`\sum_i M^t_i \, (1 + |M^t_i - M^s_i|)`: twice as much if the student misses what the teacher's
      prompt selects. No gradient flows through the masks.

    Args:
        channels: Channels of the features: one number, or one per feature level.
        refine: Refine the masks with the student's.
        loss_weight: Factor on the returned value.
        **wavelet: Other options of :class:`~freekd_mm.losses.WaveletLoss`.
    """

    compares_low = True

    def __init__(
        self, channels: int | Sequence[int], *, refine: bool = True, loss_weight: float = 1.0, **wavelet: Any
    ) -> None:
        super().__init__(channels, loss_weight=loss_weight, **wavelet)
        self.refine = refine

    def position_masks(
        self, students: Sequence[Tensor], teachers: Sequence[Tensor], depths: Sequence[int]
    ) -> list[list[Tensor] | None]:
        """Returns the weights of the positions, refined by the student's masks."""
        if not self.has_prompt:
            return [None] * len(teachers)
        theirs = self.level_masks(teachers, depths)
        ours = self.level_masks([student.detach() for student in students], depths) if self.refine else theirs
        return [
            [of_mean_one((mask * (1 + (mask - own).abs())).sum(1)) for mask, own in zip_equal(masks, owns)]
            if masks is not None and owns is not None
            else None
            for masks, owns in zip_equal(theirs, ours)
        ]

    def band_weights(self, depth: int, share: float) -> list[list[float]]:
        """Returns the weight of each band of a level: the low band as much as all high bands together."""
        return per_band(depth, share, share / (3 * max(depth, 1)))

    def judge(self) -> Any:
        """Returns what is computed from the means of products."""
        return relaxed_and_strong
