"""Time and memory of the Haar transform against pytorch_wavelets and ptwt, beside a copy of the same bytes.

Forward and backward of three levels at the shapes of a COCO feature pyramid (batch 2, 256 channels). The rows of a
run take turns in rounds, so that what else the machine does hits them alike; compare the ratios, not the milliseconds.
On glibc most of a CPU time can be page faults of fresh memory; MALLOC_MMAP_THRESHOLD_=1000000000 and
MALLOC_TRIM_THRESHOLD_=2000000000 in the environment keep freed memory and show the rest.

    pip install pytorch_wavelets
    python benchmarks/frequency.py --threads 1
"""

import argparse
import statistics
import time
from collections.abc import Callable

import ptwt
import torch
import torch.nn.functional as F
from torch import Tensor

from freekd_mm.frequency import dwt2d

SHAPES = ((100, 168), (50, 84), (25, 42), (13, 21), (7, 11))
LEVELS = 3
CLOCKS = {'wall': time.perf_counter, 'cpu': time.process_time}
Transform = Callable[[Tensor], list[Tensor]]


def ours(x: Tensor) -> list[Tensor]:
    """Bands by this package."""
    bands = dwt2d(x, LEVELS)
    return [bands.low, *(band for detail in bands.high for band in detail)]


def by_ptwt(x: Tensor) -> list[Tensor]:
    """Bands by ptwt."""
    low, *high = ptwt.wavedec2(x, 'haar', mode='zero', level=LEVELS)
    return [low, *(band for detail in high for band in detail)]


def copy(x: Tensor) -> list[Tensor]:
    """The floor: whatever returns as much as it reads costs at least a copy, forward and backward."""
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


def run(transform: Transform, x: Tensor, grads: list[Tensor]) -> None:
    """Runs one transform forward and backward."""
    torch.autograd.backward(transform(x), grads)
    x.grad = None


def seconds(function: Callable[[], None], device: torch.device, clock: Callable[[], float]) -> float:
    """Returns how long a call takes."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    start = clock()
    function()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return clock() - start


def peak_bytes(function: Callable[[], None], device: torch.device) -> int:
    """Returns the most memory that a call holds at a time beyond what was held before."""
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    held = peak = 0
    events = profile.profiler.kineto_results.events()
    for event in sorted((event for event in events if event.name() == '[memory]'), key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def main() -> None:
    """Prints one Markdown table for a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--repeats', type=int, default=5, help='calls in a round, after one that does not count')
    parser.add_argument('--batch', type=int, default=2)
    parser.add_argument('--channels', type=int, default=256)
    parser.add_argument('--ways', action='store_true', help='other ways to compute one level, in place of packages')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument(
        '--clock',
        choices=CLOCKS,
        default='wall',
        help="'cpu' counts this process alone, which is what can be told with one thread on a busy machine",
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    shapes, levels = SHAPES, LEVELS
    rows: dict[str, Transform] = {'copy (floor)': copy, 'freekd_mm': ours, 'ptwt': by_ptwt}
    if args.ways:
        shapes, levels = ((100, 168), (50, 84)), 1
        rows = {
            'copy (floor)': copy,
            'freekd_mm': one_level,
            'strided phases': by_phases,
            'pixel_unshuffle alone': by_shuffle,
            'stride-2 convolution': by_convolution,
            'product along the width': by_matrix,
        }
    else:
        rows['pytorch_wavelets'] = by_pytorch_wavelets(device)
    times: dict[str, list[list[float]]] = {name: [] for name in rows}
    peaks: dict[str, list[float]] = {name: [] for name in rows}
    for height, width in shapes:
        x = torch.randn(args.batch, args.channels, height, width, device=device, requires_grad=True)
        jobs: dict[str, Callable[[], None]] = {}
        for name, transform in rows.items():
            grads = [torch.randn_like(band) for band in transform(x)]
            jobs[name] = lambda transform=transform, x=x, grads=grads: run(transform, x, grads)
        taken: dict[str, list[float]] = {name: [] for name in rows}
        for _ in range(args.rounds):
            for name, job in jobs.items():
                job()
                taken[name] += [seconds(job, device, CLOCKS[args.clock]) for _ in range(args.repeats)]
        for name, job in jobs.items():
            times[name].append(taken[name])
            peaks[name].append(peak_bytes(job, device) / (x.numel() * x.element_size()))
    print(
        f'forward + backward, haar, {levels} level(s), batch {args.batch}, {args.channels} channels, {device}, '
        f'{args.threads} thread(s), {args.clock} clock, median of {args.rounds} x {args.repeats}, '
        f'PyTorch {torch.__version__}\n'
    )
    print_table(shapes, times, peaks)


def print_table(
    shapes: tuple[tuple[int, int], ...], times: dict[str, list[list[float]]], peaks: dict[str, list[float]]
) -> None:
    """Prints median milliseconds a shape and in all, ratios and peak memory in units of the input."""
    sizes = ' | '.join(f'{height}x{width} (ms)' for height, width in shapes)
    print(f'| | {sizes} | all (ms) | x copy | x freekd_mm | peak memory at {shapes[0][0]}x{shapes[0][1]} (inputs) |')
    print('| --- |' + ' ---: |' * (len(shapes) + 4))
    medians = {name: [statistics.median(shape) * 1e3 for shape in taken] for name, taken in times.items()}
    totals = {name: sum(values) for name, values in medians.items()}
    for name, values in medians.items():
        cells = ' | '.join(f'{value:.2f}' for value in values)
        floor, own = totals[name] / totals['copy (floor)'], totals[name] / totals['freekd_mm']
        print(f'| {name} | {cells} | {totals[name]:.1f} | {floor:.2f} | {own:.2f} | {peaks[name][0]:.2f} |')


if __name__ == '__main__':
    main()
