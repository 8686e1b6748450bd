"""The semantic frequency prompt of FreeKD's first stage (CVPR 2024, arXiv 2311.12079)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from freekd_mm.checks import check_choice, check_positive
from freekd_mm.compat.versions import zip_equal
from freekd_mm.frequency import WaveletBands, WaveletDetail, dwt2d, idwt2d
from freekd_mm.frequency.wavelet import is_haar
from freekd_mm.prompts.masks import SIMILARITIES, Grouping, mask_groups, mask_similarity, num_groups, poi_masks
from freekd_mm.tensors import full_precision


class FrequencyPrompt(nn.Module):
    r"""Learnable tokens that say which positions of each wavelet band matter to the frozen teacher.

    For a band :math:`R` (flattened, C x hw) and its tokens :math:`P` (T x C) the masks are
    :math:`M = \sigma(P R)`, T x hw, and the band is replaced by

    .. math::
        R' = \frac{2}{T} \sum_{i=1}^{T} M_i \cdot R

    The paper has T = 2, where the factor is 1. The tokens start in pairs :math:`(p, -p)`, and a zero where T is
    odd: as :math:`\sigma(x) + \sigma(-x) = 1`, the teacher starts unchanged for every T, and the tokens of a pair
    differ, so that the dissimilarity can drive them apart.

    Args:
        channels: C of the features.
        num_tokens: T.
        levels: Number of wavelet levels.
        wavelet: The wavelet.
        grouping: ``'level'``, one group of tokens for the three orientations of a level (released code);
            ``'band'``, one for each band.
        dissimilarity: ``'jaccard'`` (paper) or ``'dice'`` (released code), see
            :func:`freekd_mm.prompts.masks.mask_similarity`.
        init_std: Standard deviation of the tokens at the start.
    """

    def __init__(
        self,
        channels: int,
        num_tokens: int = 2,
        levels: int = 3,
        wavelet: str = 'haar',
        grouping: Grouping = 'level',
        dissimilarity: Literal['jaccard', 'dice'] = 'jaccard',
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        check_positive('channels', channels, integer=True)
        check_positive('num_tokens', num_tokens, integer=True)
        check_positive('levels', levels, integer=True)
        check_positive('init_std', init_std, zero=True)
        check_choice('dissimilarity', dissimilarity, SIMILARITIES)
        is_haar(wavelet)  # raises where there is no such wavelet
        self.channels, self.num_tokens, self.levels = channels, num_tokens, levels
        self.wavelet, self.grouping, self.dissimilarity = wavelet, grouping, dissimilarity
        half = init_std * torch.randn(num_groups(levels, grouping), num_tokens // 2, channels)
        odd = torch.zeros(half.shape[0], num_tokens % 2, channels)
        #: (groups, T, C); group 0 is the low band's, the others follow from the finest level on.
        self.mask_token = nn.Parameter(torch.cat((half, -half, odd), 1))

    def extra_repr(self) -> str:
        """Names the options in ``print(model)``."""
        return (
            f'channels={self.channels}, num_tokens={self.num_tokens}, levels={self.levels}, '
            f'wavelet={self.wavelet!r}, grouping={self.grouping!r}'
        )

    def masks(self, x: Tensor) -> WaveletBands:
        """Returns the masks of every band of x (N, C, H, W), each (N, T, h, w)."""
        return poi_masks(x, self.mask_token, self.levels, self.wavelet, self.grouping)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the reconstructed features (N, C, H, W) and the mean overlap of the masks, to be minimised."""
        features, overlap, _ = self.prompt(x)
        return features, overlap

    def prompt(self, x: Tensor) -> tuple[Tensor, Tensor, WaveletBands]:
        """Returns what :meth:`forward` returns, and the masks."""
        masks = self.masks(x)
        with torch.autocast(x.device.type, enabled=False):
            bands = dwt2d(full_precision(x), self.levels, self.wavelet)
            scale = 2 / self.num_tokens

            def weigh(band: Tensor, mask: Tensor) -> Tensor:
                return band * (scale * mask.sum(1, keepdim=True))

            high = tuple(
                WaveletDetail(*(weigh(band, mask) for band, mask in zip_equal(detail, of_level)))
                for detail, of_level in zip_equal(bands.high, masks.high)
            )
            features = idwt2d(bands._replace(low=weigh(bands.low, masks.low), high=high)).to(x.dtype)
        groups = mask_groups(masks, self.grouping)
        overlap = torch.stack([mask_similarity(group, self.dissimilarity) for group in groups]).mean()
        return features, overlap, masks
