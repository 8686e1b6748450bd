"""The two distances between wavelet bands that all losses here use, with their gradients.

*Correlation.* With the sums of products of student b and teacher a of one channel in one band, bb, ab and aa, over all
images and positions, the squared difference of standardised bands is a closed form,

    mean (b / sb - a / sa)^2 = 1 + 1 - 2 r,    r = ab / sqrt(aa bb),

and its gradient in the band is own * b - other * a with one pair of factors per channel and band. With weights w of
the positions the sums are weighted. Several processes only have to add up these sums.

*Absolute difference.* The weighted sum of |b - a| of each image and channel, with the gradient w * sign(b - a).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Callable, NamedTuple, Tuple

import torch
import torch.distributed as dist
from mmengine.dist import get_world_size
from torch import Tensor
from torch.autograd.function import once_differentiable

from freekd_mm.compat.versions import torch_at_least, uncompiled, zip_equal
from freekd_mm.losses.bands import blocks, walk

# A band whose mean square in the teacher is below this is constant, and has no information.
TINY = 1e-12
# A deviation is at least this share of the teacher's: bounds the gradient of a nearly constant band of the student.
FLOOR = 1e-2
# A variance is at least this, so that a band of zeros divides nothing by 0.
LEAST = 1e-30

#: Gives values (..., 4) and both factors, for means of products (..., 4, 3) and weights (..., 4).
Judge = Callable[[Tensor, Tensor], Tuple[Tensor, Tensor, Tensor]]


def band_sizes(features: Tensor, depth: int) -> list[tuple[int, int]]:
    """Returns (h, w) of the bands of features (N, C, H, W), finest level first."""
    sizes = [(features.shape[2], features.shape[3])]
    for _ in range(depth):
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes[1:]


class Level(NamedTuple):
    """One feature level.

    Attributes:
        teacher: a (N, C, H, W).
        depth: Wavelet levels.
        weights: Weight of each band (depth, 4): low, vertical, horizontal, diagonal; 0 for a band that does not count.
        masks: Weights of the positions, (N, 4, h, w) per wavelet level; None for 1.
    """

    teacher: Tensor
    depth: int
    weights: list[list[float]]
    masks: list[Tensor] | None = None


def standardised(means: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Returns the squared difference of standardised bands, and the factors of b and -a in its gradient.

    .. math::
        D = \langle (b / s_b - a / s_a)^2 \rangle, \quad s_b^2 = \langle b^2 \rangle + \epsilon^2 \langle a^2 \rangle

    Both deviations include :math:`\epsilon` = 1e-2 times the teacher's. A band that is constant in the teacher gives 0.

    Args:
        means: Means of bb, ab, aa (..., 3).
        weights: Weight of each band (...).
    """
    # Student's and teacher's squares go through each step together: on a GPU a step costs a launch.
    squares, cross, reference = means[..., 0::2], means[..., 1], means[..., 2]
    weights = weights.masked_fill(reference <= TINY, 0.0)
    variances = torch.add(squares, reference.unsqueeze(-1), alpha=FLOOR**2).clamp_(min=LEAST)
    shares, inverse = squares / variances, variances.rsqrt().prod(-1)
    relation = inverse * cross
    values = weights * torch.sub(shares.sum(-1), relation, alpha=2)
    weights = 2 * weights
    # 1 - share is the teacher's part of the variance.
    own = torch.addcdiv(relation, reference, variances[..., 0], value=FLOOR**2)
    return values, weights * own / variances[..., 0], weights * inverse


class _Correlation(torch.autograd.Function):
    """The value of each level (levels,), from the statistics of all images of all processes."""

    @staticmethod
    def forward(
        ctx: Any, levels: Sequence[Level], judge: Judge, most: int, scale: float | None, *students: Tensor
    ) -> Tensor:
        world, (weights, positions) = get_world_size(), _table(students, levels, most)
        ctx.gradients, way = [None] * len(levels), _way(students, levels, most)
        if scale is not None and world == 1 and students[0].device.type == 'cpu' and way[0] is sums_of:
            # A block has all values of its channels: its gradient is made while it is in the cache.
            ctx.gradients, ctx.scale = [_room(*pair) for pair in zip_equal(students, levels)], scale

            def factors(level: int, sums: Tensor) -> tuple[Tensor, Tensor]:
                w, n = (table[level, : sums.shape[1]] for table in (weights, positions))
                own, other = judge(sums / n.unsqueeze(1), scale * w)[1:]
                return own / n, other / n

            sums = sums_of(students, levels, most, factors, ctx.gradients)
        else:
            sums = way[0](students, levels, most)
        if world > 1:
            sums, positions = _reduce(sums, positions)
        positions = positions.unsqueeze(1)
        values, own, other = judge(sums / positions.unsqueeze(4), weights.unsqueeze(1))
        ctx.save_for_backward(*students)
        # Means over all processes: DDP divides the gradients by their number.
        ctx.levels, ctx.way, ctx.factors, ctx.world = levels, way, torch.stack((own, other)) / positions, world
        return values.sum((1, 2, 3))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, [None] * len(ctx.levels)
        if gradients[0] is None:
            # Without one, or for a second time through a retained graph.
            factors = ctx.factors * (factor * ctx.world if ctx.world > 1 else factor).view(-1, 1, 1, 1)
            gradients = ctx.way[1](ctx.saved_tensors, ctx.levels, factors)
        else:
            for gradient, given in zip_equal(gradients, factor.tolist()):
                if given != ctx.scale:
                    gradient.mul_(given / ctx.scale)
        found = (gradient.to(student.dtype) for gradient, student in zip_equal(gradients, ctx.saved_tensors))
        return None, None, None, None, *found


def _way(students: Sequence[Tensor], levels: Sequence[Level], most: int) -> tuple[Callable[..., Any], ...]:
    """Returns what makes sums and gradients: Triton's kernels where they can be used."""
    wanted = students[0].is_cuda and torch_at_least(2, 4) and os.environ.get('FREEKD_MM_TRITON') != '0'
    if wanted and find_spec('triton'):
        from freekd_mm.losses.bands import kernels

        if kernels.serve(students, levels, most, (sums_of, gradients_of)):
            return kernels.sums_of, kernels.gradients_of
    return sums_of, gradients_of


def _room(student: Tensor, level: Level) -> Tensor:
    """Returns a tensor for a gradient, in at least float32: it is not scaled yet. 0 if nothing is compared."""
    make = torch.empty_like if level.depth else torch.zeros_like
    dtype = torch.promote_types(student.dtype, torch.float32)
    return make(student, dtype=dtype, memory_format=torch.contiguous_format)


def _table(students: Sequence[Tensor], levels: Sequence[Level], most: int) -> tuple[Tensor, Tensor]:
    """Returns the weights (levels, most, 4) and the positions (levels, most, 1), sent to the device at once."""
    least, rows = float(get_world_size() == 1), []
    for level in levels:
        sizes = [len(level.teacher) * height * width for height, width in band_sizes(level.teacher, level.depth)]
        rows += [[*weights, max(least, n)] for weights, n in zip_equal(level.weights, sizes)]
        rows += [[0.0, 0.0, 0.0, 0.0, least]] * (most - level.depth)
    like = students[0].new_empty(0, dtype=torch.promote_types(students[0].dtype, torch.float32))
    table = blocks.to_device(rows, like).view(len(levels), most, 5)
    return table[..., :4], table[..., 4:]


def sums_of(
    students: Sequence[Tensor],
    levels: Sequence[Level],
    most: int,
    factors: Callable[[int, Tensor], tuple[Tensor, Tensor]] | None = None,
    gradients: Sequence[Tensor] | None = None,
) -> Tensor:
    """Returns the sums of bb, ab and aa, (levels, C, most, 4, 3) with the most channels, 0 for what is not there.

    On a CPU it fills gradients as well, if there are factors for the sums (k, depth, 4, 3) of some channels.
    """
    dtype = torch.promote_types(students[0].dtype, torch.float32)
    out = students[0].new_zeros(len(levels), max(x.shape[1] for x in students), most, 4, 3, dtype=dtype)
    for index, (student, (teacher, depth, _, masks)) in enumerate(zip_equal(students, levels)):
        if not depth:
            continue
        if student.device.type == 'cpu':
            part = (lambda _, sums, i=index: factors(i, sums)) if factors is not None else None
            found = walk.correlate(student, teacher, depth, masks, part, gradients[index] if gradients else None)
        else:
            found = blocks.correlate(student, teacher, depth, masks)
        out[index, : len(found), :depth] = found
    return out


def gradients_of(students: Sequence[Tensor], levels: Sequence[Level], factors: Tensor) -> list[Tensor]:
    """Returns the gradients with own * b - other * a in the bands, factors (2, levels, C, most, 4)."""
    found = []
    for student, level, factor in zip_equal(students, levels, factors.unbind(1)):
        factor = factor[:, : student.shape[1], : level.depth]
        if level.depth and student.device.type != 'cpu':
            found.append(blocks.gradient(student, level.teacher, level.depth, level.masks, factor))
            continue
        found.append(_room(student, level))
        if level.depth:
            part = lambda channels, _, given=factor: tuple(given[:, channels])  # noqa: E731
            walk.correlate(student, level.teacher, level.depth, level.masks, part, found[-1])
    return found


def _reduce(*parts: Tensor) -> list[Tensor]:
    """Adds up sums and positions over all processes, in one call; no positions are 1, for a division."""
    flat = torch.cat([part.flatten() for part in parts])
    dist.all_reduce(flat)
    sums, positions = (x.view(part.shape) for x, part in zip_equal(flat.split([p.numel() for p in parts]), parts))
    return [sums, positions.clamp(min=1)]


@uncompiled
def correlation(
    students: Sequence[Tensor], levels: Sequence[Level], most: int, judge: Judge = standardised, scale: float = 1.0
) -> Tensor:
    """Returns the value of each level (levels,), summed over channels and bands, from the images of all processes.

    Args:
        students: b of each level (N, C, H, W).
        levels: What they are compared with.
        most: The most wavelet levels that any process may have.
        judge: What is computed from the means of products, see :func:`standardised`.
        scale: What the value will probably be multiplied by; it saves a pass over the gradients if it is.
    """
    needed = torch.is_grad_enabled() and any(student.requires_grad for student in students)
    return _Correlation.apply(levels, judge, most, scale if needed and scale else None, *students)


class _Absolute(torch.autograd.Function):
    """The weighted sum of absolute differences of each plane, (N, C) per level."""

    @staticmethod
    def forward(ctx: Any, levels: Sequence[Level], needed: bool, *students: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*students)
        ctx.levels = levels
        ctx.gradients = [_room(*pair) if needed else None for pair in zip_equal(students, levels)]
        ctx.weights = _position_weights(students, levels)
        return tuple(map(_planes, students, levels, ctx.weights, ctx.gradients))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *factors: Tensor) -> tuple[Tensor | None, ...]:
        found = []
        for index, (student, level, factor) in enumerate(zip_equal(ctx.saved_tensors, ctx.levels, factors)):
            gradient, ctx.gradients[index] = ctx.gradients[index], None
            if gradient is None:
                gradient = _room(student, level)
                _planes(student, level, ctx.weights[index], gradient)
            found.append(gradient.mul_(factor[:, :, None, None]).to(student.dtype))
        return None, None, *found


def _planes(student: Tensor, level: Level, weights: list[Tensor], gradient: Tensor | None) -> Tensor:
    if not level.depth:
        return student.new_zeros(student.shape[:2], dtype=torch.promote_types(student.dtype, torch.float32))
    form = walk if student.device.type == 'cpu' else blocks
    return form.absolute(student, level.teacher, level.depth, weights, gradient)


def _position_weights(students: Sequence[Tensor], levels: Sequence[Level]) -> list[list[Tensor]]:
    """Returns the weights of the bands and of their positions of each level, (N or 1, 4, h, w) per wavelet level."""
    found, (table, _) = [], _table(students, levels, max(level.depth for level in levels))
    for level, rows in zip_equal(levels, table.unbind()):
        weights = [row.view(1, 4, 1, 1) for row in rows[: level.depth].unbind()]
        sizes = band_sizes(level.teacher, level.depth)
        masks = level.masks or [weight.new_ones(()).expand(1, 4, *size) for weight, size in zip_equal(weights, sizes)]
        found.append([weight * mask for weight, mask in zip_equal(weights, masks)])
    return found


@uncompiled
def absolute(students: Sequence[Tensor], levels: Sequence[Level]) -> tuple[Tensor, ...]:
    """Returns the sum over bands and positions of weight times absolute difference, (N, C) per level.

    Args:
        students: b of each level (N, C, H, W).
        levels: What they are compared with.
    """
    needed = torch.is_grad_enabled() and any(student.requires_grad for student in students)
    return _Absolute.apply(levels, needed, *students)
