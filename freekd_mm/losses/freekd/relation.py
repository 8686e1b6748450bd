"""Position-aware relational weights: which channels of a level matter to the next deeper one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freekd_mm.checks import check_choice, check_positive
from freekd_mm.compat.versions import zip_equal
from freekd_mm.tensors import full_precision

Relation = Literal['bounded', 'printed']
RELATIONS = ('bounded', 'printed')

# Correlations are in [-1, 1]; this spreads their softmax so that a strong one stands out of 256.
TEMPERATURE = 0.1
# A correlation over so many positions is known to 0.06, finer than the temperature distinguishes.
MAX_PIXELS = 300
# The weights are at least this, and 1 on average: a gate can never remove more than half of the loss.
FLOOR = 0.5


def _relations(features: Sequence[Tensor], kind: Relation) -> list[Tensor]:
    """Returns the relation of each level to the next deeper one, (N, C_deeper, C)."""
    maps, pooled, found = [full_precision(level.detach()) for level in features], {}, []
    for level in range(len(maps)):
        deeper = min(level + 1, len(maps) - 1)
        height, width = (min(lengths) for lengths in zip_equal(maps[level].shape[2:], maps[deeper].shape[2:]))
        while kind == 'bounded' and height * width > MAX_PIXELS:
            height, width = (height + 1) // 2, (width + 1) // 2
        for index in (level, deeper):
            if (index, height, width) not in pooled:
                pooled[index, height, width] = F.adaptive_avg_pool2d(maps[index], (height, width)).flatten(2)
        rows, others = (pooled[index, height, width] for index in (level, deeper))
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

    Args:
        relation: ``'bounded'`` or ``'printed'``.
        channels: Channels of the levels: one number for all (they share one MLP), or one per level.
        hidden: Width of the MLP.
    """

    def __init__(self, relation: Relation, channels: int | Sequence[int], hidden: int = 64) -> None:
        super().__init__()
        check_choice('relation', relation, RELATIONS)
        check_positive('hidden', hidden, integer=True)
        self.relation = relation
        widths = [channels] if isinstance(channels, int) else [*channels[1:], channels[-1]]
        self.mlps = nn.ModuleList(_mlp(width, hidden) for width in widths)

    def log_gate(self, relation: Tensor, level: int) -> Tensor:
        r"""Returns :math:`\log \omega` of each channel (N, C) for the relation (N, C_deeper, C) of one level."""
        mlp = self.mlps[level if len(self.mlps) > 1 else 0]
        # A column sums to 1 on average: scaled by its length its entries are of the order of 1.
        columns = relation.transpose(1, 2).to(next(mlp.parameters()).dtype) * relation.shape[1]
        return F.logsigmoid(mlp(columns).squeeze(2)).to(relation.dtype)

    def forward(self, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> list[Tensor]:
        """Returns the weights (N, C) of the channels of each level, for the levels (N, C, H, W), finest first."""
        sides, weights = [_relations(side, self.relation) for side in (teachers, students)], []
        for level, relations in enumerate(zip_equal(*sides)):
            ours, theirs = (self.log_gate(relation, level) for relation in relations)
            if self.relation == 'printed':
                weights.append((ours + theirs).exp())
            else:
                # The product over its mean, in logarithms: gates that all vanish still have a ratio.
                ratio = torch.softmax(ours + theirs, 1) * ours.shape[1]
                weights.append(FLOOR + (1 - FLOOR) * ratio)
        return weights


def _mlp(width: int, hidden: int) -> nn.Sequential:
    """Returns G, which starts equal for all channels."""
    last = nn.Linear(hidden, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), last)
