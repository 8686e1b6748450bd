"""The two distances between wavelet bands that all losses here use, with their gradients.

*Correlation.* With the sums of products of student b and teacher a of one channel in one band, bb, ab and aa, over all
images and positions, the squared difference of standardised bands is a closed form,

    mean (b / sb - a / sa)^2 = 1 + 1 - 2 r,    r = ab / sqrt(aa bb),

and its gradient in the band is own * b + other * a with one pair of factors per channel and band. With weights w of
the positions the sums are weighted. Several processes only have to add up these sums.

*Absolute difference.* The weighted sum of |b - a| of each image and channel, with the gradient w * sign(b - a).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable, NamedTuple, Tuple

import torch
import torch.distributed as dist
from mmengine.dist import get_world_size
from torch import Tensor
from torch.autograd.function import once_differentiable

from freekd_mm.compat.versions import uncompiled, zip_equal
from freekd_mm.losses.bands import blocks, walk

# A band whose mean square in the teacher is below this is constant, and has no information.
TINY = 1e-12
# A deviation is at least this share of the teacher's: bounds the gradient of a nearly constant band of the student.
FLOOR = 1e-2

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

    def positions(self) -> list[float]:
        """Returns the positions of a band of each wavelet level, over all images."""
        return [max(1.0, len(self.teacher) * height * width) for height, width in band_sizes(self.teacher, self.depth)]


def standardised(means: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Returns the squared difference of standardised bands, and the factors of b and a in its gradient.

    .. math::
        D = \langle (b / s_b - a / s_a)^2 \rangle, \quad s_b^2 = \langle b^2 \rangle + \epsilon^2 \langle a^2 \rangle

    Both deviations include :math:`\epsilon` = 1e-2 times the teacher's. A band that is constant in the teacher gives 0.

    Args:
        means: Means of bb, ab, aa (..., 3).
        weights: Weight of each band (...).
    """
    own, cross, reference = means.unbind(-1)
    floor = FLOOR**2 * reference
    constant = reference <= TINY
    inverse = (own + floor).masked_fill_(constant, torch.inf).rsqrt_()
    other = (reference + floor).masked_fill_(constant, torch.inf).rsqrt_()
    both, squared = inverse * other, inverse.square()
    relation, share = both * cross, squared * own
    values = weights * (share - 2 * relation + other.square() * reference)
    weights = 2 * weights
    return values, weights * squared * (1 - share + relation), -weights * both


class _Correlation(torch.autograd.Function):
    """The value of each level (levels,), from the statistics of all images of all processes."""

    @staticmethod
    def forward(ctx: Any, levels: Sequence[Level], judge: Judge, most: int, needed: bool, *students: Tensor) -> Tensor:
        world = get_world_size()
        roots = [[mask.sqrt() for mask in level.masks] if level.masks is not None else None for level in levels]
        tables, sums = _tables(levels, students[0]), []
        ctx.gradients = [None] * len(levels)
        for index, (student, level, root, (weights, positions)) in enumerate(
            zip_equal(students, levels, roots, tables)
        ):
            if student.device.type != 'cpu':
                sums.append(blocks.correlate(student, level.teacher, level.depth, root))
                continue
            of_block = None
            if needed and world == 1:
                # A block has all values of its channels: its gradient is made while it is in the cache.
                ctx.gradients[index] = _room(student, level)
                of_block = _factors_of(judge, weights, positions)
            sums.append(walk.correlate(student, level.teacher, level.depth, root, of_block, ctx.gradients[index]))
        if world > 1:
            sums, positions = _reduce(sums, [table[1] for table in tables], most)
            tables = [(weights, count) for (weights, _), count in zip_equal(tables, positions)]
        values, factors = _judge_all(judge, sums, tables)
        ctx.save_for_backward(*students)
        # Means over all processes: DDP divides the gradients by their number.
        ctx.levels, ctx.roots, ctx.factors, ctx.world = levels, roots, factors, world
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        lengths = [s.shape[1] * level.depth for s, level in zip_equal(ctx.saved_tensors, ctx.levels)]
        scale = torch.cat([part.expand(length) for part, length in zip_equal(factor.unbind(), lengths)])
        factors, found = (ctx.factors * (scale * ctx.world).unsqueeze(1)).split(lengths, 1), []
        for index, (student, level, root) in enumerate(zip_equal(ctx.saved_tensors, ctx.levels, ctx.roots)):
            # It is given away, so a second backward through a retained graph makes it again.
            gradient, ctx.gradients[index] = ctx.gradients[index], None
            if gradient is not None:
                gradient.mul_(factor[index])
            else:
                gradient = _gradient(student, level, root, factors[index].unflatten(1, (-1, max(level.depth, 1))))
            found.append(gradient.to(student.dtype))
        return None, None, None, None, *found


def _room(student: Tensor, level: Level) -> Tensor:
    """Returns a tensor for a gradient, in at least float32: it is not scaled yet. 0 if nothing is compared."""
    make = torch.empty_like if level.depth else torch.zeros_like
    dtype = torch.promote_types(student.dtype, torch.float32)
    return make(student, dtype=dtype, memory_format=torch.contiguous_format)


def _gradient(student: Tensor, level: Level, roots: list[Tensor] | None, factors: Tensor) -> Tensor:
    gradient = _room(student, level)
    if student.device.type != 'cpu':
        blocks.gradient(student, level.teacher, level.depth, roots, factors, gradient)
        return gradient
    walk.correlate(
        student, level.teacher, level.depth, roots, lambda channels, _: tuple(factors[:, channels]), gradient
    )
    return gradient


def _tables(levels: Sequence[Level], like: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Returns the weights (depth, 4) and the positions (depth, 1) of each level, sent to the device at once."""
    rows = [[*w, n] for level in levels for w, n in zip_equal(level.weights, level.positions())]
    table = blocks.to_device(rows, like.new_empty(0, dtype=torch.promote_types(like.dtype, torch.float32))).view(-1, 5)
    return [(part[:, :4], part[:, 4:]) for part in table.split([level.depth for level in levels])]


def _factors_of(judge: Judge, weights: Tensor, positions: Tensor) -> walk.Factors:
    def factors(channels: slice, sums: Tensor) -> tuple[Tensor, Tensor]:
        own, other = judge(sums / positions.unsqueeze(1), weights)[1:]
        return own / positions, other / positions

    return factors


def _judge_all(judge: Judge, sums: Sequence[Tensor], tables: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Returns the value of each level (levels,), and the factors of b and a of all levels in the gradient."""

    def flat(parts: Sequence[Tensor]) -> Tensor:
        """All levels in one: (entries, 4)."""
        return torch.cat([part.expand(len(of), *part.shape).flatten(0, 1) for part, of in zip_equal(parts, sums)])

    weights, positions = (flat(parts) for parts in zip(*tables))
    means = torch.cat([of.flatten(0, 1) for of in sums]) / positions.unsqueeze(1)
    values, own, other = judge(means, weights)
    lengths = [of.shape[0] * of.shape[1] for of in sums]
    total = torch.stack([part.sum() for part in values.split(lengths)])
    return total, torch.stack((own, other)) / positions


def _reduce(sums: Sequence[Tensor], positions: Sequence[Tensor], most: int) -> tuple[list[Tensor], list[Tensor]]:
    """Adds up over all processes, in one call; with images of other sizes they may have fewer levels."""
    parts = [*sums, *(count.expand(1, -1, -1) for count in positions)]
    padded = [part.new_zeros(part.shape[0], most, *part.shape[2:]) for part in parts]
    for part, into in zip_equal(parts, padded):
        into[:, : part.shape[1]] = part
    flat = torch.cat([part.flatten() for part in padded])
    dist.all_reduce(flat)
    whole = [
        f.view(p.shape)[:, : part.shape[1]]
        for f, p, part in zip(flat.split([p.numel() for p in padded]), padded, parts)
    ]
    return whole[: len(sums)], [count[0] for count in whole[len(sums) :]]


@uncompiled
def correlation(students: Sequence[Tensor], levels: Sequence[Level], most: int, judge: Judge = standardised) -> Tensor:
    """Returns the value of each level (levels,), summed over channels and bands, from the images of all processes.

    Args:
        students: b of each level (N, C, H, W).
        levels: What they are compared with.
        most: The most wavelet levels that any process may have.
        judge: What is computed from the means of products, see :func:`standardised`.
    """
    needed = torch.is_grad_enabled() and any(student.requires_grad for student in students)
    return _Correlation.apply(levels, judge, most, needed, *students)


class _Absolute(torch.autograd.Function):
    """The weighted sum of absolute differences of each plane, (N, C) per level."""

    @staticmethod
    def forward(ctx: Any, levels: Sequence[Level], needed: bool, *students: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*students)
        ctx.levels = levels
        ctx.gradients = [_room(*pair) if needed else None for pair in zip_equal(students, levels)]
        ctx.weights = position_weights(levels, students[0])
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


def position_weights(levels: Sequence[Level], like: Tensor) -> list[list[Tensor]]:
    """Returns the weights of the bands and of their positions of each level, (N or 1, 4, h, w) a wavelet level."""
    found = []
    for level, (table, _) in zip_equal(levels, _tables(levels, like)):
        weights = [row.view(1, 4, 1, 1) for row in table.unbind()]
        if level.masks is not None:
            found.append([weight * mask for weight, mask in zip_equal(weights, level.masks)])
        else:
            sizes = band_sizes(level.teacher, level.depth)
            found.append([weight.expand(1, 4, *size) for weight, size in zip_equal(weights, sizes)])
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
