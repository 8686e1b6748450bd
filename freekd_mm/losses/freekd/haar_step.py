"""One level of the Haar transform on a block of planes, in buffers that are reused.

The transform leaves the bands where its adds put them. The sum and the difference of neighbouring rows are
contiguous; the step along the columns is one product of pairs, read as complex numbers, with 1/2 - i/2:
(a + ib)(1 - i)/2 = ((a + b) + i(b - a))/2. So the bands of a level lie interleaved and no strided slice is
walked over but the low band, a quarter of the values. The flipped sign of the vertical and of the diagonal band
changes no distance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Tuple

import torch
from torch import Tensor

from freekd_mm.compat.versions import is_compiling, zip_equal

# Values of a block: 2 MiB of float32 for each CPU thread's cache; on other devices memory alone sets the limit.
CPU_BLOCK = 2**19
DEVICE_BLOCK = 2**25
# A band whose mean square in the teacher is below this is constant, and says nothing.
TINY = 1e-12
# A deviation is at least this share of the teacher's: bounds the gradient of a nearly constant band of the student.
FLOOR = 1e-2

COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}
Block = Tuple[slice, slice]


def blocks_of(shape: torch.Size, device: torch.device) -> Iterator[Block]:
    """Yields slices of the batch and of the channels of (N, C, H, W), all of one size where that is possible."""
    batch, channels, height, width = shape
    if is_compiling():
        yield slice(0, batch), slice(0, channels)
        return
    limit = CPU_BLOCK * torch.get_num_threads() if device.type == 'cpu' else DEVICE_BLOCK
    planes = max(1, limit // (height * width))
    images = max(1, planes // max(channels, 1))
    step = -(-channels // max(1, -(-channels // planes)))
    for n in range(0, batch, images):
        for k in range(0, channels, step):
            yield slice(n, min(n + images, batch)), slice(k, min(k + step, channels))


class HaarStep:
    """Buffers for one level of the transform of a block of planes, of one map or of two side by side.

    Attributes:
        bands: (maps, n, k, 2, h, 2w): low and vertical band side by side, below them horizontal and diagonal.
        pairs: The same read as complex numbers (maps, n, k, 2, h, w).
        low: The low band (maps, n, k, h, w).

    The other buffers come to be when they are first used.
    """

    def __init__(self, maps: int, planes: Sequence[int], size: Sequence[int], like: Tensor) -> None:
        half = ((size[0] + 1) // 2, (size[1] + 1) // 2)
        self.size, self.like = tuple(size), like
        self.even = self.size == (2 * half[0], 2 * half[1])
        self.bands = like.new_empty(maps, *planes, 2, half[0], 2 * half[1])
        self.halves = [(one[:, :, 0], one[:, :, 1]) for one in self.bands]
        self.pairs = self.bands.view(COMPLEX[like.dtype])
        self.low = self.bands[..., 0, :, 0::2]
        self.positions = half[0] * half[1]

    @cached_property
    def padded(self) -> Tensor:
        """A buffer for the input, of even sizes (maps, n, k, 2h, 2w)."""
        maps, n, k, _, height, width = self.bands.shape
        return self.like.new_empty(maps, n, k, 2 * height, width)

    @cached_property
    def inside(self) -> Tensor:
        """The part of ``padded`` that is not padding."""
        return self.padded[..., : self.size[0], : self.size[1]]

    @cached_property
    def rows(self) -> list[tuple[Tensor, Tensor]]:
        """Even and odd rows of ``padded``."""
        return [_row_pairs(one) for one in self.padded]

    @cached_property
    def spare(self) -> Tensor:
        """A free buffer like the bands of one map."""
        return torch.empty_like(self.bands[0])

    @cached_property
    def spare_pairs(self) -> Tensor:
        """The same read as complex numbers."""
        return self.spare.view(self.pairs.dtype)

    @cached_property
    def sums(self) -> Tensor:
        """One complex number for the two upper and one for the two lower bands (maps, n, k, 2)."""
        return self.pairs.new_empty(self.pairs.shape[:4])

    @cached_property
    def scales(self) -> Tensor:
        """One value a band, interleaved (maps, n, k, 2, 1, 2w)."""
        return self.like.new_empty(*self.bands.shape[:4], 1, self.bands.shape[5])

    @cached_property
    def scale_pairs(self) -> Tensor:
        """The same read as complex numbers."""
        return self.scales.view(self.pairs.dtype)

    @cached_property
    def row_pairs(self) -> Tensor:
        """One value a band of one map, interleaved, as complex numbers (n, k, 2, 1, w)."""
        return self.pairs.new_empty(*self.pairs.shape[1:4], 1, self.pairs.shape[5])

    @cached_property
    def row(self) -> Tensor:
        """The same as real numbers (n, k, 2, 1, 2w)."""
        return torch.view_as_real(self.row_pairs).flatten(4)

    def analyse(self, maps: Sequence[Tensor], difference: bool = False) -> None:
        """Fills ``bands`` from maps (n, k, H, W), or with those of the difference of two of them."""
        direct = not difference and all(self._takes(x) for x in maps)
        if not direct:
            if not self.even:
                self.padded[..., self.size[0] :, :].zero_()
                self.padded[..., self.size[1] :].zero_()
            if not difference:
                for inside, x in zip_equal(self.inside, maps):
                    inside.copy_(x)
            elif maps[0].dtype == maps[1].dtype == self.bands.dtype:
                torch.sub(*maps, out=self.inside[0])
            else:
                self.inside[0].copy_(maps[0]).sub_(maps[1])
        for index, (above, below) in enumerate(self.halves):
            even, odd = _row_pairs(maps[index]) if direct else self.rows[index]
            torch.add(even, odd, out=above)
            torch.sub(even, odd, out=below)
        self.pairs.mul_(0.5 - 0.5j)

    def _takes(self, x: Tensor) -> bool:
        """Whether pairs of rows of a map are read and written where they are, without a buffer between."""
        return self.even and x.dtype == self.bands.dtype and x.stride(-1) == 1

    def synthesise(self, out: Tensor) -> None:
        """Writes the adjoint of :meth:`analyse` applied to the first map's bands to ``out`` (n, k, H, W)."""
        self.pairs[0].mul_(0.5 + 0.5j)
        direct = self._takes(out)
        even, odd = _row_pairs(out) if direct else self.rows[0]
        torch.add(*self.halves[0], out=even)
        torch.sub(*self.halves[0], out=odd)
        if not direct:
            out.copy_(self.inside[0])

    def center_low(self) -> None:
        """Takes the mean out of the low band. The high bands have none but for what happens at the edges."""
        self.low -= self.low.mean((3, 4), keepdim=True)

    def square_sums(self) -> Tensor:
        """Returns the sum of squares of each band (maps, n, k, 2, 2), in a buffer of its own."""
        for bands, total in zip_equal(self.bands, self.sums):
            torch.mul(bands, bands, out=self.spare)
            torch.sum(self.spare_pairs, (3, 4), out=total)
        return torch.view_as_real(self.sums)

    def absolute(self, bands: Tensor) -> Tensor:
        """Returns the absolute values of one map's bands in the spare buffer."""
        return torch.abs(bands, out=self.spare)

    def measure(self, last: bool) -> Tensor:
        """Returns 1 / deviation of the bands of student and teacher (2, n, k, 2, 1, 2w), in a buffer of its own.

        0 where the teacher's band is constant, and in a low band that the next level takes apart.
        """
        squares = self.square_sums()
        constant = squares[1] <= TINY * self.positions
        if not last:
            constant[:, :, 0, 0] = True
        # The floor is added to both, so that equal features stay equal.
        wide = torch.add(squares, squares[1], alpha=FLOOR**2).masked_fill_(constant, torch.inf)
        found = wide.rsqrt_().mul_(self.positions**0.5)
        self.scale_pairs.copy_(torch.view_as_complex(found)[..., None, None])
        return self.scales

    def normalise(self, scales: Tensor) -> Tensor:
        """Scales the bands; returns student - teacher in place of the teacher's, the student's stay normalised."""
        student, teacher = self.bands
        student.mul_(scales[0])
        return torch.addcmul(student, teacher, scales[1], value=-1, out=teacher)

    def through_normalisation(self, gradient: Tensor, scale: Tensor) -> None:
        """Overwrites the first map's normalised bands with the gradient of its bands, given that of the normalised.

        With y = x / s(x): dL/dx = (g - y mean(g y)) / s.
        """
        bands = self.bands[0]
        torch.mul(gradient, bands, out=self.spare)
        self.row_pairs.copy_(self.spare_pairs.sum((3, 4), keepdim=True))
        torch.addcmul(gradient, bands, self.row, value=-1 / self.positions, out=bands)
        bands.mul_(scale)


def _row_pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the even and the odd rows of x (n, k, 2h, w)."""
    return x[:, :, 0::2], x[:, :, 1::2]
