"""Haar wavelet transforms in 1D and 2D with boundary 'zero', names and values as in PyWavelets.

The orthonormal analysis is an orthogonal matrix (appending a zero to an odd size, and cropping after the synthesis,
keep it so): its vector-Jacobian product is the synthesis, and vice versa. In 2D each direction is an autograd function
whose backward is the other one: nothing is saved, and derivatives of any order work.

In 2D a CPU gets :mod:`freekd_mm.frequency.walk`, any other device :mod:`freekd_mm.frequency.blocks`, and so do the
losses on bands. Bands are separate tensors. One block for a level's three details would need a copy in the backward,
and above 32 MiB the allocator maps fresh pages at each step, which takes ten times as long as filling them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from freekd_mm.checks import check_positive
from freekd_mm.compat.versions import uncompiled, zip_equal
from freekd_mm.frequency.blocks import Blocks
from freekd_mm.frequency.inputs import band_sizes, check_axes
from freekd_mm.frequency.walk import Walk
from freekd_mm.tensors import full_precision


class WaveletDetail(NamedTuple):
    """High bands of one level of a 2D transform, each (N, C, h, w).

    Attributes:
        horizontal: Differences along the height, which respond to horizontal edges (PyWavelets' cH).
        vertical: Differences along the width, which respond to vertical edges (cV).
        diagonal: Differences along both (cD).
    """

    horizontal: Tensor
    vertical: Tensor
    diagonal: Tensor


class WaveletBands(NamedTuple):
    """Bands of a 2D transform.

    Attributes:
        low: Low band of the last level (N, C, h, w).
        high: One :class:`WaveletDetail` per level, finest first.
        shape: (H, W) of the transformed tensor.
    """

    low: Tensor
    high: tuple[WaveletDetail, ...]
    shape: tuple[int, int]


def haar_form(shape: Sequence[int], levels: int, like: Tensor) -> Walk | Blocks:
    """Returns the form of the 2D transform for maps (N, C, H, W), on the device and in the dtype of a tensor."""
    return (Walk if like.device.type == 'cpu' else Blocks)(shape, levels, like)


class _Analysis(Function):
    """(N, C, H, W) to the low band and horizontal, vertical, diagonal of each level, finest first."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: int) -> tuple[Tensor, ...]:
        ctx.size = x.shape[-2:]
        form = haar_form(x.shape, levels, x)
        high = [x.new_empty(*x.shape[:2], *size) for size in band_sizes(x.shape[2:], levels) for _ in range(3)]
        low = torch.empty_like(high[-1])
        for part in form.parts():
            found = form.unpack(form.analyse(x[part]))
            details = [band for _, vertical, *others in found for band in (others[0], vertical, others[1])]
            for out, band in zip_equal((low, *high), (found[-1][0], *details)):
                out[part] = band
        return (low, *high)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _Synthesis.apply(ctx.size, *grads), None


class _Synthesis(Function):
    """(H, W) and the bands in the order of :class:`_Analysis` to (N, C, H, W)."""

    @staticmethod
    def forward(ctx: Any, size: tuple[int, int], low: Tensor, *high: Tensor) -> Tensor:
        ctx.levels = len(high) // 3
        out = low.new_empty(*low.shape[:2], *size)
        form = haar_form(out.shape, ctx.levels, out)
        for part in form.parts():
            details = [band[part] for band in high]
            bands = [(low[part], details[i + 1], details[i], details[i + 2]) for i in range(0, len(high), 3)]
            out = form.synthesise(form.pack(bands), out, part)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_Analysis.apply(grad, ctx.levels)


def usable_levels(shape: tuple[int, int], levels: int, min_positions: int = 16) -> int:
    """Returns how many levels, up to ``levels``, leave at least ``min_positions`` positions in each band.

    Args:
        shape: (H, W) of what is transformed.
        levels: The most.
        min_positions: Positions of the coarsest band; 0 allows all levels.
    """
    return sum(height * width >= min_positions for height, width in band_sizes(shape, levels))


@uncompiled
def dwt2d(x: Tensor, levels: int = 3) -> WaveletBands:
    r"""Wavelet transform over the last two axes.

    For the four pixels a b / c d of each 2 x 2 block (an odd size gets a zero row or column at its end):

    .. math::
        low &= (a + b + c + d) / 2 \\
        horizontal &= (a + b - c - d) / 2 \\
        vertical &= (a - b + c - d) / 2 \\
        diagonal &= (a - b - c + d) / 2

    and the low band again at each further level. Bands of a difference are the difference of the bands, so a loss
    needs one transform of ``student - teacher``. Half precision is transformed in float32.

    Args:
        x: (N, C, H, W), any H, W >= 1.
        levels: Number of levels, also beyond the maximum that PyWavelets recommends.
    """
    check_axes('x', x, '(N, C, H, W)', ndim=4)
    check_positive('levels', levels, integer=True)
    low, *bands = (band.to(x.dtype) for band in _Analysis.apply(full_precision(x), levels))
    high = tuple(WaveletDetail(*bands[start : start + 3]) for start in range(0, len(bands), 3))
    return WaveletBands(low, high, (x.shape[-2], x.shape[-1]))


@uncompiled
def idwt2d(bands: WaveletBands) -> Tensor:
    """Inverse of :func:`dwt2d`: returns (N, C, H, W).

    Args:
        bands: What :func:`dwt2d` returned, changed or not.
    """
    high = (full_precision(band) for details in bands.high for band in details)
    return _Synthesis.apply(bands.shape, full_precision(bands.low), *high).to(bands.low.dtype)


def dwt1d(x: Tensor, levels: int = 1, dim: int = -1) -> tuple[Tensor, list[Tensor]]:
    """Wavelet transform along one axis: the low band of the last level, and the high band of each, finest first.

    Args:
        x: A tensor of any rank, transformed in float32 or float64; an odd length gets a zero at its end.
        levels: Number of levels.
        dim: The axis, e.g. 1 for the classes of per-pixel logits (N, classes, H, W).
    """
    check_positive('levels', levels, integer=True)
    low, high = full_precision(x).movedim(dim, -1), []
    for _ in range(levels):
        low = low * 0.5**0.5
        low = F.pad(low, (0, 1)) if low.shape[-1] % 2 else low
        even, odd = low.unflatten(-1, (-1, 2)).unbind(-1)
        low = even + odd
        high.append((even - odd).movedim(-1, dim))
    return low.movedim(-1, dim), high
