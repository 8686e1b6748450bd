"""Sums and gradients of Haar bands on any device, in few calls: square blocks of pixels times one orthogonal matrix.

Haar is local: the bands of ``depth`` levels of a map are those of its blocks of 2^depth x 2^depth pixels, and those of
a block are a product with one matrix, here with rows in the order of :func:`coefficients`. This gives a few large calls
instead of the many small ones of a transform by levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from freekd_mm.compat.versions import cache, zip_equal

# Values of one map in a block of channels: little memory beside the gradient.
BLOCK = 2**21


@cache
def _haar(depth: int) -> np.ndarray:
    """Returns the matrix (4^depth, 4^depth): for each level from the finest on its bands, positions row by row."""
    side = 2**depth
    low, rows = np.eye(side * side).reshape(-1, side, side), []
    for _ in range(depth):
        even, odd = low[:, 0::2], low[:, 1::2]
        above, below = even + odd, even - odd
        low = (above[..., 0::2] + above[..., 1::2]) / 2
        vertical = (above[..., 0::2] - above[..., 1::2]) / 2
        horizontal, diagonal = (below[..., 0::2] + below[..., 1::2]) / 2, (below[..., 0::2] - below[..., 1::2]) / 2
        rows += [band.reshape(len(band), -1).T for band in (vertical, horizontal, diagonal)]
    return np.concatenate([*rows, low.reshape(len(low), -1).T])


def coefficients(depth: int) -> list[tuple[int, int, int]]:
    """Returns (level, band, positions in a block) in the order of the matrix; band 0 is low, 1 to 3 as in a step."""
    high = [(level, band, 4 ** (depth - level - 1)) for level in range(depth) for band in (1, 2, 3)]
    return [*high, (depth - 1, 0, 1)]


def to_device(values: Sequence | np.ndarray, like: Tensor) -> Tensor:
    """Returns numbers as a tensor like another, without waiting for the device."""
    found = torch.as_tensor(values, dtype=like.dtype)
    return found.pin_memory().to(like.device, non_blocking=True) if like.is_cuda else found.to(like.device)


def _blocks(x: Tensor, depth: int, out: Tensor) -> None:
    """Copies x (N, C, H, W) to blocks (C, N, rows, columns, side, side); below and right of it there are zeros."""
    side = 2**depth
    if x.shape[3] % side:
        x = F.pad(x, (0, -x.shape[3] % side, 0, -x.shape[2] % side))
    view, (whole, rest) = out.permute(1, 0, 2, 4, 3, 5), divmod(x.shape[2], side)
    columns = x.shape[3] // side
    view[:, :, :whole] = x[:, :, : whole * side].unflatten(2, (whole, side)).unflatten(-1, (columns, side))
    if rest:
        view[:, :, whole, :rest] = x[:, :, whole * side :].unflatten(-1, (columns, side))
        view[:, :, whole, rest:] = 0


def _maps(rows: Tensor, shape: torch.Size, depth: int, out: Tensor) -> None:
    """Copies blocks (C, N * rows * columns, side * side) back to the map ``out`` (N, C, H, W)."""
    side, (batch, channels, height, width) = 2**depth, shape
    grid = -(-height // side), -(-width // side)
    blocks = rows.view(channels, batch, *grid, side, side).permute(1, 0, 2, 4, 3, 5)
    if width % side:
        out.copy_(blocks.reshape(batch, channels, grid[0] * side, grid[1] * side)[..., :height, :width])
        return
    whole, rest = divmod(height, side)
    out[:, :, : whole * side].unflatten(2, (whole, side)).unflatten(-1, (grid[1], side)).copy_(blocks[:, :, :whole])
    if rest:
        out[:, :, whole * side :].unflatten(-1, (grid[1], side)).copy_(blocks[:, :, whole, :rest])


def in_blocks(weights: Sequence[Tensor], depth: int) -> Tensor:
    """Returns weights of the positions, (N, 4, h, w) per level, as (N * rows * columns, 4^depth)."""
    batch, _, height, width = weights[-1].shape
    parts = []
    for level, band, _ in coefficients(depth):
        side, weight = 2 ** (depth - level - 1), weights[level][:, band]
        weight = F.pad(weight, (0, width * side - weight.shape[2], 0, height * side - weight.shape[1]))
        parts.append(weight.view(batch, height, side, width, side).transpose(2, 3).flatten(3))
    return torch.cat(parts, 3).flatten(0, 2)


def _parts(maps: Sequence[Tensor], depth: int, difference: bool) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yields a slice of the channels and blocks of its maps, (maps, k, M, K) in a buffer that is reused; the matrix."""
    batch, channels, height, width = maps[0].shape
    side = 2**depth
    grid = -(-height // side), -(-width // side)
    count = -(-channels // max(1, min(channels, BLOCK // max(batch * height * width, 1))))
    planes = -(-channels // count)
    dtype = torch.promote_types(maps[0].dtype, torch.float32)
    sides = 1 if difference else len(maps)
    buffer = maps[0].new_empty(sides, planes, batch, *grid, side, side, dtype=dtype)
    matrix = to_device(_haar(depth), buffer)
    for start in range(0, channels, planes):
        channel = slice(start, min(start + planes, channels))
        used = buffer[:, : channel.stop - start]
        parts = [x[:, channel] for x in maps]
        if difference:
            parts = [torch.sub(parts[0].to(dtype), parts[1])]
        for x, into in zip_equal(parts, used):
            _blocks(x, depth, into)
        yield channel, used.flatten(2, 4).flatten(3), matrix


def correlate(student: Tensor, teacher: Tensor, depth: int, roots: Sequence[Tensor] | None) -> Tensor:
    """Returns the sums of products of all bands (C, depth, 4, 3), as :func:`freekd_mm.losses.bands.walk.correlate`."""
    if not depth:
        return student.new_zeros(student.shape[1], 0, 4, 3, dtype=torch.promote_types(student.dtype, torch.float32))
    scale = in_blocks(roots, depth) if roots is not None else None
    found = []
    for _, rows, matrix in _parts((student, teacher), depth, difference=False):
        bands = torch.matmul(rows, matrix.T)
        if scale is not None:
            bands.mul_(scale)
        own, other = bands.transpose(2, 3), bands
        # All products of a channel's coefficients; those of one with itself are the diagonals.
        grams = [torch.bmm(own[first], other[second]) for first, second in ((0, 0), (0, 1), (1, 1))]
        found.append(torch.stack([gram.diagonal(dim1=1, dim2=2) for gram in grams], 2))
    sums = torch.cat(found) if len(found) > 1 else found[0]
    out = sums.new_zeros(len(sums), depth, 4, 3)
    start = 0
    for level, band, count in coefficients(depth):
        out[:, level, band] = sums[:, start : start + count].sum(1)
        start += count
    return out


def gradient(
    student: Tensor,
    teacher: Tensor,
    depth: int,
    roots: Sequence[Tensor] | None,
    own: Tensor,
    other: Tensor,
    out: Tensor,
) -> None:
    """Writes the gradient that has own * b + other * a in the bands, factors (C, depth, 4) each, to (N, C, H, W)."""
    if not depth:
        return
    scale = in_blocks(roots, depth) if roots is not None else None
    factors = torch.stack((own, other))
    spread = torch.cat(
        [factors[:, :, level, band, None].expand(-1, -1, count) for level, band, count in coefficients(depth)], 2
    )
    for channel, rows, matrix in _parts((student, teacher), depth, difference=False):
        mixed = spread[:, channel].unsqueeze(2)
        if scale is None:
            # All in one product per channel and map: transform, scale, transform back.
            operator = torch.matmul(matrix.T * mixed, matrix)
            result = torch.baddbmm(torch.bmm(rows[0], operator[0]), rows[1], operator[1])
        else:
            bands = torch.matmul(rows, matrix.T).mul_(scale * scale).mul_(mixed)
            result = torch.matmul(bands[0].add_(bands[1]), matrix)
        _maps(result, student[:, channel].shape, depth, out[:, channel])


def absolute(
    student: Tensor, teacher: Tensor, depth: int, weights: Sequence[Tensor], gradient: Tensor | None
) -> Tensor:
    """Does what :func:`freekd_mm.losses.bands.walk.absolute` does."""
    scale = in_blocks(weights, depth)
    batch = student.shape[0]
    scale = scale.expand(batch, *scale.shape) if len(weights[0]) < batch else scale.unflatten(0, (batch, -1))
    found = []
    for channel, rows, matrix in _parts((student, teacher), depth, difference=True):
        bands = torch.matmul(rows[0], matrix.T)
        sizes = bands.abs().unflatten(1, (batch, -1)).flatten(2).transpose(0, 1)
        found.append(torch.bmm(sizes, scale.flatten(1).unsqueeze(2)).squeeze(2))
        if gradient is not None:
            bands = bands.sign_().unflatten(1, (batch, -1)).mul_(scale).flatten(1, 2)
            _maps(torch.matmul(bands, matrix), student[:, channel].shape, depth, gradient[:, channel])
    return torch.cat(found, 1)
