"""Sums and gradients of Haar bands on any device, in few calls: square blocks of pixels times one orthogonal matrix.

Haar is local: the bands of ``depth`` levels of a map are those of its blocks of 2^depth x 2^depth pixels, and those of
a block x are H x with one matrix H, its rows in the order of :func:`coefficients`. With H_k the rows of band k and
P_k = H_k^T H_k, sums of products of bands need no bands, and neither does a gradient:

    sum over blocks of (H_k x) . (H_k y) = <P_k, sum of x y^T>,    sum_k f_k H_k^T (H_k x) = (sum_k f_k P_k) x

That makes a few large calls where a transform by levels makes many small ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from freekd_mm.compat.versions import cache

# Values of one map in a block of channels: little memory beside the gradient.
BLOCK = 5 * 2**19


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


def to_device(values: Sequence, like: Tensor) -> Tensor:
    """Returns numbers as a tensor like another, without waiting for the device."""
    found = torch.as_tensor(values, dtype=like.dtype)
    return found.pin_memory().to(like.device, non_blocking=True) if like.is_cuda else found.to(like.device)


@cache
def _segments(depth: int) -> np.ndarray:
    """Returns which rows of the matrix are those of which band, (4 * depth, 4^depth) of 0 and 1; 4 bands a level."""
    found, start = np.zeros((4 * depth, 4**depth)), 0
    for level, band, count in coefficients(depth):
        found[4 * level + band, start : start + count] = 1
        start += count
    return found


@cache
def _projectors(depth: int) -> np.ndarray:
    """Returns P of each band, (4 * depth, 4^depth, 4^depth)."""
    return np.einsum('kr,ri,rj->kij', _segments(depth), _haar(depth), _haar(depth))


@cache
def _products(depth: int) -> np.ndarray:
    """Returns what takes bb, ab and aa of each band (12 * depth) from the products of (b, a) with (b, a)."""
    found = np.zeros((4 * depth, 3, 2, 4**depth, 2, 4**depth))
    for index, (first, second) in enumerate(((0, 0), (0, 1), (1, 1))):
        found[:, index, first, :, second] = _projectors(depth)
    return found.reshape(12 * depth, -1)


@cache
def _constant(table: Callable[[int], np.ndarray], depth: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Returns one of the tables above on a device, where it stays."""
    return torch.as_tensor(table(depth), dtype=dtype, device=device)


def _blocks(x: Tensor, side: int, out: Tensor) -> None:
    """Copies x (N, C, H, W) to blocks (C, N, rows, columns, side, side); below it they are left as they are."""
    if x.shape[3] % side:
        x = F.pad(x, (0, -x.shape[3] % side, 0, -x.shape[2] % side))
    view, (whole, rest) = out.permute(1, 0, 2, 4, 3, 5), divmod(x.shape[2], side)
    columns = x.shape[3] // side
    view[:, :, :whole] = x[:, :, : whole * side].unflatten(2, (whole, side)).unflatten(-1, (columns, side))
    if rest:
        view[:, :, whole, :rest] = x[:, :, whole * side :].unflatten(-1, (columns, side))


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
    height, width = weights[-1].shape[2:]
    parts = []
    for level, weight in enumerate(weights):
        side = 2 ** (depth - level - 1)
        weight = weight[:, 1:] if level < depth - 1 else weight.roll(-1, 1)
        weight = F.pad(weight, (0, width * side - weight.shape[3], 0, height * side - weight.shape[2]))
        squares = weight.unflatten(3, (width, side)).unflatten(2, (height, side))
        parts.append(squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(0, 2))
    return torch.cat(parts, 1)


def _parts(maps: Sequence[Tensor], depth: int, difference: bool = False) -> Iterator[tuple[slice, Tensor]]:
    """Yields a slice of the channels and the blocks of its maps, (k, blocks, maps, 4^depth) in one buffer."""
    batch, channels, height, width = maps[0].shape
    side = 2**depth
    grid = -(-height // side), -(-width // side)
    count = -(-channels // max(1, min(channels, BLOCK // max(batch * height * width, 1))))
    planes = -(-channels // count)
    dtype = torch.promote_types(maps[0].dtype, torch.float32)
    buffer = maps[0].new_empty(planes, batch, *grid, 1 if difference else len(maps), side, side, dtype=dtype)
    if height % side and not width % side:
        # Below the maps lie zeros, and stay.
        buffer[:, :, -1, ..., height % side :, :].zero_()
    for start in range(0, channels, planes):
        channel = slice(start, min(start + planes, channels))
        used = buffer[: channel.stop - start]
        parts = [x[:, channel] for x in maps]
        for index, x in enumerate([torch.sub(parts[0].to(dtype), parts[1])] if difference else parts):
            _blocks(x, side, used[..., index, :, :])
        yield channel, used.flatten(5).flatten(1, 3)


def correlate(student: Tensor, teacher: Tensor, depth: int, roots: Sequence[Tensor] | None) -> Tensor:
    """Returns the sums of products of all bands (C, depth, 4, 3), as :func:`freekd_mm.losses.bands.walk.correlate`."""
    dtype = torch.promote_types(student.dtype, torch.float32)
    if not depth:
        return student.new_zeros(student.shape[1], 0, 4, 3, dtype=dtype)
    like = student.new_empty(0, dtype=dtype)
    out = like.new_empty(student.shape[1], 4 * depth, 3)
    bands_of = _constant(_products if roots is None else _segments, depth, like.device, dtype)
    scale = in_blocks(roots, depth).unsqueeze(1) if roots is not None else None
    matrix = _constant(_haar, depth, like.device, dtype) if roots is not None else None
    for channel, rows in _parts((student, teacher), depth):
        if matrix is None or scale is None:
            flat = rows.flatten(2)
            grams = torch.bmm(flat.transpose(1, 2), flat).flatten(1)
            out[channel] = torch.matmul(grams, bands_of.T).unflatten(1, (4 * depth, 3))
        else:
            bands = torch.matmul(rows, matrix.T).mul_(scale)
            own, other = bands.unbind(2)
            pairs = torch.stack([(x * y).sum(1) for x, y in ((own, own), (own, other), (other, other))], 1)
            out[channel] = torch.matmul(pairs, bands_of.T).transpose(1, 2)
    return out.unflatten(1, (depth, 4))


def gradient(
    student: Tensor,
    teacher: Tensor,
    depth: int,
    roots: Sequence[Tensor] | None,
    factors: Tensor,
    out: Tensor,
) -> None:
    """Writes the gradient that has own * b + other * a in the bands to (N, C, H, W), factors (2, C, depth, 4)."""
    if not depth:
        return
    size, factors = 4**depth, factors.flatten(2).transpose(0, 1)
    if roots is None:
        bands_of = _constant(_projectors, depth, factors.device, factors.dtype).flatten(1)
    else:
        scale = in_blocks(roots, depth).square().unsqueeze(1)
        matrix = _constant(_haar, depth, factors.device, factors.dtype)
        spread = torch.matmul(factors, _constant(_segments, depth, factors.device, factors.dtype))
    for channel, rows in _parts((student, teacher), depth):
        if roots is None:
            operator = torch.matmul(factors[channel], bands_of).view(-1, 2 * size, size)
            result = torch.bmm(rows.flatten(2), operator)
        else:
            bands = torch.matmul(rows, matrix.T).mul_(scale).mul_(spread[channel].unsqueeze(1))
            result = torch.matmul(bands.sum(2), matrix)
        _maps(result, student[:, channel].shape, depth, out[:, channel])


def absolute(
    student: Tensor, teacher: Tensor, depth: int, weights: Sequence[Tensor], gradient: Tensor | None
) -> Tensor:
    """Does what :func:`freekd_mm.losses.bands.walk.absolute` does."""
    scale = in_blocks(weights, depth)
    batch = student.shape[0]
    scale = scale.expand(batch, *scale.shape) if len(weights[0]) < batch else scale.unflatten(0, (batch, -1))
    found = []
    matrix = _constant(_haar, depth, scale.device, scale.dtype)
    for channel, rows in _parts((student, teacher), depth, difference=True):
        bands = torch.matmul(rows[:, :, 0], matrix.T)
        sizes = bands.abs().unflatten(1, (batch, -1)).flatten(2).transpose(0, 1)
        found.append(torch.bmm(sizes, scale.flatten(1).unsqueeze(2)).squeeze(2))
        if gradient is not None:
            bands = bands.sign_().unflatten(1, (batch, -1)).mul_(scale).flatten(1, 2)
            _maps(torch.matmul(bands, matrix), student[:, channel].shape, depth, gradient[:, channel])
    return torch.cat(found, 1)
