"""Sums and gradients of Haar bands of all levels in one Triton kernel each. This file alone imports Triton.

A program takes one channel of one level. It reads tiles of N blocks of both maps, makes the bands in registers, and
adds up their products; for the gradient it combines the bands and transforms back. A thread has whole blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from freekd_mm.log import say
from freekd_mm.tensors import to_device

# Values of a tile of one map, a block for each thread; the most wavelet levels that fit into a thread's registers.
TILE = tl.constexpr(4096)
WARPS, MOST = 2, 3
# Differences of a gradient, over its largest value: other orders of addition, and the student's dtype.
ROUNDING = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}
#: Kinds of tensors that were compared, and whether the results agreed.
COMPARED: dict[Any, bool] = {}


@triton.jit
def _haar(x):
    """One wavelet level from pixels to bands or back, in place: (2, 2, h, w, N), rows and columns first."""
    top, bottom = tl.split(tl.permute(x, (1, 2, 3, 4, 0)))
    left, right = tl.split(tl.permute(tl.join(top + bottom, top - bottom), (4, 1, 2, 3, 0)))
    return 0.5 * tl.permute(tl.join(left + right, left - right), (0, 4, 1, 2, 3))


@triton.jit
def _bands(x, HALF: tl.constexpr):
    """Returns low, vertical, horizontal and diagonal (2, 2, h, w, N) of blocks (2 h, 2 w, N)."""
    return _haar(tl.permute(tl.reshape(x, (HALF, 2, HALF, 2, x.shape[2])), (1, 3, 0, 2, 4)))


@triton.jit
def _pixels(bands, HALF: tl.constexpr):
    """Does the opposite of _bands."""
    return tl.reshape(tl.permute(_haar(bands), (2, 0, 3, 1, 4)), (2 * HALF, 2 * HALF, bands.shape[4]))


@triton.jit
def _low(bands):
    """Returns the low band (h, w, N) of bands (2, 2, h, w, N)."""
    upper, _ = tl.split(tl.permute(bands, (1, 2, 3, 4, 0)))
    low, _ = tl.split(tl.permute(upper, (1, 2, 3, 0)))
    return low


@triton.jit
def _number():
    """Returns the numbers of the four bands, (2, 2, 1, 1, 1)."""
    return 2 * tl.arange(0, 2)[:, None, None, None, None] + tl.arange(0, 2)[None, :, None, None, None]


@triton.jit
def _size(row, SIDE: tl.constexpr):
    """Returns height, width, and the blocks of a row, of an image, and of all images; none without this channel."""
    height, width = tl.load(row + 5).to(tl.int32), tl.load(row + 6).to(tl.int32)
    across = (width + SIDE - 1) // SIDE
    area = (height + SIDE - 1) // SIDE * across
    return height, width, across, area, tl.where(tl.program_id(0) < tl.load(row + 4), tl.load(row + 3) * area, 0)


@triton.jit
def _places(row, block, SIDE: tl.constexpr, LEVEL: tl.constexpr):
    """Returns image, y, x, height, width and what is inside, for blocks (side, side, N) at a wavelet level."""
    height, width, across, area, _ = _size(row, SIDE)
    PIXELS: tl.constexpr = SIDE >> LEVEL
    image, inside = (block // area)[None, None, :].to(tl.int64), block % area
    y = (inside // across * PIXELS)[None, None, :] + tl.arange(0, PIXELS)[:, None, None]
    x = (inside % across * PIXELS)[None, None, :] + tl.arange(0, PIXELS)[None, :, None]
    height, width = (height + (1 << LEVEL) - 1) >> LEVEL, (width + (1 << LEVEL) - 1) >> LEVEL
    return image, y, x, height, width, (image < tl.load(row + 3)) & (y < height) & (x < width)


@triton.jit
def _tile(row, WHICH: tl.constexpr, like, block, SIDE: tl.constexpr):
    """Returns blocks (side, side, N) of the student (0) or the teacher (1)."""
    image, y, x, _, _, there = _places(row, block, SIDE, 0)
    strides = row + 8 + 4 * WHICH
    place = image * tl.load(strides) + tl.program_id(0) * tl.load(strides + 1) + y * tl.load(strides + 2)
    address = tl.load(row + WHICH).to(like.dtype) + place + x * tl.load(strides + 3)
    # They are not, but then a thread gets whole blocks: else values change threads by way of shared memory.
    return tl.load(tl.max_contiguous(address, (1, 1, block.shape[0])), mask=there, other=0.0).to(tl.float32)


@triton.jit
def _weights(row, values, block, WEIGHTED: tl.constexpr, SIDE: tl.constexpr, LEVEL: tl.constexpr):
    """Returns the weights of the bands of a wavelet level, (2, 2, side, side, N): 0 beyond whole blocks."""
    image, y, x, height, width, _ = _places(row, block, SIDE, LEVEL + 1)
    rows, columns = tl.load(row + 5).to(tl.int32) >> LEVEL + 1, tl.load(row + 6).to(tl.int32) >> LEVEL + 1
    there = (image < tl.load(row + 3)) & (y < rows) & (x < columns)
    weights = tl.where(there, 1.0, 0.0)[None, None]
    if WEIGHTED:
        band = (4 * image * tl.load(row + 16))[None, None] + _number()
        place = (band * height + y[None, None]) * width + x[None, None]
        address = tl.max_contiguous(tl.load(row + 17 + LEVEL).to(values.dtype) + place, (1, 1, 1, 1, block.shape[0]))
        weights = tl.load(address, mask=there[None, None], other=0.0)
    return weights


@triton.jit
def _combined(b, a, row, values, other, block, WEIGHTED: tl.constexpr, SIDE: tl.constexpr, LEVEL: tl.constexpr):
    """Returns the gradient in the bands of a wavelet level, and the low bands of b and a."""
    b, a, number = _bands(b, SIDE >> LEVEL + 1), _bands(a, SIDE >> LEVEL + 1), 4 * LEVEL + _number()
    found = tl.load(values + number) * b - tl.load(values + other + number) * a
    return _weights(row, values, block, WEIGHTED, SIDE, LEVEL) * found, _low(b), _low(a)


@triton.jit
def _write(row, values, other, student, teacher, WEIGHTED: tl.constexpr, DEPTH: tl.constexpr):
    """Writes the gradient of a channel."""
    SIDE: tl.constexpr = 1 << DEPTH
    N: tl.constexpr = TILE >> 2 * DEPTH
    _, _, _, _, blocks = _size(row, SIDE)
    for start in range(0, blocks, N):
        block = start + tl.arange(0, N)
        bands = tl.zeros((SIDE, SIDE, N), tl.float32)
        if DEPTH > 0:
            b, a = _tile(row, 0, student, block, SIDE), _tile(row, 1, teacher, block, SIDE)
            bands, b, a = _combined(b, a, row, values, other, block, WEIGHTED, SIDE, 0)
            if DEPTH > 1:
                below, b, a = _combined(b, a, row, values, other, block, WEIGHTED, SIDE, 1)
                if DEPTH > 2:
                    last, b, a = _combined(b, a, row, values, other, block, WEIGHTED, SIDE, 2)
                    below = tl.where(_number() == 0, _pixels(last, SIDE // 8)[None, None], below)
                bands = tl.where(_number() == 0, _pixels(below, SIDE // 4)[None, None], bands)
            bands = _pixels(bands, SIDE // 2)
        image, y, x, height, width, there = _places(row, block, SIDE, 0)
        place = ((image * tl.load(row + 4) + tl.program_id(0)) * height + y) * width + x
        address = tl.max_contiguous(tl.load(row + 2).to(student.dtype) + place, (1, 1, N))
        tl.store(address, bands.to(student.dtype.element_ty), mask=there)


@triton.jit
def _add(row, values, student, teacher, WEIGHTED: tl.constexpr, LEVELS: tl.constexpr, DEPTH: tl.constexpr):
    """Writes the sums of a channel."""
    SIDE: tl.constexpr = 1 << DEPTH
    N: tl.constexpr = TILE >> 2 * DEPTH
    _, _, _, _, blocks = _size(row, SIDE)
    level, bb = tl.arange(0, 4)[:, None, None, None], tl.zeros((4, 2, 2, N), tl.float32)
    ab, aa = bb, bb
    for start in range(0, blocks, N):
        block = start + tl.arange(0, N)
        b, a = _tile(row, 0, student, block, SIDE), _tile(row, 1, teacher, block, SIDE)
        for number in tl.static_range(DEPTH):
            b, a = _bands(b, SIDE >> number + 1), _bands(a, SIDE >> number + 1)
            weights, here = _weights(row, values, block, WEIGHTED, SIDE, number), level == number
            bb += tl.where(here, tl.sum(tl.sum(weights * b * b, 3), 2)[None], 0.0)
            ab += tl.where(here, tl.sum(tl.sum(weights * b * a, 3), 2)[None], 0.0)
            aa += tl.where(here, tl.sum(tl.sum(weights * a * a, 3), 2)[None], 0.0)
            b, a = _low(b), _low(a)
    level, band = tl.arange(0, 4)[:, None, None], 2 * tl.arange(0, 2)[None, :, None] + tl.arange(0, 2)[None, None, :]
    # A low band counts only at the last level.
    counts, known, place = (band > 0) | (level == DEPTH - 1), level < LEVELS, values + 3 * (4 * level + band)
    tl.store(place, tl.where(counts, tl.sum(bb, 3), 0.0), mask=known)
    tl.store(place + 1, tl.where(counts, tl.sum(ab, 3), 0.0), mask=known)
    tl.store(place + 2, tl.where(counts, tl.sum(aa, 3), 0.0), mask=known)


@triton.jit
def kernel(table, values, student, teacher, GRADIENT: tl.constexpr, WEIGHTED: tl.constexpr, LEVELS: tl.constexpr):
    """Writes sums to ``values`` (levels, C, LEVELS, 4, 3), or gradients with its factors (2, levels, C, LEVELS, 4)."""
    row, place = table + (17 + LEVELS) * tl.program_id(1), tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    other, depth = tl.num_programs(1) * tl.num_programs(0) * 4 * LEVELS, tl.load(row + 7)
    for deep in tl.static_range(LEVELS + 1):
        if depth == deep:
            if GRADIENT:
                _write(row, values + 4 * LEVELS * place, other, student, teacher, WEIGHTED, deep)
            else:
                _add(row, values + 12 * LEVELS * place, student, teacher, WEIGHTED, LEVELS, deep)


SCHEMA = '(Tensor(a!) out, Tensor? factors, Tensor[] own, Tensor[] other, Tensor[] masks, int[] depths, int most)'


@torch.library.custom_op('freekd_mm::haar_bands', mutates_args=('out',), schema=f'{SCHEMA} -> ()')
def _launch(out: Tensor, factors: Tensor | None, *given: Any) -> None:
    """Runs a program for each channel of each level; addresses, sizes and strides of the levels go in one table."""
    students, teachers, masks, depths, most = given
    gradients = students if factors is None else out.split([student.numel() for student in students])
    masks_left, rows = iter(masks), []
    for student, teacher, gradient, depth in zip(students, teachers, gradients, depths):
        own = [next(masks_left) for _ in range(depth if masks else 0)]
        row = [*(x.data_ptr() for x in (student, teacher, gradient)), *student.shape, depth]
        row += [*student.stride(), *teacher.stride(), bool(own) and len(own[0]) > 1]
        rows.append([*row, *(mask.data_ptr() for mask in own), *[0] * (most - len(own))])
    table = to_device(rows, out.new_empty(0, dtype=torch.int64))
    grid, options = (max(x.shape[1] for x in students), len(rows)), (factors is not None, bool(masks), most)
    with torch.cuda.device_of(out):
        kernel[grid](table, out if factors is None else factors, students[0], teachers[0], *options, num_warps=WARPS)


_launch.register_fake(lambda *given: None)


def _given(students: Sequence[Tensor], levels: Sequence[Any], most: int) -> list[Any]:
    masks = [mask.float().contiguous() for level in levels for mask in level.masks]
    return [list(students), [level.teacher for level in levels], masks, [level.depth for level in levels], most]


def sums_of(students: Sequence[Tensor], levels: Sequence[Any], most: int) -> Tensor:
    """Does what :func:`freekd_mm.losses.bands.distance.sums_of` does."""
    out = students[0].new_empty(len(students), max(x.shape[1] for x in students), most, 4, 3, dtype=torch.float32)
    _launch(out, None, *_given(students, levels, most))
    return out


def gradients_of(students: Sequence[Tensor], levels: Sequence[Any], factors: Tensor) -> list[Tensor]:
    """Does what :func:`freekd_mm.losses.bands.distance.gradients_of` does, in the dtype of the students."""
    sizes = [student.numel() for student in students]
    flat = students[0].new_empty(sum(sizes))
    _launch(flat, factors.contiguous(), *_given(students, levels, factors.shape[3]))
    return [part.view(student.shape) for part, student in zip(flat.split(sizes), students)]


def serve(students: Sequence[Tensor], levels: Sequence[Any], most: int, plain: Sequence[Any]) -> bool:
    """Whether these kernels can be used; the first time that such tensors come, they are compared with ``plain``."""
    dtypes = {(student.dtype, level.teacher.dtype) for student, level in zip(students, levels)}
    masked = {bool(level.masks) for level in levels if level.depth}
    if len(dtypes) > 1 or len(masked) != 1 or not set(*dtypes) <= set(ROUNDING) or most > MOST or not len(students[0]):
        return False
    key = students[0].device, most, *dtypes, *masked
    if key not in COMPARED:
        problem = _compare(students, levels, most, plain)
        if problem is None:
            return False
        if problem:
            say(f'The Triton kernels of the wavelet losses are not used: {problem}')
        COMPARED[key] = not problem
    return COMPARED[key]


def _compare(students: Sequence[Tensor], levels: Sequence[Any], most: int, plain: Sequence[Any]) -> str | None:
    """Returns what is wrong with sums and gradients, or nothing; None where values that are not finite say nothing."""
    try:
        sums, wanted = (way(students, levels, most) for way in (sums_of, plain[0]))
        if not wanted.isfinite().all():
            return None
        own, _, other = wanted.unbind(-1)
        sizes = torch.stack((own, (own * other).sqrt(), other), -1)
        agree = [bool(((sums - wanted).abs() <= 1e-3 * sizes).all())]
        factors = torch.ones_like(wanted[..., :2]).movedim(4, 0)
        for x, y in zip(*(way(students, levels, factors) for way in (gradients_of, plain[1]))):
            agree.append(bool((x - y).abs().max() <= ROUNDING[x.dtype] * y.abs().max()))
    except Exception as error:
        return f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'
    return '' if all(agree) else 'their results differ from those of plain PyTorch'
