"""Compares the wavelet bands of student and teacher: every wavelet, every normalisation, one formula."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from mmengine.dist import get_world_size
from torch import Tensor

from freekd_mm.compat.versions import is_compiling, zip_equal
from freekd_mm.frequency import WaveletBands, WaveletDetail, dwt2d
from freekd_mm.frequency.wavelet import band_length, is_haar
from freekd_mm.losses.freekd.haar import haar_distance, haar_mean_squares
from freekd_mm.losses.freekd.haar_step import FLOOR, TINY
from freekd_mm.tensors import full_precision

Normalize = Literal['none', 'teacher', 'channel', 'band', 'batch', 'feature']
Distance = Literal['l1', 'l2']

#: Axes over which the deviation of a band (N, C, h, w) is taken.
AXES = {'teacher': (1, 2, 3), 'channel': (2, 3), 'band': (1, 2, 3), 'batch': (0, 2, 3)}
NORMALIZATIONS = ('none', *AXES, 'feature')


class _SumOverRanks(torch.autograd.Function):
    """Sum over all processes; the gradient is summed in the same way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient


def _mean(x: Tensor, axes: Sequence[int], every_rank: bool) -> Tensor:
    """Returns the mean over some axes, which stay with length 1, and for the batch over all processes."""
    total = x.sum(tuple(axes), keepdim=True)
    count = x.numel() / max(total.numel(), 1)
    if every_rank and get_world_size() > 1:
        total = _SumOverRanks.apply(total)
        counts = total.new_tensor(count)
        dist.all_reduce(counts)
        return total / counts.clamp(min=1)
    return total / max(count, 1)


def _spread(band: Tensor, normalize: str, low: bool) -> tuple[Tensor, Tensor]:
    """Returns a low band without its means, or a high band, which has none, as it is; and its mean square."""
    every_rank = normalize == 'batch'
    if low:
        band = band - _mean(band, AXES['batch' if every_rank else 'channel'], every_rank)
    return band, _mean(band.square(), AXES[normalize], every_rank)


def normalize_pair(student: Tensor, teacher: Tensor, normalize: Normalize, low: bool) -> tuple[Tensor, Tensor]:
    r"""Divides one band (N, C, h, w) of student and teacher by the deviation of each.

    To both variances 1e-4 times the teacher's is added, so that the gradient of a nearly constant band of the
    student stays bounded. Where the teacher's band is constant both become 0: there is nothing to learn.

    Args:
        student: The student's band.
        teacher: The teacher's band.
        normalize: ``'channel'``, ``'band'`` or ``'batch'``.
        low: It is the low band: its means are taken out too.
    """
    theirs, reference = _spread(teacher, normalize, low)
    ours, own_variance = _spread(student, normalize, low)
    constant = reference <= TINY

    def scale(variance: Tensor) -> Tensor:
        # Filled before the root: a masked infinity would still give a NaN gradient.
        return (variance + FLOOR**2 * reference).masked_fill(constant, 1.0).rsqrt().masked_fill(constant, 0.0)

    return ours * scale(own_variance), theirs * scale(reference)


def teacher_scale(band: Tensor, low: bool) -> Tensor:
    """Returns 1 / deviation of the teacher's band of each image, (N, 1, 1, 1); 0 where the band is constant."""
    _, variance = _spread(band, 'teacher', low)
    return variance.rsqrt().masked_fill(variance <= TINY, 0.0)


def band_sizes(size: tuple[int, int], levels: int, wavelet: str) -> list[tuple[int, int]]:
    """Returns (h, w) of the bands of each level, finest first."""
    sizes = []
    for _ in range(levels):
        size = (band_length(size[0], wavelet), band_length(size[1], wavelet))
        sizes.append(size)
    return sizes


def band_weights(
    like: Tensor,
    wavelet: str,
    low: float,
    high: Sequence[float],
    masks: WaveletBands | None = None,
) -> WaveletBands:
    """Returns the weight of every position of every band, (N or 1, 1, h, w) each.

    A band's factor is spread over its positions, so that a weighted sum over them is the factor times a mean.

    Args:
        like: The features (N, C, H, W).
        wavelet: The wavelet.
        low: Factor of the low band.
        high: Factor of each of the three high bands of each level, finest first.
        masks: Weights of the positions, (N, 1, h, w) a band; None for 1.
    """
    sizes = band_sizes((like.shape[2], like.shape[3]), len(high), wavelet)

    def spread(factor: float, size: tuple[int, int], mask: Tensor | None) -> Tensor:
        factor = factor / (size[0] * size[1])
        if mask is None:
            # A weight of one position is too small for half precision.
            return like.new_full((1, 1, *size), factor, dtype=torch.promote_types(like.dtype, torch.float32))
        if mask.shape[-2:] != size:
            raise ValueError(
                f'the masks should have the size {size} of their band, but got {tuple(mask.shape[-2:])}: '
                'the mask generator should use the wavelet and the levels of the loss'
            )
        return mask * factor

    details = []
    for level, (factor, size) in enumerate(zip_equal(high, sizes)):
        given = masks.high[level] if masks is not None else (None, None, None)
        weights = {id(mask): spread(factor, size, mask) for mask in given}
        details.append(WaveletDetail(*(weights[id(mask)] for mask in given)))
    lowest = spread(low, sizes[-1], masks.low if masks is not None else None)
    return WaveletBands(lowest, tuple(details), (like.shape[2], like.shape[3]), wavelet)


def _blockwise(wavelet: str) -> bool:
    # A compiler fuses whole tensors by itself, and could not look into the blocks.
    return is_haar(wavelet) and not is_compiling()


def in_units_of(teacher: Tensor, weights: WaveletBands, distance: Distance) -> WaveletBands:
    """Divides the weights of each image's bands by the teacher's deviation, or its square for squared distances.

    That is the same as dividing the bands of student and teacher, but leaves their difference one transform.
    """
    power = 1 if distance == 'l1' else 2
    if _blockwise(weights.wavelet):
        squares = haar_mean_squares(teacher, len(weights.high))
        found = [square.rsqrt().masked_fill_(square <= TINY, 0)[..., None, None, None] for square in squares]
        low = found[-1][:, 0, 0]
        high = [(scale[:, 1, 0], scale[:, 0, 1], scale[:, 1, 1]) for scale in found]
    else:
        bands = dwt2d(full_precision(teacher), len(weights.high), weights.wavelet)
        low = teacher_scale(bands.low, low=True)
        scales = [[teacher_scale(band, low=False) for band in detail] for detail in bands.high]
        high = [(horizontal, vertical, diagonal) for horizontal, vertical, diagonal in scales]
    details = tuple(
        WaveletDetail(*(weight * scale**power for weight, scale in zip_equal(detail, of_level)))
        for detail, of_level in zip_equal(weights.high, high)
    )
    return weights._replace(low=weights.low * low**power, high=details)


def band_distance(
    student: Tensor,
    teacher: Tensor,
    weights: WaveletBands,
    normalize: Normalize = 'none',
    distance: Distance = 'l1',
) -> tuple[Tensor, Tensor]:
    r"""Sum over all bands and positions of weight times distance, for every image and channel.

    .. math::
        D_{n,c} = \sum_k \sum_p w_{k,n,p} \, d(\hat b_{k,n,c,p} - \hat a_{k,n,c,p}), \quad
        d(x) = |x| \text{ or } x^2

    Args:
        student: (N, C, H, W).
        teacher: (N, C, H, W), without gradient.
        weights: See :func:`band_weights`; they get no gradient.
        normalize: See :class:`freekd_mm.losses.FreeKDLoss`.
        distance: ``'l1'`` or ``'l2'``.

    Returns:
        D (N, C) and, without gradient, the low band's part of it.
    """
    if normalize == 'feature':
        # The feature maps themselves, means taken out; the transform of the difference then is one.
        student, teacher = normalize_pair(full_precision(student), full_precision(teacher), 'batch', low=True)
        normalize = 'none'
    if normalize == 'teacher':
        weights, normalize = in_units_of(teacher, weights, distance), 'none'
    if _blockwise(weights.wavelet) and normalize in ('none', 'channel'):
        return haar_distance(student, teacher, weights, normalize == 'channel', distance == 'l2')
    return whole_band_distance(student, teacher, weights, normalize, distance)


def whole_band_distance(
    student: Tensor, teacher: Tensor, weights: WaveletBands, normalize: Normalize, distance: Distance
) -> tuple[Tensor, Tensor]:
    """Does what :func:`band_distance` says on whole tensors, without 'teacher' and 'feature'."""
    student, teacher = full_precision(student), full_precision(teacher)
    levels, wavelet = len(weights.high), weights.wavelet
    # The transform is linear: without normalisation one for the difference takes the place of two.
    ours = dwt2d(student - teacher if normalize == 'none' else student, levels, wavelet)
    theirs = None if normalize == 'none' else dwt2d(teacher, levels, wavelet)

    def part(own: Tensor, other: Tensor | None, weight: Tensor, low: bool = False) -> Tensor:
        if other is not None:
            own, other = normalize_pair(own, other, normalize, low)
            own = own - other
        return (weight * (own.abs() if distance == 'l1' else own.square())).sum((2, 3))

    low = part(ours.low, theirs.low if theirs is not None else None, weights.low, low=True)
    total = low
    for level, (detail, weight) in enumerate(zip_equal(ours.high, weights.high)):
        others = theirs.high[level] if theirs is not None else (None, None, None)
        for own, other, of_band in zip_equal(detail, others, weight):
            total = total + part(own, other, of_band)
    return total, low.detach()
