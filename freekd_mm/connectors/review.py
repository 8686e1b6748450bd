"""The enhanced knowledge review of FAM-KD: levels fused from the deepest up, then one FAM each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from freekd_mm.checks import check_choice
from freekd_mm.compat.versions import zip_equal
from freekd_mm.connectors.attention import LocalCrossAttention
from freekd_mm.connectors.fam import FAMConnector
from freekd_mm.registry import MODELS

Variant = Literal['ours', 'code']
HEADS = 4


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
    neighbourhoods (local cross attention with relative positions); the fused features go up to the next
    level, and through this level's FAM to the loss. The deepest level has nothing to fuse.

    From FAM-KD's released code: the top-down order, queries from the deeper result, keys and
    values from this level, nearest-neighbour upsampling, fused features (before FAM) going up, one FAM per
    level. ``variant='code'`` follows the released code in everything else too: a softmax per channel, relative
    positions of deviation 1, batch norm and ReLU where the channels of two levels differ and after FAM, its
    high-pass and its initial values. With ``mode='dense'`` it computes exactly what that code does, for one input size.

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
