"""FreeKD's second stage (CVPR 2024, arXiv 2311.12079): absolute differences of masked wavelet bands."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal, cast

from torch import Tensor

from freekd_mm.checks import check_choice
from freekd_mm.compat.versions import zip_equal
from freekd_mm.frequency.inputs import band_sizes
from freekd_mm.losses.bands.distance import Level, absolute
from freekd_mm.losses.bands.loss import BandLoss, per_band
from freekd_mm.losses.freekd.relation import Relation, RelationGate
from freekd_mm.registry import MODELS

MODES = ('paper', 'code')
#: What 'auto' means in each mode.
DEFAULTS: dict[str, dict[str, Any]] = {
    'paper': dict(relation='bounded', min_positions=16),
    'code': dict(relation=None, min_positions=0),
}
Auto = Literal['auto']


@MODELS.register_module()
class FreeKDLoss(BandLoss):
    r"""Absolute differences of Haar bands, at the positions that the teacher's prompt selects.

    With :math:`a_k, b_k` the raw bands of teacher and student and :math:`M_i` the T masks of the prompt.
    ``mode='paper'`` is one sum over all coefficients of all bands of all feature levels, divided by their number n so
    that one weight serves all sizes, with the relational weights :math:`\omega_r` of the channels:

    .. math::
        L = \frac{1}{n} \sum_{levels} \sum_k \sum_i \omega_r \, \| M_i b_k - M_i a_k \|_1

    ``mode='code'`` is exactly the released formula: only high bands, with :math:`\langle \cdot \rangle` the mean
    over images, channels and positions, summed over feature levels and over the orientations o of each wavelet level j:

    .. math::
        L = \sum_{levels} \sum_j \frac{1}{3T} \sum_{o,i} \big\langle |M_i b_{j,o} - M_i a_{j,o}| \big\rangle

    A mask is not negative, so :math:`\sum_i |M_i b - M_i a| = (\sum_i M_i) |b - a|`: no tensor of tokens times
    channels times positions is made. Masks get no gradient.

    Args:
        channels: Channels of the features: one number, or one per feature level.
        levels: Wavelet levels.
        mode: ``'paper'`` or ``'code'``. ``'code'`` takes neither relation nor min_positions.
        relation: ``'bounded'`` (a gate that cannot switch the loss off; the default of ``'paper'``), ``'printed'`` (the
            paper's, which can) or None; see :class:`~freekd_mm.losses.freekd.relation.RelationGate`.
        min_positions: Least positions of a band. A feature level gets only the wavelet levels that leave them; one that
            has too few positions for one wavelet level is left out. 16 in ``'paper'``, where 0 is exactly the paper.
        prompt: Prompt file or URL (ours or in the released format), or the config of a mask generator, see
            :class:`freekd_mm.prompts.PoIMaskGenerator`. None for no masks.
        loss_weight: Factor on the returned value.
    """

    def __init__(
        self,
        channels: int | Sequence[int],
        levels: int = 3,
        mode: Literal['paper', 'code'] = 'paper',
        relation: Relation | Auto | None = 'auto',
        min_positions: int | Auto = 'auto',
        prompt: str | os.PathLike | dict | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        if cast(str, mode) == 'tuned':
            raise ValueError("mode should be 'paper' or 'code', but got 'tuned': that loss is freekd_mm.WaveletLoss")
        check_choice('mode', mode, MODES)
        given: dict[str, Any] = dict(relation=relation, min_positions=min_positions)
        options = {name: DEFAULTS[mode][name] if value == 'auto' else value for name, value in given.items()}
        if mode == 'code' and options != DEFAULTS[mode]:
            changed = ', '.join(f'{name}={value!r}' for name, value in options.items() if value != DEFAULTS[mode][name])
            raise ValueError(
                f"relation and min_positions should be left out with mode='code', which is exactly the "
                f"released formula, but got {changed}; mode='paper' takes them"
            )
        super().__init__(channels, levels, options['min_positions'], prompt, loss_weight)
        self.mode, self.compares_low = mode, mode == 'paper'
        self.gate = RelationGate(options['relation'], self.channels) if options['relation'] is not None else None
        if mode == 'code' and getattr(self.masks, 'grouping', 'level') != 'level':
            raise ValueError("the prompt's grouping should be 'level' with mode='code', but got 'band'")

    def compute(self, students: tuple[Tensor, ...], teachers: tuple[Tensor, ...]) -> Tensor:
        """Returns the loss; ``terms`` holds the part of each level."""
        self.check(students, teachers)
        depths = self.depths(teachers)
        masks = self.level_masks(teachers, depths) if self.has_prompt else [None] * len(teachers)
        levels = [
            Level(teacher, depth, self._band_weights(teacher, depth), self._position_weights(mask))
            for teacher, depth, mask in zip_equal(teachers, depths, masks)
        ]
        gates = self.gate(students, teachers) if self.gate is not None else [None] * len(teachers)
        planes = absolute(students, levels)
        count = 1 if self.mode == 'code' else max(sum(map(_coefficients, levels)), 1)
        parts = [(plane if gate is None else plane * gate).sum() / count for plane, gate in zip_equal(planes, gates)]
        self.terms.update({f'level{index}/all': part.detach() for index, part in enumerate(parts)})
        return sum(parts[1:], parts[0])

    def _band_weights(self, teacher: Tensor, depth: int) -> list[list[float]]:
        """Returns the weight of each band of a level (depth, 4)."""
        if self.mode == 'paper':
            return per_band(depth, 1.0, 1.0)
        planes = max(teacher.shape[0] * teacher.shape[1], 1)
        sizes = band_sizes(teacher.shape[2:], depth)
        return [[0.0, *[1 / (3 * planes * height * width)] * 3] for height, width in sizes]

    def _position_weights(self, masks: list[Tensor] | None) -> list[Tensor] | None:
        """Returns the masks (N, T, 4, h, w) of the tokens together: their sum in the paper, their mean in the code."""
        if masks is None:
            return None
        return [mask.sum(1) if self.mode == 'paper' else mask.mean(1) for mask in masks]


def _coefficients(level: Level) -> int:
    """Returns how many coefficients a feature level has in all its bands."""
    sizes = [height * width for height, width in band_sizes(level.teacher.shape[2:], level.depth)]
    return level.teacher.shape[0] * level.teacher.shape[1] * (3 * sum(sizes) + sum(sizes[-1:]))
