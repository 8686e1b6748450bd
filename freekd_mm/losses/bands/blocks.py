"""Sums and gradients of Haar bands on any device, in few calls: one convolution makes all bands of a map.

Haar is local: the bands of ``depth`` levels of a map are those of its blocks of 2^depth x 2^depth pixels, and those of
a block x are H x with one orthogonal matrix H: a convolution with 4^depth filters and the block's side as its stride.
Its transpose leads back. That makes a few large calls where a transform by levels makes many small ones.

A coefficient has the position in its block that the transform by levels leaves it at when it works in place: one of
level l and band k at (y, x) stands at pixel (y 2^(l+1) + 2^l (k // 2), x 2^(l+1) + 2^l (k % 2)).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from freekd_mm.compat.versions import cache

# Values of one map in a block: little memory beside the gradient.
BLOCK = 9 * 2**18


@cache
def _filters(depth: int) -> np.ndarray:
    """Returns H (4^depth, 1, side, side)."""
    side = 2**depth
    x = np.eye(side * side).reshape(-1, side, side)
    for level in range(depth):
        low = x[:, :: 2**level, :: 2**level]
        a, b, c, d = (low[:, i::2, j::2].copy() for i in (0, 1) for j in (0, 1))
        low[:, 0::2, 0::2], low[:, 0::2, 1::2] = (a + b + c + d) / 2, (a - b + c - d) / 2
        low[:, 1::2, 0::2], low[:, 1::2, 1::2] = (a + b - c - d) / 2, (a - b - c + d) / 2
    return x.reshape(side * side, -1).T.reshape(-1, 1, side, side)


@cache
def _members(depth: int) -> np.ndarray:
    """Returns which coefficients of a block are in which band, (4 * depth, 4^depth) of 0 and 1; 4 bands a level."""
    found = np.zeros((depth, 4, 2**depth, 2**depth))
    for level in range(depth):
        for band in range(0 if level == depth - 1 else 1, 4):
            found[level, band, _places(level, band)[0], _places(level, band)[1]] = 1
    return found.reshape(4 * depth, -1)


def _places(level: int, band: int) -> tuple[slice, slice]:
    """Returns the rows and columns of the coefficients of a band."""
    return slice(band // 2 << level, None, 2 << level), slice(band % 2 << level, None, 2 << level)


@cache
def _constant(table: Callable[[int], np.ndarray], depth: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Returns one of the tables above on a device, where it stays."""
    return torch.as_tensor(table(depth), dtype=dtype, device=device)


def to_device(values: Sequence, like: Tensor) -> Tensor:
    """Returns numbers as a tensor like another, without waiting for the device."""
    found = torch.as_tensor(values, dtype=like.dtype)
    return found.pin_memory().to(like.device, non_blocking=True) if like.is_cuda else found.to(like.device)


def weight_map(weights: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Returns weights of the positions, (N, 4, h, w) per level, at the pixels of their coefficients (N, H', W')."""
    depth = len(weights)
    out = weights[0].new_zeros(len(weights[0]), *(-(-length // 2**depth) << depth for length in size))
    for level, weight in enumerate(weights):
        for band in range(0 if level == depth - 1 else 1, 4):
            rows, columns = _places(level, band)
            out[:, rows, columns][:, : weight.shape[2], : weight.shape[3]] = weight[:, band]
    return out


class _Blocks:
    """The transform of maps of one size.

    Args:
        shape: (N, C, H, W).
        depth: Wavelet levels.
        like: A tensor of the device and the dtype to compute in.
    """

    def __init__(self, shape: Sequence[int], depth: int, like: Tensor) -> None:
        self.shape, self.side, self.dtype = shape, 2**depth, like.dtype
        self.filters = _constant(_filters, depth, like.device, like.dtype)
        self.members = _constant(_members, depth, like.device, like.dtype)
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

    def analyse(self, x: Tensor) -> Tensor:
        """Returns the bands of (n, k, H, W), (n, k, side^2, h, w)."""
        planes = x.reshape(-1, 1, *x.shape[2:]).to(self.dtype)
        with _exactly(x):
            bands = F.conv2d(planes, self.filters, stride=self.side, padding=self.padding)
        return bands.unflatten(0, x.shape[:2])

    def synthesise(self, bands: Tensor) -> Tensor:
        """Returns the adjoint of :meth:`analyse`."""
        options: Any = dict(stride=self.side, padding=self.padding, output_padding=self.rest)
        with _exactly(bands):
            return F.conv_transpose2d(bands.flatten(0, 1), self.filters, **options).view(
                *bands.shape[:2], *self.shape[2:]
            )

    def weights(self, weights: Sequence[Tensor]) -> Tensor:
        """Returns weights of the positions in the form of the bands, (N, 1, side^2, h, w)."""
        pixels = F.pad(weight_map(weights, self.shape[2:]), (self.padding[1], 0, self.padding[0], 0))
        return F.pixel_unshuffle(pixels.unsqueeze(1), self.side).unsqueeze(1)


def _exactly(x: Tensor) -> Any:
    """Convolutions of CUDA would round to 11 bits (TF32)."""
    flags = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    return flags if x.is_cuda else contextlib.nullcontext()


def _part(weights: Tensor, images: slice) -> Tensor:
    return weights[images] if len(weights) > 1 else weights


def correlate(student: Tensor, teacher: Tensor, depth: int, weights: Sequence[Tensor] | None) -> Tensor:
    """Returns the sums of bb, ab and aa of all bands (C, depth, 4, 3), as :func:`walk.correlate`."""
    like = student.new_empty(0, dtype=torch.promote_types(student.dtype, torch.float32))
    blocks = _Blocks(student.shape, depth, like)
    roots = blocks.weights(weights).sqrt() if weights is not None else None
    found = like.new_empty(3, *student.shape[:2], 4**depth)
    for images, channels in blocks.parts():
        own, other = (blocks.analyse(x[images, channels]) for x in (student, teacher))
        if roots is not None:
            own, other = (bands.mul_(_part(roots, images)) for bands in (own, other))
        for sums, x, y in zip(found, (own, own, other), (own, other, other)):
            rows, columns = x.flatten(3).flatten(0, 2).unsqueeze(1), y.flatten(3).flatten(0, 2).unsqueeze(2)
            torch.bmm(rows, columns, out=sums[images, channels].view(-1, 1, 1))
    return torch.matmul(found.sum(1), blocks.members.T).permute(1, 2, 0).unflatten(1, (depth, 4))


def gradient(student: Tensor, teacher: Tensor, depth: int, weights: Sequence[Tensor] | None, factors: Tensor) -> Tensor:
    """Returns the gradient that has own * b - other * a in the bands (N, C, H, W), factors (2, C, depth, 4)."""
    blocks, out = _Blocks(student.shape, depth, factors), None
    scale = blocks.weights(weights) if weights is not None else None
    spread = torch.matmul(factors.flatten(2), blocks.members)[..., None, None]
    for images, channels in blocks.parts():
        bands = blocks.analyse(student[images, channels]).mul_(spread[0, channels])
        bands.addcmul_(blocks.analyse(teacher[images, channels]), spread[1, channels], value=-1)
        if scale is not None:
            bands.mul_(_part(scale, images))
        part = blocks.synthesise(bands)
        if part.shape == student.shape:
            return part
        out = factors.new_empty(student.shape) if out is None else out
        out[images, channels] = part
    return out if out is not None else factors.new_zeros(student.shape)


def absolute(
    student: Tensor, teacher: Tensor, depth: int, weights: Sequence[Tensor], gradient: Tensor | None
) -> Tensor:
    """Does what :func:`freekd_mm.losses.bands.walk.absolute` does."""
    like = student.new_empty(0, dtype=torch.promote_types(student.dtype, torch.float32))
    blocks, total = _Blocks(student.shape, depth, like), like.new_empty(student.shape[:2])
    scale = blocks.weights(weights).expand(len(student), -1, -1, -1, -1)
    for images, channels in blocks.parts():
        bands = blocks.analyse(student[images, channels].to(like.dtype) - teacher[images, channels])
        sums = torch.bmm(bands.abs().flatten(2), scale[images].flatten(1).unsqueeze(2))
        total[images, channels] = sums.squeeze(2)
        if gradient is not None:
            gradient[images, channels] = blocks.synthesise(bands.sign_().mul_(scale[images]))
    return total
