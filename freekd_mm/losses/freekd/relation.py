"""Position-aware relational weights: which channels of a level matter to the next deeper one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freekd_mm.checks import check_choice, check_positive
from freekd_mm.tensors import full_precision

Relation = Literal['bounded', 'printed']
RELATIONS = ('bounded', 'printed')

# Correlations are in [-1, 1]; this spreads their softmax so that a strong one stands out of 256.
TEMPERATURE = 0.1
# A correlation over so many positions is known to 0.06, finer than the temperature distinguishes.
MAX_PIXELS = 300
# The weights are at least this, and 1 on average: a gate can never remove more than half of the loss.
FLOOR = 0.5


def _pool(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Averages x (N, C, H, W) down to ``size``, which is at most (H, W)."""
    while (x.shape[2] + 1) // 2 >= size[0] and (x.shape[3] + 1) // 2 >= size[1] and x.shape[2:] != size:
        # A few adds: several times faster on a CPU than pooling.
        x = _add_pairs(_add_pairs(x, 2), 3).mul_(0.25)
    return x if (x.shape[2], x.shape[3]) == size else F.adaptive_avg_pool2d(x, size)


def _add_pairs(x: Tensor, dim: int) -> Tensor:
    """Adds neighbours along an axis; the last of an odd number counts twice."""
    half, odd = divmod(x.shape[dim], 2)
    pairs = x.narrow(dim, 0, 2 * half).unflatten(dim, (half, 2))
    total = pairs.select(dim + 1, 0) + pairs.select(dim + 1, 1)
    return torch.cat((total, 2 * x.narrow(dim, 2 * half, 1)), dim) if odd else total


class _Pooled:
    """Feature levels at any smaller size; each size is made once, from the next larger one."""

    def __init__(self, features: Sequence[Tensor]) -> None:
        self.maps = [{(level.shape[2], level.shape[3]): full_precision(level.detach())} for level in features]

    def rows(self, level: int, size: tuple[int, int]) -> Tensor:
        """Returns a level (N, C, H, W), averaged down to ``size``, as rows (N, C, hw)."""
        made = self.maps[level]
        if size not in made:
            _, source = min((s[0] * s[1], s) for s in made if s[0] >= size[0] and s[1] >= size[1])
            made[size] = _pool(made[source], size)
        return made[size].flatten(2)

    def relation(self, level: int, kind: Relation) -> Tensor:
        """Returns the relation of a level to the next deeper one, (N, C_deeper, C)."""
        deeper = min(level + 1, len(self.maps) - 1)
        sizes = [next(iter(self.maps[index])) for index in (level, deeper)]
        size = (min(sizes[0][0], sizes[1][0]), min(sizes[0][1], sizes[1][1]))
        while kind == 'bounded' and size[0] * size[1] > MAX_PIXELS:
            size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
        rows, others = self.rows(level, size), self.rows(deeper, size)
        if kind == 'bounded':
            rows, others = (F.normalize(x - x.mean(2, keepdim=True), dim=2) / TEMPERATURE**0.5 for x in (rows, others))
        return torch.softmax(torch.bmm(others, rows.transpose(1, 2)), 2)


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
        """Returns the weights of the channels of each level, (N, C) each.

        Args:
            students: All levels of the student, each (N, C, H, W), finest first.
            teachers: All levels of the teacher, in the same form.
        """
        sides = [_Pooled(teachers), _Pooled(students)]
        weights = []
        for level in range(len(teachers)):
            ours, theirs = (self.log_gate(side.relation(level, self.relation), level) for side in sides)
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
