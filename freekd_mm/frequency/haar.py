"""The Haar wavelet by adds and subtracts, in 1D and 2D.

The orthonormal Haar analysis is an orthogonal matrix (appending a zero to an odd size, and cropping after the
synthesis, keep it so): its vector-Jacobian product is the synthesis, and vice versa. Each direction is an
autograd function whose backward is the other one. Nothing is saved, autograd never goes over strided slices, and
derivatives of any order work.

On a CPU the arithmetic costs almost nothing, the access to memory costs nearly all. So:

- a few planes go through both steps of all levels while they are in the cache;
- rows go first, since whole rows are contiguous; then a pair of neighbours in a row, read as a complex number and
  multiplied by (1 + i)/2, becomes its difference and its sum in one contiguous pass, and only copies are strided;
- bands are separate tensors. One block for a level's three details would need a copy in the backward, and above
  32 MiB the allocator maps fresh pages at each step, which takes ten times as long as filling them.

Strided convolutions, products with the Haar matrix, pixel_unshuffle and adds of the four strided phases are all slower
(``python -m speed layer``, figures in docs/speed.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from freekd_mm.compat.versions import is_compiling, zip_equal

# Values a CPU thread works on at a time: 4 MiB of float32 stay in the last cache; fewer cost more calls than they save.
CHUNK = 2**20
SQRT_HALF = 0.5**0.5


def _pairs(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Returns views of the even and of the odd positions along the negative axis ``dim``."""
    return x.movedim(dim, 0)[0::2].movedim(0, dim), x.movedim(dim, 0)[1::2].movedim(0, dim)


def _add_sub(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return a + b, a - b


def _pad_even(x: Tensor, *dims: int) -> Tensor:
    """Appends a zero along those of the negative axes ``dims`` that are of odd length."""
    pads = [0] * (-2 * min(dims))
    for dim in dims:
        pads[-2 * dim - 1] = x.shape[dim] % 2
    return F.pad(x, pads) if is_compiling() or any(pads) else x


def _parts(tensors: Iterable[Tensor], planes: int, area: int) -> Iterator[tuple[Tensor, ...]]:
    """Yields slices of (N, C, ...) tensors, seen as (N * C, ...), that fit into a CPU's cache.

    Args:
        tensors: Tensors with ``planes`` = N * C planes.
        planes: Number of planes.
        area: Values of the largest plane.
    """
    flat = [tensor.flatten(0, 1) for tensor in tensors]
    limit = CHUNK * torch.get_num_threads()
    if flat[0].device.type != 'cpu' or planes * area <= limit:
        yield tuple(flat)
    else:
        yield from zip_equal(*(tensor.split(max(1, limit // area)) for tensor in flat))


def _sizes(height: int, width: int, levels: int) -> list[tuple[int, int]]:
    """Returns (H, W) of the low band before the first and after each level."""
    sizes = [(height, width)]
    for _ in range(levels):
        height, width = (height + 1) // 2, (width + 1) // 2
        sizes.append((height, width))
    return sizes


def _rows(fine: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the sums and the differences of the pairs of rows of (k, H, W), each contiguous (k, h, 2w)."""
    count, height, width = fine.shape
    pairs = height // 2
    buffers = fine.new_empty(2, count, (height + 1) // 2, width + width % 2)
    total, difference = buffers[..., :width].unbind()
    even, odd = fine[:, 0::2], fine[:, 1::2]
    if height % 2:
        # Below the last row and right of the last column there are zeros.
        buffers[..., pairs:, :width] = even[:, pairs:]
        total, difference, even = total[:, :pairs], difference[:, :pairs], even[:, :pairs]
    if width % 2:
        buffers[..., width:] = 0
    torch.add(even, odd, out=total)
    torch.sub(even, odd, out=difference)
    return buffers[0], buffers[1]


def _analyse2d(x: Tensor, levels: int) -> tuple[Tensor, ...]:
    batch, channels, height, width = x.shape
    sizes = _sizes(height, width, levels)
    low = x.new_empty(batch, channels, *sizes[-1])
    high = tuple(x.new_empty(batch, channels, *size) for size in sizes[1:] for _ in range(3))
    for fine, lowest, *details in _parts((x, low, *high), batch * channels, height * width):
        for level in range(levels):
            horizontal, vertical, diagonal = details[3 * level : 3 * level + 3]
            coarse = lowest if level == levels - 1 else torch.empty_like(horizontal)
            total, difference = _rows(fine)
            for rows, plus, minus in ((total, coarse, vertical), (difference, horizontal, diagonal)):
                # (a + ib)(1 + i)/2 = (a - b)/2 + i(a + b)/2 in one contiguous pass; only copies are strided.
                pairs = torch.view_as_complex(rows.view(*plus.shape, 2)).mul_(0.5 + 0.5j)
                plus.copy_(pairs.imag)
                minus.copy_(pairs.real)
            fine = coarse
    return low, *high


def _columns(plus: Tensor, minus: Tensor) -> Tensor:
    """Returns (k, h, 2w): half the sum and half the difference of (k, h, w), side by side."""
    # (b + ia)(1 - i)/2 = (a + b)/2 + i(a - b)/2
    return torch.view_as_real(torch.complex(minus, plus).mul_(0.5 - 0.5j)).flatten(-2)


def _synthesise2d(low: Tensor, high: tuple[Tensor, ...], height: int, width: int) -> Tensor:
    levels, (batch, channels) = len(high) // 3, low.shape[:2]
    sizes = _sizes(height, width, levels)
    x = low.new_empty(batch, channels, height, width)
    for finest, coarse, *details in _parts((x, low, *high), batch * channels, height * width):
        for level in reversed(range(levels)):
            horizontal, vertical, diagonal = details[3 * level : 3 * level + 3]
            total, difference = _columns(coarse, vertical), _columns(horizontal, diagonal)
            rows, columns = sizes[level]
            if columns % 2:
                total, difference = total[..., :columns], difference[..., :columns]
            fine = finest if level == 0 else low.new_empty(len(finest), rows, columns)
            torch.add(total, difference, out=fine[:, 0::2])
            if rows % 2:
                total, difference = total[:, :-1], difference[:, :-1]
            torch.sub(total, difference, out=fine[:, 1::2])
            coarse = fine
    return x


def _interleave(even: Tensor, odd: Tensor) -> Tensor:
    return torch.stack((even, odd), dim=-1).flatten(-2)


def traced_analysis2d(x: Tensor, levels: int) -> tuple[Tensor, ...]:
    """:class:`HaarAnalysis2d` for a tracer."""
    high: list[Tensor] = []
    for _ in range(levels):
        total, difference = _add_sub(*_pairs(_pad_even(x, -1, -2) * 0.5, -2))
        x, vertical = _add_sub(*_pairs(total, -1))
        horizontal, diagonal = _add_sub(*_pairs(difference, -1))
        high += [horizontal, vertical, diagonal]
    return x, *high


def traced_synthesis2d(height: int, width: int, low: Tensor, *high: Tensor) -> Tensor:
    """:class:`HaarSynthesis2d` for a tracer."""
    sizes = _sizes(height, width, len(high) // 3)
    for level in reversed(range(len(high) // 3)):
        horizontal, vertical, diagonal = high[3 * level : 3 * level + 3]
        rows, columns = sizes[level]
        total = _interleave(*_add_sub(low * 0.5, vertical * 0.5))
        difference = _interleave(*_add_sub(horizontal * 0.5, diagonal * 0.5))
        low = torch.stack(_add_sub(total, difference), dim=-2).flatten(-3, -2)[..., :rows, :columns]
    return low


def _fill(grads: tuple[Tensor | None, ...], shapes: list[torch.Size]) -> list[Tensor]:
    """Returns the gradients with zeros, which take no memory, in place of None."""
    known = next(grad for grad in grads if grad is not None)
    return [known.new_zeros(()).expand(shape) if grad is None else grad for grad, shape in zip_equal(grads, shapes)]


class HaarAnalysis2d(Function):
    """(N, C, H, W) to the low band and horizontal, vertical, diagonal of each level, finest first."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: int) -> tuple[Tensor, ...]:  # noqa: D102
        bands = traced_analysis2d(x, levels) if is_compiling() else _analyse2d(x, levels)
        ctx.set_materialize_grads(False)
        ctx.height, ctx.width = x.shape[-2:]
        ctx.shapes = [band.shape for band in bands]
        return bands

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None]:  # noqa: D102
        if all(grad is None for grad in grads):
            return None, None
        synthesis = traced_synthesis2d if is_compiling() else HaarSynthesis2d.apply
        return synthesis(ctx.height, ctx.width, *_fill(grads, ctx.shapes)), None


class HaarSynthesis2d(Function):
    """H, W and the bands in the order of :class:`HaarAnalysis2d` to (N, C, H, W)."""

    @staticmethod
    def forward(ctx: Any, height: int, width: int, low: Tensor, *high: Tensor) -> Tensor:  # noqa: D102
        ctx.levels = len(high) // 3
        if is_compiling():
            return traced_synthesis2d(height, width, low, *high)
        return _synthesise2d(low, high, height, width)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        analysis = traced_analysis2d if is_compiling() else HaarAnalysis2d.apply
        return None, None, *analysis(grad, ctx.levels)


class HaarAnalysis1d(Function):
    """(..., n, ...) to low and high (..., ceil(n/2), ...) along the negative axis ``dim``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> tuple[Tensor, Tensor]:  # noqa: D102
        low, high = _add_sub(*_pairs(_pad_even(x * SQRT_HALF, dim), dim))
        ctx.set_materialize_grads(False)
        ctx.length, ctx.dim, ctx.shapes = x.shape[dim], dim, [low.shape, high.shape]
        return low, high

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None]:  # noqa: D102
        if all(grad is None for grad in grads):
            return None, None
        return HaarSynthesis1d.apply(ctx.length, ctx.dim, *_fill(grads, ctx.shapes)), None


class HaarSynthesis1d(Function):
    """Length n, axis and both bands (..., ceil(n/2), ...) to (..., n, ...)."""

    @staticmethod
    def forward(ctx: Any, length: int, dim: int, low: Tensor, high: Tensor) -> Tensor:  # noqa: D102
        ctx.dim = dim
        even, odd = _add_sub(low * SQRT_HALF, high * SQRT_HALF)
        # The new axis of pairs is right after the transformed one, which is a negative axis.
        return torch.stack((even, odd), dim=dim).flatten(dim - 1, dim).narrow(dim, 0, length)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        return None, None, *HaarAnalysis1d.apply(grad, ctx.dim)
