"""Distance between the Haar bands of two feature maps, a few planes at a time in the cache.

A loss over all wavelet bands touches every value many times: subtract, transform, take absolute values, weigh,
sum, and all of it backwards. Done on whole tensors each of these steps walks through memory and pays for fresh
pages; that, not arithmetic, is the cost. Here all steps of all wavelet levels run on a block of planes in buffers
that are reused, and each block's gradient is made while its bands are still there. So memory is read once (both
inputs) and written once (the gradient); the backward scales the gradient in place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from freekd_mm.frequency import WaveletBands
from freekd_mm.losses.freekd.haar_step import Block, HaarStep, blocks_of


def _walk(maps: Sequence[Tensor], levels: int, standardise: bool) -> Iterator[tuple[Block, list[HaarStep]]]:
    """Yields the blocks of maps (N, C, H, W) with one step a wavelet level; the first holds its bands.

    Two maps are student and teacher: side by side to be standardised, or else their difference.
    """
    like = maps[0].new_empty(0, dtype=torch.promote_types(maps[0].dtype, torch.float32))
    sides = len(maps) if standardise else 1
    buffers: dict[torch.Size, list[HaarStep]] = {}
    for block in blocks_of(maps[0].shape, maps[0].device):
        parts = [x[block] for x in maps]
        planes = parts[0].shape[:2]
        if planes not in buffers:
            sizes = [tuple(maps[0].shape[2:])]
            for _ in range(levels - 1):
                sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
            buffers[planes] = [HaarStep(sides, planes, size, like) for size in sizes]
        steps = buffers[planes]
        steps[0].analyse(parts, difference=sides < len(parts))
        yield block, steps


def _descend(steps: Sequence[HaarStep], center: bool) -> Iterator[tuple[int, bool, HaarStep]]:
    """Yields (level, whether it is the last, step) from the finest on, when the deeper step has its input."""
    for level, step in enumerate(steps):
        last = level == len(steps) - 1
        if not last:
            steps[level + 1].analyse(step.low.unbind())
        elif center:
            step.center_low()
        yield level, last, step


def _images(weight: Tensor, block: Block) -> Tensor:
    """Returns the weights of a block's images; one weight may serve all."""
    return weight[block[0]] if len(weight) > 1 else weight


def _distances(
    student: Tensor,
    teacher: Tensor,
    weights: Sequence[Tensor],
    standardise: bool,
    square: bool,
    gradient: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Returns the distance of each plane (N, C) and the low band's part of it.

    Args:
        student: (N, C, H, W).
        teacher: (N, C, H, W).
        weights: One a wavelet level, see :func:`_interleave`.
        standardise: Divide each band by its own deviation.
        square: Squared instead of absolute differences.
        gradient: Takes the gradient of each plane's distance, (N, C, H, W); None where nobody asks for it.
    """
    total = student.new_zeros(student.shape[:2], dtype=torch.promote_types(student.dtype, torch.float32))
    low = torch.zeros_like(total)
    columns = [weight.flatten(1).unsqueeze(2) for weight in weights]
    lowest, planes = weights[-1][:, None, 0, :, 0::2], [weight.unsqueeze(1) for weight in weights]
    for block, steps in _walk((student, teacher), len(weights), standardise):
        for level, last, step in _descend(steps, center=standardise):
            scale = step.measure(last) if standardise else None
            differences = step.normalise(scale) if scale is not None else step.bands[0]
            sizes = torch.mul(differences, differences, out=step.spare) if square else step.absolute(differences)
            total[block] += torch.matmul(sizes.flatten(2), _images(columns[level], block)).squeeze(2)
            if last:
                low[block] = (sizes[:, :, 0, :, 0::2] * _images(lowest, block)).sum((2, 3))
            if gradient is not None:
                differences = differences.mul_(2) if square else differences.sign_()
                differences.mul_(_images(planes[level], block))
                if scale is not None:
                    step.through_normalisation(differences, scale[0])
                    if last:
                        step.center_low()
        if gradient is not None:
            for level in reversed(range(len(steps))):
                steps[level].synthesise(gradient[block] if level == 0 else steps[level - 1].low[0])
    return total, low


class _HaarDistance(torch.autograd.Function):
    """Weighted distance of each plane (N, C), and the low band's share of it, without gradient."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, options: tuple[bool, bool], needed: bool, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.gradient = _new_gradient(student) if needed else None
        total, low = _distances(student, teacher, weights, options[0], options[1], ctx.gradient)
        ctx.save_for_backward(student, teacher, *weights)
        ctx.options = options
        ctx.mark_non_differentiable(low)
        return total, low

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, *weights = ctx.saved_tensors
        standardise, square = ctx.options
        # It is handed out, so a second backward through a retained graph makes it anew.
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            gradient = _new_gradient(student)
            _distances(student, teacher, weights, standardise, square, gradient)
        gradient.mul_(factor[:, :, None, None])
        return gradient.to(student.dtype), None, None, None, *[None] * len(weights)


def _new_gradient(student: Tensor) -> Tensor:
    """Returns room for the gradient, in at least float32: it is not scaled yet."""
    return torch.empty_like(student, dtype=torch.promote_types(student.dtype, torch.float32))


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
    needed = torch.is_grad_enabled() and student.requires_grad
    return _HaarDistance.apply(student, teacher, (standardise, square), needed, *_interleave(weights))


@torch.no_grad()
def haar_mean_squares(x: Tensor, levels: int) -> list[Tensor]:
    """Returns the mean square of each band over all channels, (N, 2, 2) a level, laid out as the bands.

    The low band's is about the mean of its plane.
    """
    found = [x.new_zeros(x.shape[0], 2, 2, dtype=torch.promote_types(x.dtype, torch.float32)) for _ in range(levels)]
    for block, steps in _walk([x], levels, standardise=False):
        for level, _, step in _descend(steps, center=True):
            found[level][block[0]] += step.square_sums()[0].sum(1) / (step.positions * max(x.shape[1], 1))
    return found
