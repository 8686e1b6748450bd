"""Sums and gradients of Haar bands of all levels in one Triton kernel each. This file alone imports Triton.

A program takes one channel of one level. It reads tiles of some blocks of both maps, makes the bands in registers, and
adds up their products; for the gradient it combines the bands and transforms back. A tile has the rows of a block and
the columns of several; a coefficient stays in its place as in :mod:`freekd_mm.frequency.blocks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from freekd_mm.frequency.blocks import in_place
from freekd_mm.log import say
from freekd_mm.tensors import to_device

# Values of a tile of one map, and the most wavelet levels: more would not fit into registers.
TILE = 1024
MOST = 4
DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
# Differences of a gradient, over its largest value: other orders of addition, and the student's dtype.
ROUNDING = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}
#: Kinds of tensors that were compared, and whether the results agreed.
COMPARED: dict[Any, bool] = {}


@triton.jit
def _butterflies(x, STEP: tl.constexpr, TILE: tl.constexpr):
    """Sum and difference of what lies STEP apart, in place, for values (TILE,)."""
    pairs = tl.permute(tl.reshape(x, (TILE // (2 * STEP), 2, STEP)), (0, 2, 1))
    first, second = tl.split(pairs)
    return tl.reshape(tl.permute(tl.join(first + second, first - second), (0, 2, 1)), (TILE,))


@triton.jit
def _step(x, bits, depth, LEVEL: tl.constexpr, LEVELS: tl.constexpr, TILE: tl.constexpr):
    """One wavelet level of a tile, in place; it is its own inverse."""
    both = _butterflies(_butterflies(x, 1 << LEVEL, TILE), (TILE >> LEVELS) << LEVEL, TILE)
    is_low = (bits & ((1 << LEVEL) - 1)) == 0
    return tl.where(is_low & (depth > LEVEL), 0.5 * both, x)


@triton.jit
def _band(rows, columns, depth, LEVELS: tl.constexpr):
    """Returns 4 * level + band of the coefficients at rows and columns of a block; less than 0 without levels."""
    found = 4 * (depth - 1) + 0 * rows
    for level in tl.static_range(LEVELS - 1, -1, -1):
        band = 2 * ((rows >> level) & 1) + ((columns >> level) & 1)
        found = tl.where((band > 0) & (depth > level), 4 * level + band, found)
    return found


@triton.jit
def _size(row, channel, LEVELS: tl.constexpr):
    """Returns H, W, the blocks of a column, of a row, and of all images; none for a channel that is not there."""
    height, width = tl.load(row + 6).to(tl.int32), tl.load(row + 7).to(tl.int32)
    high, wide = (height + (1 << LEVELS) - 1) >> LEVELS, (width + (1 << LEVELS) - 1) >> LEVELS
    count = tl.load(row + 4).to(tl.int32) * high * wide
    return height, width, high, wide, tl.where(channel < tl.load(row + 5), count, 0)


@triton.jit
def _pixels(start, high, wide, LEVELS: tl.constexpr, TILE: tl.constexpr):
    """Returns image, top of the block and x, (1, columns) each, of a tile whose first block is number ``start``."""
    column = tl.arange(0, TILE >> LEVELS)
    block = start + (column >> LEVELS)
    inside = block % (high * wide)
    x = (inside % wide << LEVELS) + (column & ((1 << LEVELS) - 1))
    image, top = block // (high * wide), inside // wide << LEVELS
    return image.to(tl.int64)[None, :], top.to(tl.int64)[None, :], x.to(tl.int64)[None, :]


@triton.jit
def _bands(row, WHICH: tl.constexpr, at, fits, bits, DTYPE: tl.constexpr, LEVELS: tl.constexpr, TILE: tl.constexpr):
    """Returns the bands of a tile of the student (0) or the teacher (1), (TILE,)."""
    channel, image, top, x, y = at
    strides, depth = row + 9 + 4 * WHICH, tl.load(row + 8).to(tl.int32)
    place = image * tl.load(strides) + channel * tl.load(strides + 1)
    place += top * tl.load(strides + 2) + x * tl.load(strides + 3)
    address = tl.load(row + WHICH).to(tl.pointer_type(DTYPE)) + place
    values = tl.load(address + y * tl.load(strides + 2), mask=fits, other=0.0)
    found = tl.reshape(values.to(tl.float32), (TILE,))
    for level in tl.static_range(LEVELS):
        found = _step(found, bits, depth, level, LEVELS, TILE)
    return found


@triton.jit
def _weights(row, at, height, width, depth, TILE: tl.constexpr):
    """Returns the weights of the coefficients of a tile (TILE,); their map ends with a block of this level's depth."""
    _, image, top, x, y = at
    side = 1 << depth
    high, wide = (height + side - 1) // side * side, (width + side - 1) // side * side
    address = tl.load(row + 2).to(tl.pointer_type(tl.float32)) + (image * high + top) * wide + x
    fits = (image < tl.load(row + 4)) & (x < wide) & (y < high - top) & (depth > 0)
    return tl.reshape(tl.load(address + y * wide, mask=fits, other=0.0), (TILE,))


@triton.jit
def kernel(
    table,
    values,
    channels,
    GRADIENT: tl.constexpr,
    STUDENT: tl.constexpr,
    TEACHER: tl.constexpr,
    WEIGHTED: tl.constexpr,
    LEVELS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Does one channel of one level.

    Writes the sums of bb, ab and aa to ``values`` (levels, C, LEVELS, 4, 3); or the gradient to the address in the
    table, with the factors in ``values`` (2, levels, C, LEVELS, 4).
    """
    channel, index = tl.program_id(0), tl.program_id(1)
    row = table + 17 * index
    depth = tl.load(row + 8).to(tl.int32)
    rows, columns = tl.arange(0, TILE) // (TILE >> LEVELS), tl.arange(0, TILE) & ((1 << LEVELS) - 1)
    height, width, high, wide, blocks = _size(row, channel, LEVELS)
    y = tl.arange(0, 1 << LEVELS)[:, None]
    band, place = _band(rows, columns, depth, LEVELS), (index * channels + channel) * 4 * LEVELS
    own, cross, other = tl.zeros((TILE,), tl.float32), tl.zeros((TILE,), tl.float32), tl.zeros((TILE,), tl.float32)
    if GRADIENT:
        own = tl.load(values + place + band, mask=band >= 0, other=0.0)
        place += tl.num_programs(1) * channels * 4 * LEVELS
        other = tl.load(values + place + band, mask=band >= 0, other=0.0)
    weights = tl.full((TILE,), 1.0, tl.float32)
    for start in range(0, blocks, TILE >> 2 * LEVELS):
        image, top, x = _pixels(start, high, wide, LEVELS, TILE)
        at = channel, image, top, x, y
        fits = (image < tl.load(row + 4)) & (x < width) & (y < height - top)
        b = _bands(row, 0, at, fits, rows | columns, STUDENT, LEVELS, TILE)
        a = _bands(row, 1, at, fits, rows | columns, TEACHER, LEVELS, TILE)
        if WEIGHTED:
            weights = _weights(row, at, height, width, depth, TILE)
        if GRADIENT:
            bands = weights * (own * b - other * a)
            for level in tl.static_range(LEVELS - 1, -1, -1):
                bands = _step(bands, rows | columns, depth, level, LEVELS, TILE)
            address = ((image * tl.load(row + 5) + channel) * height + top) * width + x + y * width
            tile = tl.reshape(bands, (1 << LEVELS, TILE >> LEVELS)).to(STUDENT)
            tl.store(tl.load(row + 3).to(tl.pointer_type(STUDENT)) + address, tile, mask=fits)
        else:
            own += weights * b * b
            cross += weights * b * a
            other += weights * a * a
    if not GRADIENT:
        for number in tl.static_range(4 * LEVELS):
            found = values + 3 * (place + number)
            tl.store(found, tl.sum(tl.where(band == number, own, 0.0), 0))
            tl.store(found + 1, tl.sum(tl.where(band == number, cross, 0.0), 0))
            tl.store(found + 2, tl.sum(tl.where(band == number, other, 0.0), 0))


SCHEMA = (
    '(Tensor(a!) out, Tensor? factors, Tensor[] students, Tensor[] teachers, Tensor[] maps, int[] depths, int most)'
)


@torch.library.custom_op('freekd_mm::haar_bands', mutates_args=('out',), schema=f'{SCHEMA} -> ()')
def _launch(out: Tensor, factors: Tensor | None, *given: Any) -> None:
    """Runs a program for each channel of each level; addresses, sizes and strides of the levels go in one table."""
    students, teachers, maps, depths, most = given
    sizes, rows = [student.numel() for student in students], []
    gradients = out.split(sizes) if factors is not None else ()
    for index, (student, teacher, depth) in enumerate(zip(students, teachers, depths)):
        addresses = (some[index].data_ptr() if some else 0 for some in (students, teachers, maps, gradients))
        rows.append([*addresses, *student.shape, depth, *student.stride(), *teacher.stride()])
    table, channels = to_device(rows, out.new_empty(0, dtype=torch.int64)), max(x.shape[1] for x in students)
    options = DTYPES[students[0].dtype], DTYPES[teachers[0].dtype], bool(maps), most, max(TILE, 4**most)
    values, gradient = (out, False) if factors is None else (factors, True)
    with torch.cuda.device_of(out):
        kernel[(channels, len(rows))](table, values, channels, gradient, *options)


_launch.register_fake(lambda *given: None)


def _given(students: Sequence[Tensor], levels: Sequence[Any], most: int) -> list[Any]:
    maps = []
    if any(level.masks is not None for level in levels):
        for student, level in zip(students, levels):
            masks = [mask.float().unsqueeze(1).unbind(2) for mask in level.masks or ()]
            maps.append(in_place(masks, student.shape[2:]) if masks else student.new_empty(0))
    return [list(students), [level.teacher for level in levels], maps, [level.depth for level in levels], most]


def sums_of(students: Sequence[Tensor], levels: Sequence[Any], most: int) -> Tensor:
    """Does what :func:`freekd_mm.losses.bands.distance.sums_of` does."""
    shape = len(students), max(x.shape[1] for x in students), most, 4, 3
    out = students[0].new_empty(shape, dtype=torch.float32)
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
    masked = {level.masks is not None for level in levels if level.depth}
    if len(dtypes) > 1 or len(masked) != 1 or not set(*dtypes) <= set(DTYPES) or most > MOST or not len(students[0]):
        return False
    key = students[0].device, most, *dtypes, *masked
    if key not in COMPARED:
        problem = _compare(students, levels, most, plain)
        if problem:
            say(f'The Triton kernels of the wavelet losses are not used: {problem}')
        COMPARED[key] = not problem
    return COMPARED[key]


def _compare(students: Sequence[Tensor], levels: Sequence[Any], most: int, plain: Sequence[Any]) -> str:
    """Returns what is wrong with sums and gradients, or nothing."""
    try:
        sums, wanted = (way(students, levels, most) for way in (sums_of, plain[0]))
        own, _, other = wanted.unbind(-1)
        sizes = torch.stack((own, (own * other).sqrt(), other), -1)
        agree = [bool(((sums - wanted).abs() <= 1e-3 * sizes).all())]
        factors = torch.ones_like(wanted[..., :2]).movedim(4, 0)
        for x, y in zip(*(way(students, levels, factors) for way in (gradients_of, plain[1]))):
            agree.append(bool((x - y).abs().max() <= ROUNDING[x.dtype] * y.abs().max()))
    except Exception as error:
        return f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'
    return '' if all(agree) else 'their results differ from those of plain PyTorch'
