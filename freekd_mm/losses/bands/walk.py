"""Sums and gradients of Haar bands on a CPU: a few channels of all images at a time, in buffers that are reused.

On a CPU the access to memory costs most. So all wavelet levels of some channels are made, summed, scaled and
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

from freekd_mm.compat.versions import cache, zip_equal

# Values of one map in a block, 2 MiB of float32: smaller blocks cost more calls than their cache saves.
BLOCK = 2**19
#: Gives the factors of the student's and of the teacher's bands, (k, depth, 4) each, for the sums (k, depth, 4, 3).
Factors = Callable[[slice, Tensor], Tuple[Tensor, Tensor]]


class _Steps:
    """All wavelet levels of some channels of one or two maps.

    Attributes:
        bands: Per level (maps, N, k, 2, h, 2w): low and vertical band side by side, then horizontal and diagonal.
        spare: Per level room for the bands of one map.
    """

    def __init__(self, maps: int, shape: Sequence[int], depth: int, like: Tensor) -> None:
        batch, planes, height, width = shape
        self.bands: list[Tensor] = []
        for _ in range(depth):
            height, width = (height + 1) // 2, (width + 1) // 2
            self.bands.append(like.new_zeros(maps, batch, planes, 2, height, 2 * width))
        self.spare = [torch.empty_like(band[0]) for band in self.bands]

    def analyse(self, maps: Sequence[Tensor]) -> None:
        """Fills ``bands`` from maps (N, k, H, W)."""
        for level, band in enumerate(self.bands):
            if level == 0:
                for x, rows in zip_equal(maps, band.unbind()):
                    _add_rows(x, rows)
            else:
                _add_rows(_low(self.bands[level - 1]), band)
            _pairs(band).mul_(0.5 - 0.5j)

    def synthesise(self, out: Tensor) -> None:
        """Writes the adjoint of :meth:`analyse`, applied to the first map's bands, to ``out`` (N, k, H, W)."""
        for level in reversed(range(len(self.bands))):
            rows = self.bands[level][0]
            _pairs(rows).mul_(0.5 + 0.5j)
            x = _low(self.bands[level - 1])[0] if level else out
            for start, combine in enumerate((torch.add, torch.sub)):
                into = x[..., start::2, :]
                above, below = (half[..., : into.shape[2], : into.shape[3]] for half in rows.unbind(2))
                combine(above, below, out=into)


def _add_rows(x: Tensor, rows: Tensor) -> None:
    """Writes sum and difference of each pair of rows of x (..., H, W) to (..., 2, h, 2w)."""
    (height, width), whole = x.shape[-2:], x.shape[-2] // 2
    above, below = (half[..., :width] for half in rows.unbind(-3))
    even, odd = x[..., 0::2, :], x[..., 1::2, :]
    torch.add(even[..., :whole, :], odd, out=above[..., :whole, :])
    torch.sub(even[..., :whole, :], odd, out=below[..., :whole, :])
    if height % 2:
        above[..., whole, :] = below[..., whole, :] = even[..., whole, :]
    if width % 2:
        # Behind the last column there are zeros.
        rows[..., width] = 0


def _pairs(bands: Tensor) -> Tensor:
    return torch.view_as_complex(bands.unflatten(-1, (bands.shape[-1] // 2, 2)))


def _low(bands: Tensor) -> Tensor:
    return bands[..., 0, :, 0::2]


def _side_by_side(weights: Tensor) -> Tensor:
    """Returns weights of the positions (N, 4, h, w) for bands (N, k, 2, h, 2w), (N, 1, 2, h, 2w)."""
    return weights.unflatten(1, (2, 2)).permute(0, 1, 3, 4, 2).flatten(3).unsqueeze(1)


def _blocks(maps: int, shape: Sequence[int], depth: int, like: Tensor) -> Iterator[tuple[slice, _Steps]]:
    """Yields slices of the channels with room for their bands."""
    batch, channels, height, width = shape
    most = BLOCK * torch.get_num_threads() // max(batch * height * width, 1)
    planes = -(-channels // -(-channels // max(1, min(channels, most))))
    steps = cache(lambda width_of: _Steps(maps, (batch, width_of, height, width), depth, like))
    for start in range(0, channels, planes):
        channel = slice(start, min(start + planes, channels))
        yield channel, steps(channel.stop - start)


def correlate(
    student: Tensor,
    teacher: Tensor,
    depth: int,
    weights: Sequence[Tensor] | None,
    factors: Factors | None = None,
    gradient: Tensor | None = None,
) -> Tensor:
    """Returns the sums of bb, ab and aa of all bands (C, depth, 4, 3), and fills a gradient made from them.

    A low band that has a deeper level counts 0.

    Args:
        student: b (N, C, H, W).
        teacher: a (N, C, H, W).
        depth: Wavelet levels.
        weights: Weights of the positions, (N, 4, h, w) per level; None for 1.
        factors: Returns the factors of both maps' bands in the gradient, for a block's sums.
        gradient: Tensor for the gradient (N, C, H, W); None for none.
    """
    like = student.new_empty(0, dtype=torch.promote_types(student.dtype, torch.float32))
    out = like.new_empty(student.shape[1], depth, 4, 3)
    roots = [_side_by_side(weight.sqrt()) for weight in weights or ()]
    for channel, steps in _blocks(2, student.shape, depth, like):
        sums = out[channel]
        steps.analyse([x[:, channel].to(like.dtype) for x in (student, teacher)])
        for level, (band, spare) in enumerate(zip_equal(steps.bands, steps.spare)):
            if roots:
                band.mul_(roots[level])
            own, other = band.unbind()
            for index, (x, y) in enumerate(((own, own), (own, other), (other, other))):
                torch.mul(x, y, out=spare)
                sums[:, level, :, index] = torch.view_as_real(_pairs(spare).sum((0, 3, 4))).flatten(1)
        if gradient is None or factors is None:
            continue
        both = torch.stack(factors(channel, sums))
        for level, band in enumerate(steps.bands):
            width = band.shape[-1] // 2
            own, other = both[:, :, level].reshape(2, -1, 2, 1, 1, 2).expand(-1, -1, -1, -1, width, 2).flatten(-2)
            band[0].mul_(own).addcmul_(band[1], other, value=-1)
            if roots:
                band[0].mul_(roots[level])
        steps.synthesise(gradient[:, channel])
    out[:, :-1, 0] = 0
    return out


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
    like = student.new_empty(0, dtype=torch.promote_types(student.dtype, torch.float32))
    total = like.new_zeros(student.shape[:2])
    rows = [_side_by_side(weight) for weight in weights]
    for channel, steps in _blocks(1, student.shape, depth, like):
        steps.analyse([student[:, channel].to(like.dtype) - teacher[:, channel]])
        for row, band, spare in zip_equal(rows, steps.bands, steps.spare):
            torch.abs(band[0], out=spare)
            # One product of a matrix and a vector for each image: several times faster than a batch of them.
            for sums, sizes, column in zip_equal(
                total[:, channel], spare.flatten(2), row.flatten(1).expand(len(total), -1)
            ):
                sums += torch.mv(sizes, column)
            if gradient is not None:
                band[0].sign_().mul_(row)
        if gradient is not None:
            steps.synthesise(gradient[:, channel])
    return total
