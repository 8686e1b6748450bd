"""The enhanced knowledge review of FAM-KD: levels fused from the deepest up, then one FAM each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Union

import torch.nn.functional as F
from torch import Tensor, nn

from freekd_mm.checks import check_choice
from freekd_mm.compat.versions import zip_equal
from freekd_mm.connectors.attention import LocalCrossAttention
from freekd_mm.connectors.fam import FAMConnector, Mode
from freekd_mm.registry import MODELS

Heads = Union[int, Literal['channels'], None]
HEADS = 4


class ReviewFusion(nn.Module):
    """Fuses one level with the result of the deeper one by :class:`LocalCrossAttention`.

    Args:
        channels: Channels of this level.
        deeper_channels: Channels of the deeper level's result.
        num_heads: Heads of the attention, see :class:`FAMReviewConnector`.
    """

    def __init__(self, channels: int, deeper_channels: int, num_heads: Heads) -> None:
        super().__init__()
        same = channels == deeper_channels
        self.project = nn.Identity() if same else nn.Conv2d(deeper_channels, channels, 1)
        if num_heads is None:
            num_heads = math.gcd(HEADS, channels)
        self.attention = LocalCrossAttention(channels, channels if num_heads == 'channels' else num_heads)

    def forward(self, x: Tensor, deeper: Tensor) -> Tensor:
        """Returns (N, C, H, W) for this level's x (N, C, H, W) and the deeper result (N, C', h, w)."""
        guide = F.interpolate(self.project(deeper), x.shape[2:], mode='nearest')
        return self.attention(x, guide)


@MODELS.register_module()
class FAMReviewConnector(FAMConnector):
    """Adapts the student's levels by knowledge review with :class:`freekd_mm.connectors.FAM`.

    From the deepest level up: the deeper result, upsampled to this level's size, asks this level's 3x3
    neighbourhoods (local cross attention with relative positions); the fused features go up to the next
    level, and through this level's FAM to the loss. The deepest level has nothing to fuse.

    FAM-KD's, as its released code has it: the top-down order, queries from the deeper result, keys and
    values from this level, nearest-neighbour upsampling, fused features (before FAM) going up, one FAM a
    level. Ours: real low-rank filters for any input size; heads with a scaled dot product
    (``num_heads='channels'`` is the released code's product without a sum over channels); a plain 1x1
    convolution where the channels of two levels differ (the released code adds batch norm and ReLU).

    Args:
        in_channels: Channels of the student's levels, finest first; one integer for all or one a level.
        out_channels: Channels of the teacher's levels, likewise.
        num_levels: Number of levels; None takes the length of the channels, or 1.
        mode: ``'lowrank'``, ``'depthwise'`` or ``'dense'``, see :class:`freekd_mm.frequency.SpectralFilter2d`.
        num_heads: Heads of the attention; they must divide the channels of every level but the deepest.
            ``'channels'``: one a channel. None: four, or two or one where four do not divide.
        fam: Every other option of :class:`freekd_mm.connectors.FAMConnector`.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        out_channels: int | Sequence[int],
        num_levels: int | None = None,
        mode: Mode = 'lowrank',
        *,
        num_heads: Heads = None,
        **fam: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, num_levels, mode, **fam)
        if isinstance(num_heads, str):
            check_choice('num_heads', num_heads, ('channels',))
        self.fusions = nn.ModuleList(
            ReviewFusion(channels, deeper, num_heads)
            for channels, deeper in zip_equal(self.in_channels[:-1], self.in_channels[1:])
        )

    def fuse(self, levels: tuple[Tensor, ...]) -> Sequence[Tensor]:
        """Returns the fused levels, finest first: of the deepest level itself, of the others the attention."""
        fused = [levels[-1]]
        for x, fusion in zip_equal(levels[-2::-1], reversed(self.fusions)):
            fused.insert(0, fusion(x, fused[0]))
        return fused
