"""Position-aware relational weights: which channels of a level matter to the next deeper one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freekd_mm.checks import check_choice, check_positive
from freekd_mm.losses.freekd.haar_step import blocks_of
from freekd_mm.tensors import full_precision

Relation = Literal['mlp', 'free']
RELATIONS = ('mlp', 'free')

# Correlations lie in [-1, 1]; this spreads their softmax so that a strong one stands out of 256.
TEMPERATURE = 0.1
# A correlation over so many positions is known to 0.06, finer than the temperature tells apart.
MAX_PIXELS = 300
# The weights are at least this, and 1 on average: a gate can never take more than half of the loss away.
FLOOR = 0.5


def _pool(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Averages x (N, C, H, W) down to ``size``, which is at most (H, W)."""
    while (x.shape[2] + 1) // 2 >= size[0] and (x.shape[3] + 1) // 2 >= size[1] and x.shape[2:] != size:
        x = _halve(x)
    return x if (x.shape[2], x.shape[3]) == size else F.adaptive_avg_pool2d(x, size)


def _halve(x: Tensor) -> Tensor:
    """Averages 2 x 2 pixels, at the end of an odd size those that are there.

    In a few adds, some planes at a time in the cache: several times faster on a CPU than pooling.
    """
    half = x.new_empty(*x.shape[:2], (x.shape[2] + 1) // 2, (x.shape[3] + 1) // 2)
    for block in blocks_of(x.shape, x.device):
        rows = _add_pairs(x[block], 2)
        half[block] = _add_pairs(rows, 3)
    return half.mul_(0.25)


def _add_pairs(x: Tensor, dim: int) -> Tensor:
    """Adds neighbours along an axis; the last of an odd number counts twice."""
    half, odd = divmod(x.shape[dim], 2)
    pairs = x.narrow(dim, 0, 2 * half).unflatten(dim, (half, 2))
    total = pairs.select(dim + 1, 0) + pairs.select(dim + 1, 1)
    return torch.cat((total, 2 * x.narrow(dim, 2 * half, 1)), dim) if odd else total


def _unit_rows(x: Tensor) -> Tensor:
    """Returns x (N, C, h, w) as rows (N, C, hw) of mean 0 and norm 1; constant rows become 0."""
    rows = x.flatten(2)
    return F.normalize(rows - rows.mean(2, keepdim=True), dim=2)


class _Pooled:
    """Feature levels as unit rows at any smaller size; each size is made once, from the next larger one."""

    def __init__(self, features: Sequence[Tensor]) -> None:
        self.maps = [{(level.shape[2], level.shape[3]): full_precision(level.detach())} for level in features]
        self.rows: dict[tuple[int, tuple[int, int]], Tensor] = {}

    def unit_rows(self, level: int, size: tuple[int, int]) -> Tensor:
        """Returns a level (N, C, H, W), averaged down to ``size``, as rows (N, C, hw) of mean 0 and norm 1."""
        key = (level, size)
        if key not in self.rows:
            _, source = min((s[0] * s[1], s) for s in self.maps[level] if s[0] >= size[0] and s[1] >= size[1])
            pooled = self.maps[level].setdefault(size, _pool(self.maps[level][source], size))
            self.rows[key] = _unit_rows(pooled)
        return self.rows[key]

    def relation(self, level: int, max_pixels: int | None) -> Tensor:
        """Returns the relation of a level to the next deeper one (N, C_deeper, C)."""
        deeper = min(level + 1, len(self.maps) - 1)
        sizes = [next(iter(self.maps[index])) for index in (level, deeper)]
        size = (min(sizes[0][0], sizes[1][0]), min(sizes[0][1], sizes[1][1]))
        while max_pixels is not None and size[0] * size[1] > max_pixels:
            size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
        rows, others = self.unit_rows(level, size), self.unit_rows(deeper, size)
        return torch.softmax(torch.bmm(others, rows.transpose(1, 2)) / TEMPERATURE, 2)


def channel_relation(features: Tensor, deeper: Tensor, max_pixels: int | None = None) -> Tensor:
    r"""Returns the relation :math:`A = \mathrm{softmax}(\psi F^T / \tau)` (N, C_deeper, C), without gradient.

    :math:`F` is the level, pooled to the size of :math:`\psi`, the next deeper one; both as rows of mean 0 and
    norm 1 over the positions, so that the scale of the features does not matter. Row i says how the deeper channel
    i spreads its attention over the channels of the level. Formed at the deeper level's size this takes a quarter
    of the work.

    Args:
        features: The level (N, C, H, W).
        deeper: The next deeper level (N, C_deeper, h, w).
        max_pixels: Pool both further, to at most so many positions.
    """
    return _Pooled((features, deeper)).relation(0, max_pixels)


class RelationGate(nn.Module):
    r"""Turns relations into weights of the channels, :math:`\omega_r` from :math:`\omega_t \cdot \omega_s`.

    For each of teacher and student :math:`\omega = G(A)`, one weight a channel:

    - ``'mlp'``: an MLP with a sigmoid looks at the attention that the channel gets from each deeper channel (its
      column of A); it starts equal for all channels.
    - ``'free'``: the sum of that column, which has no parameters.

    A loss times a free weight teaches the weight to vanish. So the product is normalised and bounded,

    .. math::
        \omega_r = \frac12 + \frac12 \, \frac{\omega_t \omega_s}{\mathrm{mean}_c(\omega_t \omega_s)},

    which is 1 on average and at least 1/2: whatever the gate learns, the loss keeps at least half of its value.
    The gates look at detached features, so the student cannot lower the loss by moving its weights either. The
    deepest level has no deeper one and is related to itself.

    Args:
        relation: ``'mlp'`` or ``'free'``.
        channels: Channels of the levels: one number for all (they share one MLP), or one a level.
        hidden: Width of the MLP.
        max_pixels: Pool the levels to at most so many positions before they are related; None relates them at the
            deeper level's size, as the paper does.
    """

    def __init__(
        self, relation: Relation, channels: int | Sequence[int], hidden: int = 64, max_pixels: int | None = MAX_PIXELS
    ) -> None:
        super().__init__()
        check_choice('relation', relation, RELATIONS)
        check_positive('hidden', hidden, integer=True)
        if max_pixels is not None:
            check_positive('max_pixels', max_pixels, integer=True)
        self.relation, self.max_pixels = relation, max_pixels
        self.mlps = nn.ModuleList()
        if relation == 'mlp':
            widths = [channels] if isinstance(channels, int) else [*channels[1:], channels[-1]]
            self.mlps.extend(self._mlp(width, hidden) for width in widths)

    @staticmethod
    def _mlp(width: int, hidden: int) -> nn.Sequential:
        last = nn.Linear(hidden, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), last)

    def log_gate(self, relation: Tensor, level: int) -> Tensor:
        r"""Returns :math:`\log \omega` of each channel (N, C) for the relation (N, C_deeper, C) of one level."""
        if self.relation == 'free':
            return relation.sum(1).log()
        mlp = self.mlps[level if len(self.mlps) > 1 else 0]
        # A column sums to 1 on average: scaled by its length its entries are of the order of 1.
        columns = relation.transpose(1, 2).to(next(mlp.parameters()).dtype) * relation.shape[1]
        return F.logsigmoid(mlp(columns).squeeze(2)).to(relation.dtype)

    def forward(self, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> list[Tensor]:
        """Returns the weights of the channels of each level, (N, C) each.

        Args:
            students: All levels of the student, each (N, C, H, W), finest first.
            teachers: All levels of the teacher, likewise.
        """
        sides = [_Pooled(teachers), _Pooled(students)]
        weights = []
        for level in range(len(teachers)):
            logs = [self.log_gate(side.relation(level, self.max_pixels), level) for side in sides]
            # The product over its mean, in logarithms: gates that all vanish still have a ratio.
            ratio = torch.softmax(logs[0] + logs[1], 1) * logs[0].shape[1]
            weights.append(FLOOR + (1 - FLOOR) * ratio)
        return weights
