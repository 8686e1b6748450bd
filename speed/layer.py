"""The Haar transform against pytorch_wavelets and ptwt, beside a copy of the same bytes.

Forward and backward of three levels at the shapes of a COCO feature pyramid (batch 2, 256 channels). On glibc most of
a CPU time can be page faults of fresh memory; MALLOC_MMAP_THRESHOLD_=1000000000 and
MALLOC_TRIM_THRESHOLD_=2000000000 in the environment keep freed memory and show the rest.
"""

from __future__ import annotations

from typing import Callable, List

import torch
import torch.nn.functional as F
from torch import Tensor

from freekd_mm.compat.versions import zip_equal
from freekd_mm.frequency import dwt2d
from speed.loss import QUICK_SHAPES, SHAPES
from speed.tables import Report
from speed.timing import Job, Options, Spread, peak_bytes, take_turns

LEVELS = 3
Transform = Callable[[Tensor], List[Tensor]]


def ours(x: Tensor) -> list[Tensor]:
    """Bands by this package."""
    bands = dwt2d(x, LEVELS)
    return [bands.low, *(band for detail in bands.high for band in detail)]


def by_ptwt(x: Tensor) -> list[Tensor]:
    """Bands by ptwt."""
    import ptwt

    low, *high = ptwt.wavedec2(x, 'haar', mode='zero', level=LEVELS)
    return [low, *(band for detail in high for band in detail)]


def copy(x: Tensor) -> list[Tensor]:
    """The floor: what returns as much as it reads costs at least a copy, forward and backward."""
    return [x.clone()]


def by_pytorch_wavelets(device: torch.device) -> Transform:
    """Bands by pytorch_wavelets."""
    from pytorch_wavelets import DWTForward

    transform = DWTForward(J=LEVELS, wave='haar', mode='zero').to(device)

    def bands(x: Tensor) -> list[Tensor]:
        low, high = transform(x)
        return [low, *high]

    return bands


def by_phases(x: Tensor) -> list[Tensor]:
    """One level by adds of the four strided phases."""
    a, b, c, d = x[..., 0::2, 0::2], x[..., 0::2, 1::2], x[..., 1::2, 0::2], x[..., 1::2, 1::2]
    top, bottom, top_difference, bottom_difference = a + b, c + d, a - b, c - d
    return [
        (top + bottom) * 0.5,
        (top - bottom) * 0.5,
        (top_difference + bottom_difference) * 0.5,
        (top_difference - bottom_difference) * 0.5,
    ]


def by_convolution(x: Tensor) -> list[Tensor]:
    """One level by one convolution of stride 2."""
    signs = torch.tensor([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]], dtype=x.dtype, device=x.device)
    return [F.conv2d(x.flatten(0, 1)[:, None], 0.5 * signs.view(4, 1, 2, 2), stride=2)]


def by_matrix(x: Tensor) -> list[Tensor]:
    """One level along the width alone, by a product with the Haar matrix."""
    width = x.shape[-1]
    pair = torch.tensor([[1, 1], [1, -1]], dtype=x.dtype, device=x.device) * 0.5**0.5
    return [x @ torch.block_diag(*[pair] * (width // 2))]


def by_shuffle(x: Tensor) -> list[Tensor]:
    """Nothing but the sorting of pixels into phases."""
    return [F.pixel_unshuffle(x, 2)]


def one_level(x: Tensor) -> list[Tensor]:
    """One level by this package."""
    bands = dwt2d(x, 1)
    return [bands.low, *bands.high[0]]


def job_of(transform: Transform, x: Tensor) -> Job:
    """Returns a call of the transform, forward and backward."""
    grads = [torch.randn_like(band) for band in transform(x)]

    def run() -> None:
        torch.autograd.backward(transform(x), grads)
        x.grad = None

    return run


def measure(options: Options) -> Report:
    """Measures whole transforms, then ways to compute one level."""
    report = Report('layer', 'Frequency layer')
    channels = 16 if options.quick else 256
    shapes = QUICK_SHAPES if options.quick else SHAPES
    report.say(f'Haar, forward and backward, batch 2, {channels} channels.')
    packages = {'copy (floor)': copy, 'freekd_mm': ours, 'ptwt': by_ptwt}
    packages['pytorch_wavelets'] = by_pytorch_wavelets(options.device)
    _compare(report, f'{LEVELS} levels', packages, shapes, channels, options)
    ways = {
        'copy (floor)': copy,
        'freekd_mm': one_level,
        'strided phases': by_phases,
        'pixel_unshuffle alone': by_shuffle,
        'stride-2 convolution': by_convolution,
        'product along the width': by_matrix,
    }
    even = ((16, 24),) if options.quick else SHAPES[:2]
    _compare(report, '1 level', ways, even, channels, options)
    return report


def _compare(
    report: Report,
    title: str,
    rows: dict[str, Transform],
    shapes: tuple[tuple[int, int], ...],
    channels: int,
    options: Options,
) -> None:
    """Adds a table of some transforms: each shape by itself, and all shapes of a round together."""
    seconds: dict[str, list[list[float]]] = {name: [] for name in rows}
    peaks: dict[str, float] = {}
    for shape in shapes:
        x = torch.randn(2, channels, *shape, device=options.device, requires_grad=True)
        jobs = {name: job_of(transform, x) for name, transform in rows.items()}
        turns = take_turns(jobs, options.with_at_most(5), repeats=5)
        for name, job in jobs.items():
            seconds[name].append(turns.seconds[name])
            peaks.setdefault(name, peak_bytes(job, options.device) / (x.numel() * x.element_size()))
    totals = {name: [sum(each) for each in zip_equal(*of_shapes)] for name, of_shapes in seconds.items()}
    table = []
    for name, total in totals.items():
        relative = {
            other: Spread.of(own / its for own, its in zip_equal(total, totals[other]))
            for other in ('copy (floor)', 'freekd_mm')
        }
        each = [f'{Spread.of(of_shape).median * 1e3:.2f}' for of_shape in seconds[name]]
        table.append([name, *each, *relative.values(), f'{peaks[name]:.2f}'])
        report.record(
            f'{name}, {title}',
            milliseconds=Spread.of(total).times(1e3),
            times_copy=relative['copy (floor)'],
            times_freekd_mm=relative['freekd_mm'],
            peak_inputs=round(peaks[name], 3),
        )
    sizes = [f'{height}x{width} (ms)' for height, width in shapes]
    report.table([title, *sizes, 'x copy', 'x freekd_mm', 'peak memory of the first (inputs)'], table)
