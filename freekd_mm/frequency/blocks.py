"""The 2D Haar transform on any other device, in few calls: one convolution makes all bands of a map.

Haar is local: the bands of ``depth`` levels of a map are those of its blocks of 2^depth x 2^depth pixels, and those of
a block x are H x with one orthogonal matrix H: a convolution with 4^depth filters and the block's side as its stride.
Its transpose leads back. That makes a few large calls where a transform by levels makes many small ones.

A coefficient has the position in its block that the transform by levels leaves it at when it works in place: one of
level l and band k at (y, x) stands at pixel (y 2^(l+1) + 2^l (k // 2), x 2^(l+1) + 2^l (k % 2)).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from freekd_mm.frequency.inputs import band_sizes
from freekd_mm.tensors import constant

# Values of one map in a part: little memory beside the gradient.
BLOCK = 9 * 2**18


def _filters(depth: int) -> Tensor:
    """Returns H (4^depth, 1, side, side)."""
    side = 2**depth
    x = torch.eye(side * side, dtype=torch.float64).view(-1, side, side)
    for level in range(depth):
        low = x[:, :: 2**level, :: 2**level]
        a, b, c, d = (low[:, i::2, j::2].clone() for i in (0, 1) for j in (0, 1))
        low[:, 0::2, 0::2], low[:, 0::2, 1::2] = (a + b + c + d) / 2, (a - b + c - d) / 2
        low[:, 1::2, 0::2], low[:, 1::2, 1::2] = (a + b - c - d) / 2, (a - b - c + d) / 2
    return x.flatten(1).T.reshape(-1, 1, side, side)


def _members(depth: int) -> Tensor:
    """Returns which coefficients of a block are in which band, (4 * depth, 4^depth) of 0 and 1; 4 bands a level."""
    found = torch.zeros(depth, 4, 2**depth, 2**depth)
    for level, band in bands_of(depth):
        found[level, band][places(level, band)] = 1
    return found.reshape(4 * depth, -1)


def _inside(depth: int, rest: int, axis: int) -> Tensor:
    """Returns which coefficients of a block need only its first rows (axis 0) or columns, (4^depth,) of 0 and 1."""
    found = torch.zeros(2**depth, 2**depth)
    for level, band in bands_of(depth):
        found[places(level, band)].narrow(axis, 0, rest >> level + 1).fill_(1)
    return found.flatten()


def bands_of(depth: int) -> list[tuple[int, int]]:
    """Returns level and number of all bands; the low band counts only at the last level."""
    return [(level, band) for level in range(depth) for band in range(0 if level == depth - 1 else 1, 4)]


def places(level: int, band: int) -> tuple[Any, slice, slice]:
    """Returns an index of the pixels of the coefficients of a band."""
    return ..., slice(band // 2 << level, None, 2 << level), slice(band % 2 << level, None, 2 << level)


def in_place(bands: Sequence[Sequence[Tensor]], size: Sequence[int]) -> Tensor:
    """Returns the four bands (n, k, h, w) of each level at the pixels of their coefficients (n, k, H', W')."""
    depth, first = len(bands), bands[0][1]
    out = first.new_zeros(*first.shape[:2], *(-(-length // 2**depth) << depth for length in size))
    for level, band in bands_of(depth):
        given = bands[level][band]
        out[places(level, band)][..., : given.shape[-2], : given.shape[-1]] = given
    return out


class Blocks:
    """The transform of maps of one size, as :class:`Walk`; its bands are one tensor (n, k, side^2, h, w) in a list."""

    def __init__(self, shape: Sequence[int], depth: int, like: Tensor) -> None:
        self.shape, self.depth, self.side, self.like = tuple(shape), depth, 2**depth, like
        self.filters = constant(_filters, like, depth)
        self.members = constant(_members, like, depth)
        # A block of zeros before the map, so that the rest behind the whole blocks is one too.
        self.padding = tuple(self.side if length % self.side else 0 for length in shape[2:])
        self.rest = tuple(length % self.side for length in shape[2:])

    def parts(self) -> Iterator[tuple[slice, slice]]:
        """Yields slices of the images and of the channels: some whole images, or some channels of one image."""
        batch, channels, height, width = self.shape
        images = max(1, BLOCK // max(channels * height * width, 1))
        planes = -(-channels // max(1, -(-channels * height * width // BLOCK))) if images == 1 else channels
        for image in range(0, batch, images):
            for channel in range(0, channels, planes):
                yield slice(image, image + images), slice(channel, channel + planes)

    def analyse(self, x: Tensor, which: int = 0) -> list[Tensor]:
        """Returns the bands of a part (n, k, H, W)."""
        planes = x.reshape(-1, 1, *x.shape[2:]).to(self.like.dtype)
        with _exactly(x):
            bands = F.conv2d(planes, self.filters, stride=self.side, padding=self.padding)
        return [bands.unflatten(0, x.shape[:2])]

    def crop(self, bands: list[Tensor]) -> None:
        """Does what :meth:`Walk.crop` does: of each axis in the last blocks."""
        for axis, rest in enumerate(self.rest):
            if rest:
                kept = constant(_inside, self.like, self.depth, rest, axis)
                bands[0].select(axis - 2, -1).mul_(kept[:, None])

    def synthesise(self, bands: list[Tensor], out: Tensor | None, part: tuple[slice, slice]) -> Tensor:
        """Does what :meth:`Walk.synthesise` does."""
        options: Any = dict(stride=self.side, padding=self.padding, output_padding=self.rest)
        with _exactly(bands[0]):
            found = F.conv_transpose2d(bands[0].flatten(0, 1), self.filters, **options)
        found = found.view(*bands[0].shape[:2], *self.shape[2:])
        if found.shape == self.shape:
            return found
        out = self.like.new_empty(self.shape) if out is None else out
        out[part] = found
        return out

    def products(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        """Does what :meth:`Walk.products` does."""
        b, a = (bands[0].flatten(3).flatten(0, 2).unsqueeze(1) for bands in (student, teacher))
        sums = torch.cat([torch.bmm(x, y.transpose(1, 2)) for x, y in ((b, b), (b, a), (a, a))], 2)
        found = sums.view(*student[0].shape[:3], 3).sum(0).transpose(1, 2)
        return torch.matmul(found, self.members.T).transpose(1, 2).unflatten(1, (self.depth, 4))

    def weighted(self, sizes: list[Tensor], weights: list[Tensor]) -> Tensor:
        """Does what :meth:`Walk.weighted` does."""
        return torch.bmm(sizes[0].flatten(2), weights[0].flatten(1).unsqueeze(2)).squeeze(2)

    def spread(self, factors: Tensor) -> list[Tensor]:
        """Does what :meth:`Walk.spread` does, (2, k, side^2, 1, 1)."""
        return [torch.matmul(factors.flatten(2), self.members)[..., None, None]]

    def positions(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Does what :meth:`Walk.positions` does, (N, 1, side^2, h, w)."""
        found = self.pack([weight.unsqueeze(1).unbind(2) for weight in weights]) if weights else []
        return [weight.expand(self.shape[0], -1, -1, -1, -1) for weight in found]

    def unpack(self, bands: list[Tensor]) -> list[list[Tensor]]:
        """Does what :meth:`Walk.unpack` does."""
        pixels = F.pixel_shuffle(bands[0].flatten(1, 2), self.side)[..., self.padding[0] :, self.padding[1] :]
        sizes = band_sizes(self.shape[2:], self.depth)
        return [
            [pixels[places(level, band)][..., :height, :width] for band in range(4)]
            for level, (height, width) in enumerate(sizes)
        ]

    def pack(self, bands: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Does what :meth:`Walk.pack` does."""
        pixels = F.pad(in_place(bands, self.shape[2:]), (self.padding[1], 0, self.padding[0], 0))
        return [F.pixel_unshuffle(pixels, self.side).unflatten(1, (pixels.shape[1], 4**self.depth))]


@contextlib.contextmanager
def _exactly(x: Tensor) -> Iterator[None]:
    """A convolution would round: to half precision under autocast, and to 11 bits on CUDA (TF32)."""
    flags = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with torch.autocast(x.device.type, enabled=False), flags if x.is_cuda else contextlib.nullcontext():
        yield
