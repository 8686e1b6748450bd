"""The 2D Haar transform on a CPU: level by level, a few channels at a time, in buffers that are reused.

On a CPU the arithmetic costs almost nothing, the access to memory costs nearly all. So some channels go through all
levels while they are in the cache. Rows are added first, since whole rows are contiguous. The step along the width
needs pairs of neighbours, which PyTorch's loops do not vectorise: it is done as a product of complex numbers,
(a + ib)(1 + i)/2 = (a - b)/2 + i(a + b)/2. That takes 0.07 ns per value; strided adds take 0.4 and products with a Haar
matrix 1.1 to 1.4 (docs/speed.md). It leaves the bands of a pair of rows side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from freekd_mm.compat.versions import zip_equal
from freekd_mm.frequency.inputs import band_sizes

# Values of one map in a part, 2 MiB of float32: smaller parts cost more calls than their cache saves.
BLOCK = 2**19


class Walk:
    """The transform of maps of one size; its bands are one tensor (n, 2, k, h, 2w) per level.

    The first half has vertical and low band side by side, the second half diagonal and horizontal band.

    Args:
        shape: (N, C, H, W).
        depth: Wavelet levels.
        like: A tensor of the device and the dtype to compute in.
    """

    def __init__(self, shape: Sequence[int], depth: int, like: Tensor) -> None:
        self.shape, self.depth, self.like = tuple(shape), depth, like
        self._rooms: dict[tuple[int, int], list[Tensor]] = {}

    def parts(self) -> Iterator[tuple[slice, slice]]:
        """Yields slices of the images (all of them) and of the channels."""
        batch, channels, height, width = self.shape
        count = max(1, BLOCK * torch.get_num_threads() // max(batch * height * width, 1))
        planes = -(-channels // max(1, -(-channels // count)))
        for start in range(0, channels if batch else 0, planes or 1):
            yield slice(None), slice(start, min(start + planes, channels))

    def _room(self, planes: int, which: int) -> list[Tensor]:
        """Returns the buffers for the bands of so many channels."""
        if (planes, which) not in self._rooms:
            sizes = band_sizes(self.shape[2:], self.depth)
            made = [self.like.new_empty(self.shape[0], 2, planes, height, 2 * width) for height, width in sizes]
            self._rooms[planes, which] = made
        return self._rooms[planes, which]

    def analyse(self, x: Tensor, which: int = 0) -> list[Tensor]:
        """Returns the bands of some channels (N, k, H, W), in buffers that the next call with this ``which`` takes."""
        x, bands = x.to(self.like.dtype), self._room(x.shape[1], which)
        for band in bands:
            _add_rows(x, band)
            _pairs(band).mul_(0.5 + 0.5j)
            if band is not bands[-1]:
                x = _low(band).contiguous()  # two sums of strided values would take longer than a copy
        return bands

    def crop(self, bands: list[Tensor]) -> None:
        """Sets coefficients that reach over the border to 0."""
        for level, band in enumerate(bands, 1):
            height, width = (length >> level for length in self.shape[2:])
            band[..., height:, :] = 0
            band[..., 2 * width :] = 0

    def synthesise(self, bands: list[Tensor], out: Tensor | None, part: tuple[slice, slice]) -> Tensor:
        """Writes the adjoint of :meth:`analyse` to a part of ``out`` (N, C, H, W), and returns it; takes the bands."""
        out = self.like.new_empty(self.shape) if out is None else out
        for level in reversed(range(self.depth)):
            _pairs(bands[level]).mul_(0.5 - 0.5j)
            low = _low(bands[level - 1]) if level else out[part]
            x = torch.empty_like(low, memory_format=torch.contiguous_format) if level else low
            for start, combine in enumerate((torch.add, torch.sub)):
                into = x[..., start::2, :]
                above, below = (half[..., : into.shape[2], : into.shape[3]] for half in bands[level].unbind(1))
                combine(above, below, out=into)
            if level:
                low.copy_(x)
        return out

    def unpack(self, bands: list[Tensor]) -> list[list[Tensor]]:
        """Returns the low, vertical, horizontal and diagonal band (n, k, h, w) of each level, as views."""
        return [[band[:, index // 2, ..., 1 - index % 2 :: 2] for index in range(4)] for band in bands]

    def pack(self, bands: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Returns what :meth:`unpack` gets; the low band counts only at the last level."""
        packed = self._room(bands[0][1].shape[1], 0)
        for level, (views, given) in enumerate(zip_equal(self.unpack(packed), bands)):
            for view, band in zip_equal(views[level < self.depth - 1 :], given[level < self.depth - 1 :]):
                view.copy_(band)
        return packed

    def products(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        """Returns the sums of bb, ab and aa of all bands (k, depth, 4, 3)."""
        sums = [
            torch.stack([torch.view_as_real(_pairs(x * y).sum((0, 3, 4))) for x, y in ((b, b), (b, a), (a, a))], -1)
            for b, a in zip_equal(student, teacher)
        ]
        found = torch.stack(sums, 1).permute(2, 1, 0, 3, 4).flip(3).flatten(2, 3)
        found[:, :-1, 0] = 0  # these low bands have a deeper level
        return found

    def weighted(self, sizes: list[Tensor], weights: list[Tensor]) -> Tensor:
        """Returns the weighted sums of all bands (n, k), for weights of :meth:`positions`."""
        sums: list[Any] = []
        for size, weight in zip_equal(sizes, weights):
            rows, columns = size.flatten(0, 1).flatten(2), weight.flatten(0, 1)
            # One product of a matrix and a vector for each image: several times faster than a batch of them.
            sums.append(torch.stack([torch.mv(*pair) for pair in zip_equal(rows, columns.flatten(1))]))
        return sum(sums).view(-1, 2, sizes[0].shape[2]).sum(1)

    def spread(self, factors: Tensor) -> list[Tensor]:
        """Returns factors of the bands (2, k, depth, 4) in the form of the bands, (2, 2, k, 1, 2w) per level."""
        widths = [width for _, width in band_sizes(self.shape[2:], self.depth)]
        pairs = factors.unflatten(3, (2, 2)).flip(4).permute(2, 0, 3, 1, 4)[..., None, None, :]
        return [pair.expand(-1, -1, -1, -1, width, -1).flatten(4) for pair, width in zip_equal(pairs, widths)]

    def positions(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Returns weights of the positions (N or 1, 4, h, w) per level in the form of the bands, (N, 2, 1, h, 2w)."""
        found = [w.unflatten(1, (2, 2)).flip(2).permute(0, 1, 3, 4, 2).flatten(3).unsqueeze(2) for w in weights]
        return [weight.expand(self.shape[0], -1, -1, -1, -1) for weight in found]


def _add_rows(x: Tensor, rows: Tensor) -> None:
    """Writes sum and difference of each pair of rows of x (N, k, H, W) to (N, 2, k, h, 2w)."""
    (height, width), whole = x.shape[-2:], x.shape[-2] // 2
    above, below = (half[..., :width] for half in rows.unbind(1))
    even, odd = x[..., 0::2, :], x[..., 1::2, :]
    torch.add(even[..., :whole, :], odd, out=above[..., :whole, :])
    torch.sub(even[..., :whole, :], odd, out=below[..., :whole, :])
    # Below the last row and right of the last column there are zeros.
    if height % 2:
        above[..., whole, :] = below[..., whole, :] = even[..., whole, :]
    if width % 2:
        rows[..., width] = 0


def _pairs(bands: Tensor) -> Tensor:
    return torch.view_as_complex(bands.unflatten(-1, (bands.shape[-1] // 2, 2)))


def _low(bands: Tensor) -> Tensor:
    return bands[:, 0, ..., 1::2]
