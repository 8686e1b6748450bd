"""FreeKD's second stage (CVPR 2024, arXiv 2311.12079), its relational weights, and an interpretation of FreeKD+."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freekd_mm.checks import check_choice
from freekd_mm.compat.versions import zip_equal
from freekd_mm.frequency.inputs import band_sizes
from freekd_mm.losses.bands.distance import TINY, Absolute, Level, standardised
from freekd_mm.losses.bands.loss import BandLoss
from freekd_mm.losses.wavelet import WaveletLoss
from freekd_mm.registry import MODELS
from freekd_mm.tensors import full_precision

Relation = Literal['bounded', 'printed']

# Correlations are in [-1, 1]; this spreads their softmax so that a strong one stands out of 256.
TEMPERATURE = 0.1
# A correlation over so many positions is known to 0.06, finer than the temperature distinguishes.
MAX_PIXELS = 300
# The weights are at least this, and 1 on average: a gate can never remove more than half of the loss.
FLOOR = 0.5


def relations(features: Sequence[Tensor], kind: Relation) -> list[Tensor]:
    """Returns the relation of each level to the next deeper one, (N, C_deeper, C)."""
    maps, pooled, found = [full_precision(level.detach()) for level in features], {}, []
    for level, own in enumerate(maps):
        deeper = min(level + 1, len(maps) - 1)
        height, width = (min(lengths) for lengths in zip_equal(own.shape[2:], maps[deeper].shape[2:]))
        while kind == 'bounded' and height * width > MAX_PIXELS:
            height, width = (height + 1) // 2, (width + 1) // 2
        for key in ((level, height, width), (deeper, height, width)):
            if key not in pooled:
                pooled[key] = F.adaptive_avg_pool2d(maps[key[0]], (height, width)).flatten(2)
        rows, others = pooled[level, height, width], pooled[deeper, height, width]
        if kind == 'bounded':
            rows, others = (F.normalize(x - x.mean(2, keepdim=True), dim=2) / TEMPERATURE**0.5 for x in (rows, others))
        found.append(torch.softmax(torch.bmm(others, rows.transpose(1, 2)), 2))
    return found


class RelationGate(nn.Module):
    r"""Turns relations of channels into weights :math:`\omega_r` from those of teacher and student.

    The relation of a level to the next deeper one is :math:`A = \mathrm{softmax}(\psi(F) F^T)` (C_deeper x C), with F
    the level, averaged to the size of the deeper one, :math:`\psi(F)`. For each of teacher and student
    :math:`\omega = G(A)`: an MLP with a sigmoid looks at the attention that a channel gets from each deeper channel
    (its column of A). The deepest level has no deeper one and is related to itself. Gates look at detached features,
    so the student cannot lower the loss by moving its weights.

    - ``'printed'``: :math:`\omega_r = \omega_t \omega_s`, as in the paper. The gate learns only from this loss: it
      learns that 0 is best. How the authors prevent that, and what G is, is not known to us.
    - ``'bounded'``: F and :math:`\psi(F)` have mean 0 and norm 1 over at most 300 positions, a temperature of 0.1, and

      .. math::
          \omega_r = \frac12 + \frac12 \, \frac{\omega_t \omega_s}{\mathrm{mean}_c(\omega_t \omega_s)},

      which is 1 on average and at least 1/2: for any gate the loss keeps at least half of its value.

    If one number of channels is given for all levels, they share one MLP.
    """

    def __init__(self, relation: Relation, channels: int | Sequence[int]) -> None:
        super().__init__()
        check_choice('relation', relation, ('bounded', 'printed'))
        self.relation = relation
        widths = [channels] if isinstance(channels, int) else [*channels[1:], channels[-1]]
        self.mlps = nn.ModuleList(_mlp(width) for width in widths)

    def forward(self, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> list[Tensor]:
        """Returns the weights (N, C) of the channels of each level, for the levels (N, C, H, W), finest first."""
        weights = []
        pairs = zip_equal(*(relations(side, self.relation) for side in (teachers, students)))
        for level, (theirs, ours) in enumerate(pairs):
            mlp = self.mlps[level if len(self.mlps) > 1 else 0]
            # The product of both gates, in logarithms: gates that all vanish still have a ratio.
            logs = _log_gate(mlp, theirs) + _log_gate(mlp, ours)
            if self.relation == 'printed':
                weights.append(logs.exp())
            else:
                weights.append(FLOOR + (1 - FLOOR) * torch.softmax(logs, 1) * logs.shape[1])
        return weights


def _mlp(width: int, hidden: int = 64) -> nn.Sequential:
    """Returns G, which starts equal for all channels."""
    last = nn.Linear(hidden, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), last)


def _log_gate(mlp: nn.Module, relation: Tensor) -> Tensor:
    r"""Returns :math:`\log \omega` of each channel (N, C) for the relation (N, C_deeper, C)."""
    # A column sums to 1 on average: scaled by its length its entries are of the order of 1.
    columns = relation.transpose(1, 2).to(next(mlp.parameters()).dtype) * relation.shape[1]
    return F.logsigmoid(mlp(columns).squeeze(2)).to(relation.dtype)


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
        mode: ``'paper'`` or ``'code'``. ``'code'`` takes neither relation nor min_positions.
        relation: ``'bounded'`` (a gate that cannot switch the loss off; the default of ``'paper'``), ``'printed'`` (the
            paper's, which can) or None; see :class:`~freekd_mm.losses.freekd.RelationGate`.
        min_positions: Least positions of a band, 16 in ``'paper'``, where 0 is exactly the paper.
        **bands: Options of :class:`~freekd_mm.losses.bands.loss.BandLoss`: ``levels``, ``prompt``, ``loss_weight``.
    """

    part = 'all'

    def __init__(
        self,
        channels: int | Sequence[int],
        *,
        mode: Literal['paper', 'code'] = 'paper',
        relation: Relation | Literal['auto'] | None = 'auto',
        min_positions: int | None = None,
        **bands: Any,
    ) -> None:
        if cast(str, mode) == 'tuned':
            raise ValueError("mode should be 'paper' or 'code', but got 'tuned': that loss is freekd_mm.WaveletLoss")
        check_choice('mode', mode, ('paper', 'code'))
        if relation == 'auto':
            relation = 'bounded' if mode == 'paper' else None
        if min_positions is None:
            min_positions = 16 if mode == 'paper' else 0
        if mode == 'code' and (relation, min_positions) != (None, 0):
            raise ValueError(
                "relation and min_positions should be left out with mode='code', which is exactly the released "
                f'formula, but got relation={relation!r}, min_positions={min_positions!r}'
            )
        super().__init__(channels, min_positions=min_positions, **bands)
        self.mode, self.compares_low = mode, mode == 'paper'
        self.gate = None if relation is None else RelationGate(relation, self.channels)
        if mode == 'code' and getattr(self.masks, 'grouping', 'level') != 'level':
            raise ValueError("the prompt's grouping should be 'level' with mode='code', but got 'band'")

    def compare(self, students: Sequence[Tensor], levels: Sequence[Level]) -> Tensor:
        """Returns the value of each level (levels,)."""
        planes = [Absolute.apply(*pair) for pair in zip_equal(students, levels)]
        if self.gate is not None:
            gates = self.gate(students, [level.teacher for level in levels])
            planes = [plane * gate for plane, gate in zip_equal(planes, gates)]
        count = 1 if self.mode == 'code' else max(sum(map(_coefficients, levels)), 1)
        return torch.stack([plane.sum() for plane in planes]) / count

    def weigh(self, theirs: Tensor, ours: Tensor) -> Tensor:
        """Returns the masks of the tokens together: their sum in the paper, their mean in the code."""
        return theirs.sum(1) if self.mode == 'paper' else theirs.mean(1)

    def band_weights(self, teachers: Sequence[Tensor], depths: Sequence[int]) -> list[tuple[float, list[float]]]:
        """Returns the weights of the bands: those of a sum in the paper, of the means of high bands in the code."""
        if self.mode == 'paper':
            return [(1.0, [1.0] * depth) for depth in depths]
        found = []
        for teacher, depth in zip_equal(teachers, depths):
            planes = max(teacher.shape[0] * teacher.shape[1], 1)
            sizes = band_sizes(teacher.shape[2:], depth)
            found.append((0.0, [1 / (3 * planes * height * width) for height, width in sizes]))
        return found


def _coefficients(level: Level) -> int:
    """Returns how many coefficients a feature level has in all its bands."""
    sizes = [height * width for height, width in band_sizes(level.teacher.shape[2:], level.depth)]
    return level.teacher.shape[0] * level.teacher.shape[1] * (3 * sum(sizes) + sum(sizes[-1:]))


def relaxed_and_strong(means: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Returns :math:`1 - r` of the high bands, and the squared error of the low band in units of the teacher's square.

    As :func:`~freekd_mm.losses.bands.distance.standardised`, with the four bands in the last axis of the weights.
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
    - Low band, strong: :math:`\langle (b - a)^2 \rangle / \langle a^2 \rangle`. The values must agree, where whole
      blocks lie within the map: of a small map the deepest low band covers only a part.
    - Masks, refined: with the masks :math:`M^s` that the same prompt gives for the student's features, a position
      weighs :math:`\sum_i M^t_i \, (1 + |M^t_i - M^s_i|)`: twice as much if the student misses what the teacher's
      prompt selects. No gradient flows through the masks.

    Args:
        channels: Channels of the features.
        loss_weight: Factor on the returned value.
        **wavelet: Other options of :class:`~freekd_mm.losses.WaveletLoss`.
    """

    part = 'all'
    compares_low = True
    refines = True
    judge = staticmethod(relaxed_and_strong)

    def __init__(self, channels: int | Sequence[int], *, loss_weight: float = 1.0, **wavelet: Any) -> None:
        super().__init__(channels, loss_weight=loss_weight, **wavelet)

    def weigh(self, theirs: Tensor, ours: Tensor) -> Tensor:
        """Returns the masks of the teacher's bands, refined by those of the student's."""
        return (theirs * (1 + (theirs - ours).abs())).sum(1)
