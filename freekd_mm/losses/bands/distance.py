"""The two distances between wavelet bands that all losses here use, with their gradients.

*Correlation.* With the sums of products of student b and teacher a of one channel in one band, bb, ab and aa, over all
images and positions, the squared difference of standardised bands is a closed form,

    mean (b / sb - a / sa)^2 = 1 + 1 - 2 r,    r = ab / sqrt(aa bb),

and its gradient in the band is own * b - other * a with one pair of factors per channel and band. With weights w of
the positions the sums are weighted. Several processes only have to add up these sums. Coefficients that reach over the
border do not count: beyond it are zeros, and an edge as strong as the mean of the features.

*Absolute difference.* The weighted sum of |b - a| of each image and channel, with the gradient w * sign(b - a).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Callable, NamedTuple

import torch
import torch.distributed as dist
from mmengine.dist import get_world_size
from torch import Tensor
from torch.autograd.function import once_differentiable

from freekd_mm.compat.versions import torch_at_least, zip_equal
from freekd_mm.frequency.haar import haar_form
from freekd_mm.frequency.inputs import band_sizes
from freekd_mm.tensors import constant, full_precision

# A band whose mean square in the teacher is below this is constant, and has no information.
TINY = 1e-12
# A deviation is at least this share of the teacher's: bounds the gradient of a nearly constant band of the student.
FLOOR = 1e-2
# A variance is at least this, so that a band of zeros divides nothing by 0.
LEAST = 1e-30


class Level(NamedTuple):
    """One feature level of the teacher, and what counts there."""

    teacher: Tensor  # a (N, C, H, W)
    low: float  # weight of the low band
    high: Sequence[float]  # weight of the high bands of each wavelet level; a feature level without any does not count
    masks: Sequence[Tensor] = ()  # weights of the positions, (N, 4, h, w) per wavelet level; none for 1

    @property
    def depth(self) -> int:
        """How many wavelet levels it has."""
        return len(self.high)


def standardised(means: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Returns the squared difference of standardised bands, and the factors of b and -a in its gradient.

    .. math::
        D = \langle (b / s_b - a / s_a)^2 \rangle, \quad s_b^2 = \langle b^2 \rangle + \epsilon^2 \langle a^2 \rangle

    Both deviations include :math:`\epsilon` = 1e-2 times the teacher's. A band that is constant in the teacher gives 0.
    The means are those of bb, ab and aa (..., 3), the weights those of the bands (...).
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


class Correlation(torch.autograd.Function):
    """The value of each level (levels,), summed over channels and bands, from the images of all processes.

    Args:
        levels: What the students are compared with.
        judge: Gives values and both factors for means of products and weights, see :func:`standardised`.
        most: The most wavelet levels that any process may have.
        scale: What the value will probably be multiplied by; it saves a pass over the gradients if it is.
        *students: b of each level (N, C, H, W).
    """

    @staticmethod
    def forward(
        ctx: Any, levels: Sequence[Level], judge: Callable[..., Any], most: int, scale: float, *students: Tensor
    ) -> Tensor:
        """Returns the values."""
        world, (weights, positions) = get_world_size(), _table(students, levels, most)
        ctx.gradients, ctx.scale, ctx.way = None, scale, _way(students, levels, most)
        plain = students[0].device.type == 'cpu' and ctx.way[0] is sums_of
        if plain and world == 1 and scale and any(ctx.needs_input_grad):
            # A part has all values of its channels: its gradient is made while it is in the cache.
            def factors(level: int, channels: slice, sums: Tensor) -> Tensor:
                w, n = (table[level, : sums.shape[1]] for table in (weights, positions))
                return torch.stack(judge(sums / n.unsqueeze(1), scale * w)[1:]) / n

            sums, ctx.gradients = _pass(students, levels, most, True, factors)
        else:
            sums = ctx.way[0](students, levels, most)
        if world > 1:
            flat = torch.cat((sums.flatten(), positions.flatten()))
            dist.all_reduce(flat)
            sums, positions = flat[: sums.numel()].view_as(sums), flat[sums.numel() :].view_as(positions).clamp(min=1)
        positions = positions.unsqueeze(1)
        values, own, other = judge(sums / positions.unsqueeze(4), weights.unsqueeze(1))
        ctx.save_for_backward(*students)
        # Means over all processes: DDP divides the gradients by their number.
        ctx.levels, ctx.factors, ctx.world = levels, torch.stack((own, other)) / positions, world
        return values.sum((1, 2, 3))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of the students."""
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            # Without them, or for a second time through a retained graph.
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


def _table(students: Sequence[Tensor], levels: Sequence[Level], most: int) -> tuple[Tensor, Tensor]:
    """Returns the weights (levels, most, 4) and the positions (levels, most, 1)."""
    least, rows = float(get_world_size() == 1), []
    for level in levels:
        lows = [0.0] * (level.depth - 1) + [level.low]
        for low, high, (height, width) in zip(lows, level.high, band_sizes(level.teacher.shape[2:], level.depth)):
            rows.append((low, high, high, high, max(least, len(level.teacher) * height * width)))
        rows += [(0.0, 0.0, 0.0, 0.0, least)] * (most - level.depth)
    table = constant(_numbers, full_precision(students[0].new_empty(0)), *rows).view(len(levels), most, 5)
    return table[..., :4], table[..., 4:]


def _numbers(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def sums_of(students: Sequence[Tensor], levels: Sequence[Level], most: int) -> Tensor:
    """Returns the sums of bb, ab and aa, (levels, C, most, 4, 3) with the most channels, 0 for what is not there."""
    return _pass(students, levels, most, True, None)[0]


def gradients_of(students: Sequence[Tensor], levels: Sequence[Level], factors: Tensor) -> list[Tensor]:
    """Returns the gradients with own * b - other * a in the bands, factors (2, levels, C, most, 4)."""
    part = lambda level, channels, _: factors[:, level, channels, : levels[level].depth]  # noqa: E731
    return _pass(students, levels, factors.shape[3], False, part)[1]


def _pass(
    students: Sequence[Tensor], levels: Sequence[Level], most: int, summed: bool, factors: Callable[..., Tensor] | None
) -> tuple[Tensor, list[Tensor]]:
    """Goes once over the bands of both maps: adds up their products if ``summed``, and combines them to gradients.

    ``factors`` gives the factors (2, k, depth, 4) of b and -a for a level, some channels, and their sums so far; None
    for no gradients.
    """
    like = full_precision(students[0].new_empty(0))
    sums = like.new_zeros(len(levels), max(x.shape[1] for x in students), most, 4, 3)
    gradients: list[Any] = [None] * len(levels)
    for index, (student, level) in enumerate(zip_equal(students, levels)):
        if not level.depth:
            continue
        form = haar_form(student.shape, level.depth, like)
        roots = form.positions([mask.sqrt() for mask in level.masks])
        for part in form.parts():
            own, other = (form.analyse(x[part], which) for which, x in enumerate((student, level.teacher)))
            form.crop(own)
            form.crop(other)
            weights = [root[part[0]] for root in roots]
            for band, weight in zip(own + other, weights * 2):
                band.mul_(weight)
            found = sums[index, part[1], : level.depth]
            if summed:
                found += form.products(own, other)
            if factors is not None:
                for b, a, both in zip_equal(own, other, form.spread(factors(index, part[1], found))):
                    b.mul_(both[0]).addcmul_(a, both[1], value=-1)
                    del b, a
                for band, weight in zip(own, weights):
                    band.mul_(weight)
                gradients[index] = form.synthesise(own, gradients[index], part)
            del own, other  # else they would be there beside those of the next part
    if factors is not None:
        given = zip_equal(gradients, students)
        gradients = [like.new_zeros(x.shape) if gradient is None else gradient for gradient, x in given]
    return sums, gradients


class Absolute(torch.autograd.Function):
    """The sum over bands and positions of weight times absolute difference, (N, C), of one feature level."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, level: Level) -> Tensor:
        """Returns the sums for b (N, C, H, W)."""
        ctx.save_for_backward(student)
        ctx.level = level
        total, ctx.gradient = _planes(student, level, ctx.needs_input_grad[0])
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradient of b."""
        (student,), gradient, ctx.gradient = ctx.saved_tensors, ctx.gradient, None
        if gradient is None:  # for a second time through a retained graph
            _, gradient = _planes(student, ctx.level, True)
        return gradient.mul_(factor[:, :, None, None]).to(student.dtype), None


def _planes(student: Tensor, level: Level, needed: bool) -> tuple[Tensor, Tensor | None]:
    """Returns the weighted sum of each plane (N, C), and its gradient (N, C, H, W) where needed."""
    like, gradient = full_precision(student.new_empty(0)), None
    total = like.new_zeros(student.shape[:2])
    if level.depth:
        form = haar_form(student.shape, level.depth, like)
        sizes, (table, _) = band_sizes(student.shape[2:], level.depth), _table([student], [level], level.depth)
        masks = level.masks or [table.new_ones(()).expand(1, 4, *size) for size in sizes]
        weights = form.positions([row.view(1, 4, 1, 1) * mask for row, mask in zip_equal(table[0], masks)])
        for part in form.parts():
            bands = form.analyse(student[part].to(like.dtype) - level.teacher[part])
            weighed = [weight[part[0]] for weight in weights]
            total[part] = form.weighted([band.abs() for band in bands], weighed)
            if needed:
                for band, weight in zip_equal(bands, weighed):
                    band.sign_().mul_(weight)
                gradient = form.synthesise(bands, gradient, part)
    return total, like.new_zeros(student.shape) if needed and gradient is None else gradient
