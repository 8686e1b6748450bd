"""The enhanced knowledge review of FAM-KD: levels fused from the deepest up by local attention, then one FAM each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freekd_mm.checks import check_choice, check_positive
from freekd_mm.compat.versions import zip_equal
from freekd_mm.connectors.fam import FAMConnector
from freekd_mm.registry import MODELS
from freekd_mm.tensors import full_precision

Variant = Literal['ours', 'code']
HEADS, KERNEL = 4, 3


class LocalCrossAttention(nn.Module):
    r"""Every pixel of ``guide`` attends to the 3x3 neighbourhood of the same pixel in ``x``.

    With the queries q of ``guide``, the keys k and values v of ``x`` (1x1 convolutions without bias), the
    learnable relative position r and d channels per head:

    .. math:: y_i = \sum_{j \in 3 \times 3} \mathrm{softmax}_j\big(q_i \cdot (k_{i+j} + r_j) / \sqrt{d}\big)\, v_{i+j}

    As in the released code, half of the channels of r depend on the row of j and the other half on
    its column, and the neighbours beyond the border are zeros that count in the softmax.

    Args:
        channels: Channels of ``guide``, ``x`` and the output.
        num_heads: Number of heads; it must divide the channels. With one head per channel the attention is
            the released code's, which never sums over channels and stores nine scores per channel.
        position_std: Initial deviation of the relative positions; the released code has 1.
    """

    def __init__(self, channels: int, num_heads: int = HEADS, position_std: float = 0.02) -> None:
        super().__init__()
        check_positive('channels', channels, integer=True)
        check_positive('num_heads', num_heads, integer=True)
        if channels % num_heads:
            raise ValueError(f'num_heads should divide the channels {channels}, but got {num_heads}')
        self.num_heads = num_heads
        self.query, self.key, self.value = (nn.Conv2d(channels, channels, 1, bias=False) for _ in range(3))
        self.rows = nn.Parameter(position_std * torch.randn(channels // 2, KERNEL))
        self.columns = nn.Parameter(position_std * torch.randn(channels - channels // 2, KERNEL))

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """Returns y (N, C, H, W) for x and the guide, which makes the queries, of the same shape."""
        query, key, value = (
            full_precision(part).unflatten(1, (self.num_heads, -1))
            for part in (self.query(guide), self.key(x), self.value(x))
        )
        rows, columns = self.rows[:, :, None], self.columns[:, None, :]
        position = torch.cat([part.expand(-1, KERNEL, KERNEL) for part in (rows, columns)]).flatten(1)
        with torch.autocast(x.device.type, enabled=False):
            query = query / math.sqrt(query.shape[2])
            # (N, heads, 9, H, W): nine scores are kept per head and pixel, and no copy of the features per neighbour.
            by_position = torch.einsum(
                'nhdyx,hdk->nhkyx', query, position.to(query.dtype).unflatten(0, query.shape[1:3])
            )
            by_content = torch.stack([(query * near).sum(2) for near in _neighbours(key)], 2)
            attention = (by_content + by_position).softmax(2).unbind(2)
            weighted = [share[:, :, None] * near for share, near in zip_equal(attention, _neighbours(value))]
            return sum(weighted[1:], weighted[0]).flatten(1, 2)


def _neighbours(x: Tensor) -> list[Tensor]:
    """Returns what is at the nine neighbours of each pixel, row by row, as views (..., H, W) of x padded with zeros."""
    height, width = x.shape[-2:]
    padded = F.pad(x, (1, 1, 1, 1))
    return [padded[..., i : i + height, j : j + width] for i in range(KERNEL) for j in range(KERNEL)]


class ReviewFusion(nn.Module):
    """Fuses a level with the result of the deeper one by attention; options as in :class:`FAMReviewConnector`."""

    def __init__(self, channels: int, deeper_channels: int, num_heads: int | None, variant: Variant) -> None:
        super().__init__()
        code = variant == 'code'
        self.project: nn.Module = nn.Identity()
        if channels != deeper_channels:
            self.project = nn.Conv2d(deeper_channels, channels, 1, bias=not code)
            if code:
                nn.init.kaiming_uniform_(self.project.weight, a=1)
                self.project = nn.Sequential(self.project, nn.BatchNorm2d(channels), nn.ReLU())
        if num_heads is None:
            num_heads = channels if code else math.gcd(HEADS, channels)
        self.attention = LocalCrossAttention(channels, num_heads, 1.0 if code else 0.02)
        if code:
            for module in (self.attention.query, self.attention.key, self.attention.value):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')

    def forward(self, x: Tensor, deeper: Tensor) -> Tensor:
        """Returns (N, C, H, W) for this level's x (N, C, H, W) and the deeper result (N, C', h, w)."""
        guide = F.interpolate(self.project(deeper), x.shape[2:], mode='nearest')
        return self.attention(x, guide)


@MODELS.register_module()
class FAMReviewConnector(FAMConnector):
    """Adapts the student's levels by knowledge review with :class:`freekd_mm.connectors.FAM`.

    From the deepest level up: the deeper result, upsampled to this level's size, attends to this level's 3x3
    neighbourhoods; the fused features go up to the next level, and through this level's FAM to the loss. The deepest
    level has nothing to fuse. ``variant='code'`` also has the released code's softmax per channel, relative positions
    of deviation 1, batch norm and ReLU where the channels of two levels differ and after FAM, its high-pass and its
    initial values. With ``mode='dense'`` it computes exactly what that code does, for one input size.

    Args:
        in_channels: Channels of the student's levels, finest first; one integer for all or one per level.
        out_channels: Channels of the teacher's levels, in the same form.
        num_heads: Heads of the attention; they must divide the channels of every level but the deepest.
            None: four, or two or one if four do not divide; with ``variant='code'`` one per channel.
        variant: ``'ours'``: heads with a scaled dot product, a plain 1x1 convolution between levels. ``'code'``:
            see above; sets ``post`` and ``region`` unless they are given.
        **fam: Other options of :class:`freekd_mm.connectors.FAMConnector`.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        out_channels: int | Sequence[int],
        *,
        num_heads: int | None = None,
        variant: Variant = 'ours',
        **fam: Any,
    ) -> None:
        check_choice('variant', variant, ('ours', 'code'))
        if variant == 'code':
            fam = {'post': 'bn_relu', 'region': 'code', **fam}
        super().__init__(in_channels, out_channels, **fam)
        self.fusions = nn.ModuleList(
            ReviewFusion(channels, deeper, num_heads, variant)
            for channels, deeper in zip_equal(self.in_channels[:-1], self.in_channels[1:])
        )

    def fuse(self, levels: tuple[Tensor, ...]) -> Sequence[Tensor]:
        """Returns the fused levels, finest first: of the deepest level itself, of the others the attention."""
        fused = [levels[-1]]
        for x, fusion in zip_equal(levels[-2::-1], reversed(self.fusions)):
            fused.insert(0, fusion(x, fused[0]))
        return fused
