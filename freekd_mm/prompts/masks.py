"""PoI masks: where the tokens of a frequency prompt look in each wavelet band."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from freekd_mm.checks import check_choice
from freekd_mm.frequency import WaveletBands, WaveletDetail, dwt2d
from freekd_mm.tensors import full_precision

Grouping = Literal['level', 'band']
GROUPINGS = ('level', 'band')
SIMILARITIES = ('jaccard', 'dice')


def num_groups(levels: int, grouping: Grouping) -> int:
    """Returns how many bands or levels have tokens of their own, the low band included."""
    check_choice('grouping', grouping, GROUPINGS)
    return 1 + levels * (3 if grouping == 'band' else 1)


def poi_masks(
    features: Tensor, tokens: Tensor, levels: int = 3, wavelet: str = 'haar', grouping: Grouping = 'level'
) -> WaveletBands:
    r"""Returns the masks :math:`\sigma(P_k R_k)` of every band, (N, T, h, w) each.

    With ``grouping='level'`` the three orientations of a level share one mask, made from their sum (the released
    code); with ``'band'`` each has its own. Channels are mixed by the tokens and positions by the transform, so the
    features are first projected on the tokens and only those few maps are transformed: no band of all C channels
    is made.

    Args:
        features: (N, C, H, W).
        tokens: (groups, T, C); group 0 is the low band's, the others follow from the finest level on.
        levels: Number of wavelet levels.
        wavelet: The wavelet.
        grouping: ``'level'`` or ``'band'``.
    """
    groups, num_tokens, channels = tokens.shape
    if features.ndim != 4 or features.shape[1] != channels:
        raise ValueError(
            f'features should be (N, {channels}, H, W), as the prompt was made for, but got {tuple(features.shape)}'
        )
    with torch.autocast(features.device.type, enabled=False):
        wide = full_precision(features)
        projected = torch.matmul(tokens.to(wide.dtype).flatten(0, 1), wide.flatten(2))
        maps = projected.unflatten(2, features.shape[2:])
        bands = dwt2d(maps, levels, wavelet)

        def mask(band: Tensor, group: int) -> Tensor:
            return band.unflatten(1, (groups, num_tokens))[:, group].sigmoid()

        high = []
        for level, detail in enumerate(bands.high):
            if grouping == 'level':
                shared = mask(detail.horizontal + detail.vertical + detail.diagonal, 1 + level)
                high.append(WaveletDetail(shared, shared, shared))
            else:
                high.append(WaveletDetail(*(mask(band, 1 + 3 * level + index) for index, band in enumerate(detail))))
        return WaveletBands(mask(bands.low, 0), tuple(high), bands.shape, wavelet)


def mask_groups(masks: WaveletBands, grouping: Grouping) -> list[Tensor]:
    """Returns the distinct masks, one (N, T, h, w) a group: low band first, then from the finest level on."""
    if grouping == 'level':
        return [masks.low, *(detail.horizontal for detail in masks.high)]
    return [masks.low, *(mask for detail in masks.high for mask in detail)]


def mask_similarity(masks: Tensor, kind: Literal['jaccard', 'dice'] = 'jaccard') -> Tensor:
    r"""How much the masks of T tokens overlap, in (0, 1]; mean over the images.

    With :math:`\langle i, j \rangle = \sum_p M_i(p) M_j(p)`:

    .. math::
        \text{jaccard (paper):} \quad & \frac{1}{T^2} \sum_{i,j}
            \frac{\langle i, j \rangle}{\langle i, i \rangle + \langle j, j \rangle - \langle i, j \rangle} \\
        \text{dice (released code):} \quad & \frac{1}{T(T-1)} \sum_{i \neq j}
            \frac{2 \langle i, j \rangle}{\langle i, i \rangle + \langle j, j \rangle}

    For masks of zeros and ones these are the Jaccard and the Dice index. The paper's sum holds the T pairs
    i = j, which are constantly 1; with one token there is no other pair, and Dice is 0.

    Args:
        masks: (N, T, h, w), each value in (0, 1).
        kind: ``'jaccard'`` or ``'dice'``.
    """
    check_choice('dissimilarity', kind, SIMILARITIES)
    flat = full_precision(masks).flatten(2)
    # Sums over all positions: half precision would overflow.
    with torch.autocast(masks.device.type, enabled=False):
        inner = torch.matmul(flat, flat.transpose(1, 2))
    own = inner.diagonal(dim1=1, dim2=2)
    sums = own[:, :, None] + own[:, None, :]
    tiny = torch.finfo(inner.dtype).tiny
    batch, count = max(inner.shape[0], 1), inner.shape[1]
    if kind == 'jaccard':
        return (inner / (sums - inner).clamp(min=tiny)).sum() / (batch * count**2)
    pairs = 2 * inner / sums.clamp(min=tiny)
    others = pairs.sum() - pairs.diagonal(dim1=1, dim2=2).sum()
    return others / (batch * max(count * (count - 1), 1))
