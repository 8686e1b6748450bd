"""Distance between the Haar bands of two feature maps, a few planes at a time in the cache.

A loss over all wavelet bands touches every value many times: subtract, transform, take absolute values, weigh,
sum, and all of it backwards. Done on whole tensors each of these steps walks through memory and pays for fresh
pages; that, not arithmetic, is the cost. Here all steps of one wavelet level run on a block of planes in buffers
that are reused, so memory is read once (both inputs) and written once (the gradient, and the low band for the
next level, a quarter). Nothing is kept for the backward but the inputs, these low bands and one scale a band.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from freekd_mm.frequency import WaveletBands
from freekd_mm.losses.freekd_haar_step import Block, HaarStep, blocks_of


def _walk(maps: Sequence[Tensor], standardise: bool) -> Iterator[tuple[Block, HaarStep]]:
    """Yields the blocks of one level's input maps (N, C, H, W), each with the step that holds its bands.

    Two maps are student and teacher: side by side to be standardised, or else their difference.
    """
    like = maps[0].new_empty(0, dtype=torch.promote_types(maps[0].dtype, torch.float32))
    sides = len(maps) if standardise else 1
    steps: dict[torch.Size, HaarStep] = {}
    for block in blocks_of(maps[0].shape, maps[0].device):
        parts = [x[block] for x in maps]
        planes = parts[0].shape[:2]
        if planes not in steps:
            steps[planes] = HaarStep(sides, planes, maps[0].shape[2:], like)
        steps[planes].analyse(parts, difference=sides < len(parts))
        yield block, steps[planes]


def _band_size(x: Tensor) -> tuple[int, int]:
    """Returns (h, w) of the bands of x (N, C, H, W)."""
    return (x.shape[2] + 1) // 2, (x.shape[3] + 1) // 2


def _images(weight: Tensor, block: Block) -> Tensor:
    """Returns the weights of a block's images; one weight may serve all."""
    return weight[block[0]] if len(weight) > 1 else weight


class _HaarDistance(torch.autograd.Function):
    """Weighted distance of each plane (N, C), and the low band's share of it, without gradient."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, standardise: bool, square: bool, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        maps: Sequence[Tensor] = (student, teacher)
        total = student.new_zeros(student.shape[:2], dtype=torch.promote_types(student.dtype, torch.float32))
        low = torch.zeros_like(total)
        kept: list[Tensor] = []
        for level, weight in enumerate(weights):
            last = level == len(weights) - 1
            lows = total.new_empty(0 if last else 1 + standardise, *total.shape, *_band_size(maps[0]))
            scales = total.new_empty(2 * standardise, *total.shape, 2, 1, weight.shape[-1])
            column, lowest = weight.flatten(1).unsqueeze(2), weight[:, None, 0, :, 0::2]
            for block, step in _walk(maps, standardise):
                differences = step.bands[0]
                if not last:
                    lows[:, block[0], block[1]] = step.low
                elif standardise:
                    step.center_low()
                if standardise:
                    scale = scales[:, block[0], block[1]]
                    step.measure(scale, last)
                    differences = step.normalise(scale)
                differences = differences.square_() if square else differences.abs_()
                total[block] += torch.matmul(differences.flatten(2), _images(column, block)).squeeze(2)
                if last:
                    low[block] = (differences[:, :, 0, :, 0::2] * _images(lowest, block)).sum((2, 3))
            kept += [weight, lows, scales]
            maps = lows.unbind()
        ctx.save_for_backward(student, teacher, *kept)
        ctx.options = standardise, square
        ctx.mark_non_differentiable(low)
        return total, low

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, *kept = ctx.saved_tensors
        standardise, square = ctx.options
        weights, all_lows, all_scales = kept[0::3], kept[1::3], kept[2::3]
        inputs = [(student, teacher), *(lows.unbind() for lows in all_lows[:-1])]
        low_gradient = gradient  # of the coarsest level: none, not read
        for level in reversed(range(len(weights))):
            last, weight, scales = level == len(weights) - 1, weights[level].unsqueeze(1), all_scales[level]
            out = torch.empty_like(inputs[level][0])
            for block, step in _walk(inputs[level], standardise):
                differences = step.bands[0]
                scale = scales[:, block[0], block[1]]
                if standardise:
                    if last:
                        step.center_low()
                    differences = step.normalise(scale)
                differences = differences.mul_(2) if square else differences.sign_()
                differences.mul_(_images(weight, block))
                if standardise:
                    step.through_normalisation(differences, scale[0])
                    if last:
                        step.center_low()
                if not last:
                    step.low[0] = low_gradient[block]
                step.synthesise(out[block], gradient[block][:, :, None, None, None] if level == 0 else 1.0)
            low_gradient = out
        return low_gradient, None, None, None, *[None] * len(weights)


def _interleave(weights: WaveletBands) -> list[Tensor]:
    """Returns the weights of the bands (N or 1, 1, h, w) in the layout of the pyramid: (N or 1, 2, h, 2w) a level."""
    last = len(weights.high) - 1
    interleaved = []
    for level, (horizontal, vertical, diagonal) in enumerate(weights.high):
        low = weights.low if level == last else torch.zeros_like(vertical)
        above = torch.stack((low, vertical), -1).flatten(-2)
        below = torch.stack((horizontal, diagonal), -1).flatten(-2)
        interleaved.append(torch.cat((above, below), 1))
    return interleaved


def haar_distance(
    student: Tensor, teacher: Tensor, weights: WaveletBands, standardise: bool = False, square: bool = False
) -> tuple[Tensor, Tensor]:
    r"""Sum over all Haar bands and positions of weight times distance, for every image and channel.

    .. math::
        D_{n,c} = \sum_k \sum_p w_{k,n,p} \, |b_{k,n,c,p} - a_{k,n,c,p}|

    Args:
        student: (N, C, H, W), gets the gradient.
        teacher: (N, C, H, W).
        weights: Weight of every band (N or 1, 1, h, w), 'low' included; they get no gradient.
        standardise: Divide each band by its own deviation, per image and channel.
        square: Squared instead of absolute differences.

    Returns:
        D (N, C) and, without gradient, the low band's part of it.
    """
    return _HaarDistance.apply(student, teacher, standardise, square, *_interleave(weights))


@torch.no_grad()
def haar_mean_squares(x: Tensor, levels: int) -> list[Tensor]:
    """Returns the mean square of each band over all channels, (N, 2, 2) a level, laid out as the bands.

    The low band's is about the mean of its plane.
    """
    found = []
    for level in range(levels):
        last = level == levels - 1
        total = x.new_zeros(x.shape[0], 2, 2, dtype=torch.promote_types(x.dtype, torch.float32))
        low = total.new_empty(*x.shape[:2], *_band_size(x)) if not last else x
        for block, step in _walk([x], standardise=False):
            if last:
                step.center_low()
            else:
                low[block] = step.low[0]
            total[block[0]] += step.square_sums()[0].sum(1) / (step.positions * max(x.shape[1], 1))
        found.append(total)
        x = low
    return found
