"""PoI masks: where the tokens of a frequency prompt look in each wavelet band."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable, Literal, TypeVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from freekd_mm.checks import check_choice
from freekd_mm.compat.versions import zip_equal
from freekd_mm.frequency import WaveletBands, WaveletDetail, dwt2d
from freekd_mm.frequency.inputs import band_sizes
from freekd_mm.tensors import full_precision

Grouping = Literal['level', 'band']
Evidence = Literal['band', 'magnitude']
Similarity = Literal['jaccard', 'dice']
LOW = 'low band'
T = TypeVar('T')


def num_groups(levels: int, grouping: Grouping) -> int:
    """Returns how many bands or levels have their own tokens, the low band included."""
    check_choice('grouping', grouping, get_args(Grouping))
    return 1 + levels * (3 if grouping == 'band' else 1)


def named_groups(groups: Sequence[T], grouping: Grouping) -> dict[str, T]:
    """Returns one value per group of bands, the low band's first, by the names of the groups."""
    kinds = ['details'] if grouping == 'level' else ['horizontal', 'vertical', 'diagonal']
    high = (f'{kinds[index % len(kinds)]} {1 + index // len(kinds)}' for index in range(len(groups) - 1))
    return dict(zip([LOW, *high], groups))


def mask_logits(bands: WaveletBands, tokens: Tensor, grouping: Grouping, evidence: Evidence) -> list[Tensor]:
    """Returns what the tokens (groups, T, C) find in each group of bands, (N, T, h, w) each, before the sigmoid.

    The low band is the first group, the others follow from the finest level on. With ``grouping='level'`` the three
    orientations of a level are one group: their sum (the released code). With ``evidence='band'`` a token :math:`P`
    finds :math:`P R`, of which the bands hold the groups * T projections: positive and negative coefficients are
    opposites. With ``'magnitude'`` it finds :math:`z = P |R|`, averaged with the mean of z over the 3 x 3 positions
    around: the same for R and -R. These are only those whose blocks lie within the map.
    """
    # Beyond the border are zeros, and an edge there as strong as the mean of the features.
    bands = bands.inside() if evidence == 'magnitude' else bands
    groups: list[tuple[Tensor, ...]] = [(bands.low,)]
    for detail in bands.high:
        groups += [tuple(detail)] if grouping == 'level' else [(band,) for band in detail]
    if evidence == 'band':
        return [sum(parts[1:], parts[0]).unflatten(1, tokens.shape[:2])[:, index] for index, parts in enumerate(groups)]
    found = []
    for token, parts in zip_equal(tokens, groups):
        size = sum((band.abs() for band in parts[1:]), parts[0].abs())
        logits = torch.matmul(token, size.flatten(2)).unflatten(2, size.shape[2:])
        around = F.avg_pool2d(logits, 3, stride=1, padding=1, count_include_pad=False)
        found.append((logits + around) / 2)
    return found


def as_bands(groups: list[Tensor], shape: tuple[int, int], grouping: Grouping) -> WaveletBands:
    """Returns one tensor per group as bands; the orientations of a level share theirs if they are one group.

    What is missing at the border is as beside it.
    """
    size = 1 if grouping == 'level' else 3
    sizes = band_sizes(shape, (len(groups) - 1) // size)
    wanted = [sizes[-1], *(own for own in sizes for _ in range(size))]
    missing = [(h - group.shape[2], w - group.shape[3]) for group, (h, w) in zip_equal(groups, wanted)]
    groups = [F.pad(x, (0, w, 0, h), mode='replicate') if h or w else x for x, (h, w) in zip_equal(groups, missing)]
    levels = [groups[start : start + size] * (3 // size) for start in range(1, len(groups), size)]
    return WaveletBands(groups[0], tuple(WaveletDetail(*level) for level in levels), shape)


def poi_masks(
    features: Tensor,
    tokens: Tensor,
    levels: int = 3,
    grouping: Grouping = 'level',
    evidence: Evidence = 'band',
    bias: Tensor | Callable[[Tensor, int], Tensor] | None = None,
    bands: WaveletBands | None = None,
) -> WaveletBands:
    r"""Returns the masks of every band, (N, T, h, w) each: the sigmoid of what the tokens find, plus a bias.

    The paper's are :math:`\sigma(P_k R_k)`.

    Args:
        features: (N, C, H, W).
        tokens: (groups, T, C); group 0 is the low band's, the others follow from the finest level on.
        levels: Number of wavelet levels; the tokens of deeper ones are not used.
        grouping: ``'level'`` or ``'band'``, see :func:`mask_logits`.
        evidence: ``'band'`` or ``'magnitude'``.
        bias: (groups, T), or a function of the logits (N, T, h, w) and the number of a group.
        bands: Of the features, if they are known; only magnitudes are taken from these.
    """
    if features.ndim != 4 or features.shape[1] != tokens.shape[2]:
        raise ValueError(
            f'features should be (N, {tokens.shape[2]}, H, W), as the prompt was made for, but got '
            f'{tuple(features.shape)}'
        )
    with torch.autocast(features.device.type, enabled=False):
        wide = full_precision(features)
        tokens = tokens[: num_groups(levels, grouping)].to(wide.dtype)
        if evidence == 'band':
            # The tokens mix channels, the transform mixes positions, so the order does not matter: only the few maps
            # of the projected features are transformed, no band of all C channels is made.
            wide = torch.matmul(tokens.flatten(0, 1), wide.flatten(2)).unflatten(2, wide.shape[2:])
        if bands is None or evidence == 'band':
            bands = dwt2d(wide, levels)
        found = mask_logits(bands, tokens, grouping, evidence)
        if callable(bias):
            found = [bias(logits, group) for group, logits in enumerate(found)]
        elif bias is not None:
            found = [logits + own[:, None, None] for logits, own in zip(found, bias.to(wide.dtype))]
        return as_bands([logits.sigmoid() for logits in found], bands.shape, grouping)


def mask_groups(masks: WaveletBands, grouping: Grouping) -> list[Tensor]:
    """Returns the distinct masks, one (N, T, h, w) per group: low band first, then from the finest level on."""
    distinct = 1 if grouping == 'level' else 3
    return [masks.low, *(mask for detail in masks.high for mask in detail[:distinct])]


def mask_similarity(masks: Tensor, kind: Similarity = 'jaccard') -> Tensor:
    r"""How much the masks of T tokens overlap, in (0, 1]; mean over the images.

    With :math:`\langle i, j \rangle = \sum_p M_i(p) M_j(p)`:

    .. math::
        \text{jaccard (paper):} \quad & \frac{1}{T^2} \sum_{i,j}
            \frac{\langle i, j \rangle}{\langle i, i \rangle + \langle j, j \rangle - \langle i, j \rangle} \\
        \text{dice (released code):} \quad & \frac{1}{T(T-1)} \sum_{i \neq j}
            \frac{2 \langle i, j \rangle}{\langle i, i \rangle + \langle j, j \rangle}

    For masks of zeros and ones these are the Jaccard and the Dice index. The paper's sum holds the T pairs
    i = j, which are always 1; with one token there is no other pair, and Dice is 0.

    Args:
        masks: (N, T, h, w), each value in (0, 1).
        kind: ``'jaccard'`` or ``'dice'``.
    """
    check_choice('dissimilarity', kind, get_args(Similarity))
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
