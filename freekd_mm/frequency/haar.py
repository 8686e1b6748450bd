"""The Haar wavelet in 2D, as autograd functions.

The orthonormal Haar analysis is an orthogonal matrix (appending a zero to an odd size, and cropping after the
synthesis, keep it so): its vector-Jacobian product is the synthesis, and vice versa. Each direction is an
autograd function whose backward is the other one. Nothing is saved, autograd never goes over strided slices, and
derivatives of any order work.

In 2D a CPU gets :mod:`freekd_mm.frequency.walk`, any other device :mod:`freekd_mm.frequency.blocks`, and so do the
losses on bands. Bands are separate tensors. One block for a level's three details would need a copy in the backward,
and above 32 MiB the allocator maps fresh pages at each step, which takes ten times as long as filling them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from freekd_mm.compat.versions import is_compiling, zip_equal
from freekd_mm.frequency.blocks import Blocks
from freekd_mm.frequency.inputs import band_sizes
from freekd_mm.frequency.walk import Walk


def haar_form(shape: Sequence[int], levels: int, like: Tensor) -> Walk | Blocks:
    """Returns the form of the 2D transform for maps (N, C, H, W), on the device and in the dtype of a tensor."""
    return (Walk if like.device.type == 'cpu' else Blocks)(shape, levels, like)


def traced_analysis2d(x: Tensor, levels: int) -> tuple[Tensor, ...]:
    """:class:`HaarAnalysis2d` for a tracer."""
    high: list[Tensor] = []
    for _ in range(levels):
        x = F.pad(x * 0.5, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))
        a, b, c, d = F.pixel_unshuffle(x, 2).unflatten(1, (x.shape[1], 4)).unbind(2)
        x = a + b + c + d
        high += [a + b - c - d, a - b + c - d, a - b - c + d]
    return x, *high


def traced_synthesis2d(size: Sequence[int], low: Tensor, *high: Tensor) -> Tensor:
    """:class:`HaarSynthesis2d` for a tracer."""
    sizes = [(size[0], size[1]), *band_sizes(size, len(high) // 3)]
    for level in reversed(range(len(high) // 3)):
        low, h, v, d = (band * 0.5 for band in (low, *high[3 * level : 3 * level + 3]))
        pixels = torch.stack((low + h + v + d, low + h - v - d, low - h + v - d, low - h - v + d), 2)
        low = F.pixel_shuffle(pixels.flatten(1, 2), 2)[..., : sizes[level][0], : sizes[level][1]]
    return low


class HaarAnalysis2d(Function):
    """(N, C, H, W) to the low band and horizontal, vertical, diagonal of each level, finest first."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: int) -> tuple[Tensor, ...]:  # noqa: D102
        ctx.size = x.shape[-2:]
        if is_compiling():
            return traced_analysis2d(x, levels)
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
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # noqa: D102
        return (traced_synthesis2d if is_compiling() else HaarSynthesis2d.apply)(ctx.size, *grads), None


class HaarSynthesis2d(Function):
    """(H, W) and the bands in the order of :class:`HaarAnalysis2d` to (N, C, H, W)."""

    @staticmethod
    def forward(ctx: Any, size: Sequence[int], low: Tensor, *high: Tensor) -> Tensor:  # noqa: D102
        ctx.levels = len(high) // 3
        if is_compiling():
            return traced_synthesis2d(size, low, *high)
        out = low.new_empty(*low.shape[:2], *size)
        form = haar_form(out.shape, ctx.levels, out)
        for part in form.parts():
            details = [band[part] for band in high]
            bands = [(low[part], details[i + 1], details[i], details[i + 2]) for i in range(0, len(high), 3)]
            out = form.synthesise(form.pack(bands), out, part)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        return None, *(traced_analysis2d if is_compiling() else HaarAnalysis2d.apply)(grad, ctx.levels)
