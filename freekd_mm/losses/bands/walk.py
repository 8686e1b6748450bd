"""Sums and gradients of Haar bands on a CPU: a few channels of all images at a time, in buffers that are reused.

On a CPU the access to memory costs most. So all wavelet levels of a block of channels are made, summed, scaled and
transformed back while they are in the cache; the maps are read once and the gradient is written once.

The step along the width needs pairs of neighbours, which PyTorch's loops do not vectorise: it is done as a product of
complex numbers, (a + ib)(1 - i)/2 = (a + b)/2 + i(b - a)/2. That takes 0.07 ns per value; strided adds take 0.4 and
products with a Haar matrix 1.1 to 1.4 (docs/speed.md). It leaves low and vertical band, and horizontal and diagonal
band, side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Callable, Tuple

import torch
from torch import Tensor

from freekd_mm.compat.versions import zip_equal

# Values of one map in a block, 2 MiB of float32: smaller blocks cost more calls than their cache saves.
BLOCK = 2**19
#: Gives the factors of the student's and of the teacher's bands, (k, depth, 4) each, for the sums (k, depth, 4, 3).
Factors = Callable[[slice, Tensor], Tuple[Tensor, Tensor]]


def _as_pairs(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.unflatten(-1, (x.shape[-1] // 2, 2)))


def _row_pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 0::2, :], x[..., 1::2, :]


class _Step:
    """One wavelet level of some planes of one or two maps.

    Attributes:
        bands: (maps, N, k, 2, h, 2w): low and vertical band side by side, then horizontal and diagonal.
        low: The low band (maps, N, k, h, w).
    """

    def __init__(self, maps: int, planes: Sequence[int], size: Sequence[int], like: Tensor, direct: bool) -> None:
        height, width = ((length + 1) // 2 for length in size)
        self.bands = like.new_empty(maps, *planes, 2, height, 2 * width)
        self.spare = torch.empty_like(self.bands[0])
        self.pairs, self.spare_pairs = _as_pairs(self.bands), _as_pairs(self.spare)
        self.above, self.below = self.bands.unbind(3)
        self.low = self.above[..., 0::2]
        #: Whether the maps are read and written where they are, without an even, contiguous copy.
        self.direct = direct and not (size[0] % 2 or size[1] % 2)
        if not self.direct:
            padded = like.new_zeros(maps, *planes, 2 * height, 2 * width)
            self.inside = padded[..., : size[0], : size[1]]
            self.margins = [x for x in (padded[..., size[0] :, :], padded[..., size[1] :]) if x.numel()]
            self.rows = _row_pairs(padded)
        # Views are made once: a block is some 60 short calls.
        self.first = self.bands[0], self.pairs[0], self.above[0], self.below[0]
        self.row = self.pairs.new_empty(2, *self.pairs.shape[2:4], 1, self.pairs.shape[5])
        self.factors = torch.view_as_real(self.row).flatten(-2)

    def analyse(self, maps: Sequence[Tensor] | Tensor, difference: bool = False) -> None:
        """Fills ``bands`` from maps (N, k, H, W), or with those of the difference of two."""
        if self.direct and not difference:
            for x, above, below in zip_equal(maps, self.above, self.below):
                even, odd = _row_pairs(x)
                torch.add(even, odd, out=above)
                torch.sub(even, odd, out=below)
        else:
            for margin in self.margins:
                margin.zero_()
            if difference and maps[0].dtype == maps[1].dtype == self.bands.dtype:
                torch.sub(maps[0], maps[1], out=self.inside[0])
            elif difference:
                self.inside[0].copy_(maps[0]).sub_(maps[1])
            else:
                for inside, x in zip_equal(self.inside, maps):
                    inside.copy_(x)
            torch.add(*self.rows, out=self.above)
            torch.sub(*self.rows, out=self.below)
        self.pairs.mul_(0.5 - 0.5j)

    def synthesise(self, out: Tensor) -> None:
        """Writes the adjoint of :meth:`analyse`, applied to the first map's bands, to ``out`` (N, k, H, W)."""
        _, pairs, above, below = self.first
        pairs.mul_(0.5 + 0.5j)
        even, odd = _row_pairs(out) if self.direct else (self.rows[0][0], self.rows[1][0])
        torch.add(above, below, out=even)
        torch.sub(above, below, out=odd)
        if not self.direct:
            out.copy_(self.inside[0])

    def scale(self, weights: Tensor) -> None:
        """Multiplies the bands of all maps by weights of their positions (N, 2, h, 2w)."""
        self.bands.mul_(weights.unsqueeze(1))

    def inner(self, first: int, second: int) -> Tensor:
        """Returns the sum over images and positions of the product of two maps' bands, (k, 4)."""
        torch.mul(self.bands[first], self.bands[second], out=self.spare)
        return torch.view_as_real(self.spare_pairs.sum((0, 3, 4))).flatten(1)

    def mix(self, own: Tensor, other: Tensor) -> None:
        """Overwrites the first map's bands by own * first + other * second, factors (k, 4) each."""
        for row, factor in zip_equal(self.row, (own, other)):
            row.copy_(torch.view_as_complex(factor.reshape(-1, 2, 1, 1, 2).contiguous()))
        first, second = self.bands
        first.mul_(self.factors[0]).addcmul_(second, self.factors[1])


def interleave(weights: Tensor) -> Tensor:
    """Returns weights of the four bands (N, 4, h, w) in the layout of a step, (N, 2, h, 2w)."""
    batch, _, height, width = weights.shape
    return weights.view(batch, 2, 2, height, width).permute(0, 1, 3, 4, 2).reshape(batch, 2, height, 2 * width)


def _blocks(
    maps: Sequence[Tensor], depth: int, difference: bool, directly: bool
) -> Iterator[tuple[slice, list[_Step], list[Tensor]]]:
    """Yields a slice of the channels, the steps of all levels (their buffers are reused), and the maps' parts."""
    batch, channels, height, width = maps[0].shape
    count = -(-channels // max(1, min(channels, BLOCK * torch.get_num_threads() // max(batch * height * width, 1))))
    planes = -(-channels // count)
    like = maps[0].new_empty(0, dtype=torch.promote_types(maps[0].dtype, torch.float32))
    direct = directly and not difference and all(x.dtype == like.dtype and x.stride(-1) == 1 for x in maps)
    made: dict[int, list[_Step]] = {}
    for start in range(0, channels, planes):
        channel = slice(start, min(start + planes, channels))
        parts = [x[:, channel] for x in maps]
        size, width_of = (height, width), channel.stop - start
        if width_of not in made:
            made[width_of] = []
            for level in range(depth):
                steps = made[width_of]
                steps.append(_Step(1 if difference else 2, (batch, width_of), size, like, direct and level == 0))
                size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
        yield channel, made[width_of], parts


def correlate(
    student: Tensor,
    teacher: Tensor,
    depth: int,
    roots: Sequence[Tensor] | None,
    factors: Factors | None,
    gradient: Tensor | None,
) -> Tensor:
    """Returns the sums of products of all bands (C, depth, 4, 3), and fills a gradient made from them.

    Args:
        student: b (N, C, H, W).
        teacher: a (N, C, H, W).
        depth: Wavelet levels.
        roots: Square roots of the weights of the positions, (N, 4, h, w) per level; None for 1.
        factors: Returns the factors of both maps' bands in the gradient, for a block's sums.
        gradient: Tensor for the gradient (N, C, H, W); None for none.
    """
    weights = [interleave(root) for root in roots] if roots is not None else None
    out = student.new_empty(student.shape[1], depth, 4, 3, dtype=torch.promote_types(student.dtype, torch.float32))
    for channel, steps, parts in _blocks((student, teacher), depth, difference=False, directly=True):
        sums = out[channel]
        for level, step in enumerate(steps):
            step.analyse(parts if level == 0 else steps[level - 1].low)
        for level, step in enumerate(steps):
            if weights is not None:
                step.scale(weights[level])
            for index, (first, second) in enumerate(((0, 0), (0, 1), (1, 1))):
                sums[:, level, :, index] = step.inner(first, second)
        if gradient is None or factors is None:
            continue
        own, other = factors(channel, sums)
        for level, step in enumerate(steps):
            step.mix(own[:, level], other[:, level])
            if weights is not None:
                step.first[0].mul_(weights[level].unsqueeze(1))
        _synthesise(steps, gradient[:, channel])
    return out


def _synthesise(steps: Sequence[_Step], out: Tensor) -> None:
    """Transforms the first map's bands of all levels back to ``out`` (N, k, H, W)."""
    for level in reversed(range(len(steps))):
        steps[level].synthesise(steps[level - 1].low[0] if level else out)


def absolute(
    student: Tensor, teacher: Tensor, depth: int, weights: Sequence[Tensor], gradient: Tensor | None
) -> Tensor:
    """Returns the weighted sum of absolute differences of each plane (N, C), and fills its gradient.

    Args:
        student: (N, C, H, W).
        teacher: (N, C, H, W).
        depth: Wavelet levels.
        weights: Weights of the positions, (N or 1, 4, h, w) per level; 0 for a low band that has a deeper level.
        gradient: Tensor for the gradient of each plane (N, C, H, W); None for none.
    """
    rows = [interleave(weight) for weight in weights]
    columns = [row.flatten(1).expand(len(student), -1) for row in rows]
    total = student.new_zeros(student.shape[:2], dtype=torch.promote_types(student.dtype, torch.float32))
    for channel, steps, parts in _blocks((student, teacher), depth, difference=True, directly=False):
        for level, step in enumerate(steps):
            step.analyse(parts if level == 0 else steps[level - 1].low, difference=level == 0)
        for level, step in enumerate(steps):
            torch.abs(step.bands[0], out=step.spare)
            # One product of a matrix and a vector for each image: several times faster than a batch of them.
            for sums, sizes, column in zip_equal(total[:, channel], step.spare.flatten(2), columns[level]):
                sums += torch.mv(sizes, column)
        if gradient is None:
            continue
        for level, step in enumerate(steps):
            step.first[0].sign_().mul_(rows[level].unsqueeze(1))
        _synthesise(steps, gradient[:, channel])
    return total
