"""Kernels, bytes and memory of every loss on an accelerator, counted without one."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from freekd_mm.compat.versions import torch_at_least
from freekd_mm.connectors.fam import FAMConnector
from freekd_mm.losses import (
    DCTAttentionLoss,
    FeatureMSELoss,
    FiGKDLoss,
    FreeKDLoss,
    FreeKDPlusLoss,
    WaveletLoss,
)
from freekd_mm.losses.bands import distance
from speed.accelerator import Launches, accelerator, apart, available, count, move
from speed.loss import QUICK_SHAPES, SHAPES, save_random_prompt
from speed.tables import Report
from speed.timing import Job, Options, Spread

CLASSES = 80
#: The most kernels, sizes of traffic and sizes of memory of WaveletLoss.
TARGETS = {'WaveletLoss': (200, 25.0, 1.5), 'WaveletLoss, Triton': (30, 7.0, 1.5)}


class _Adapted(nn.Module):
    """FAM on the student, and an MSE."""

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__()
        self.connector, self.loss = FAMConnector(channels, channels, num_levels=levels), FeatureMSELoss()

    def forward(self, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
        """Returns the loss."""
        return self.loss(self.connector(tuple(students)), teachers)


def losses(channels: int, levels: int) -> dict[str, Any]:
    """Returns what is counted, on the CPU; FiGKD and MSE have no parameters and take any channels."""
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / 'prompt.pth')
        save_random_prompt(Path(file), levels, 2, channels)
        return {
            'plain MSE': FeatureMSELoss(),
            'WaveletLoss': WaveletLoss(channels),
            'WaveletLoss, Triton': WaveletLoss(channels),
            'WaveletLoss, masks': WaveletLoss(channels, prompt=file),
            'WaveletLoss, masks, Triton': WaveletLoss(channels, prompt=file),
            'FreeKDLoss, paper': FreeKDLoss(channels, prompt=file),
            'FreeKDLoss, paper, no relation': FreeKDLoss(channels, relation=None, prompt=file),
            'FreeKDLoss, code': FreeKDLoss(channels, mode='code', prompt=file),
            'FreeKDPlusLoss, masks': FreeKDPlusLoss(channels, prompt=file),
            'DCTAttentionLoss': DCTAttentionLoss(),
            'FiGKDLoss, 80 classes': FiGKDLoss(),
            'FAM and MSE': _Adapted(channels, levels),
        }


def has_triton() -> bool:
    """Whether the kernels of the losses on wavelet bands can be loaded."""
    return torch_at_least(2, 4) and find_spec('triton') is not None


@apart
def counted(
    shapes: Sequence[Sequence[int]], channels: int, only: Sequence[str] | None = None
) -> dict[str, tuple[Launches, int]]:
    """Returns the launches of each loss, forward and backward, and the bytes of the student's features."""
    found = {}
    for name, loss in losses(channels, len(shapes)).items():
        if (only is not None and name not in only) or ('Triton' in name and not has_triton()):
            continue
        width = width_of(name, channels)
        with way_of(name), accelerator() as device:
            move(loss, device)
            students = [torch.empty(2, width, *shape, device=device, requires_grad=True) for shape in shapes]
            teachers = [torch.empty(2, width, *shape, device=device) for shape in shapes]
            size = sum(student.numel() * student.element_size() for student in students)
            found[name] = count(job_of(loss, students, teachers)), size
    return found


def width_of(name: str, channels: int) -> int:
    """Returns the channels of what a loss of this name compares."""
    return CLASSES if 'classes' in name else channels


def job_of(loss: Any, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Job:
    """Returns a call of a loss, forward and backward."""
    sources = [*students, *(parameter for parameter in loss.parameters() if parameter.requires_grad)]
    return lambda: torch.autograd.grad(loss(students, teachers), sources, allow_unused=True)


@contextlib.contextmanager
def way_of(name: str) -> Iterator[None]:
    """Makes the losses on wavelet bands use Triton's kernels if the name says so, else plain PyTorch."""
    usual, way = distance._way, (distance.sums_of, distance.gradients_of)
    if 'Triton' in name:
        from freekd_mm.losses.bands import kernels

        way = kernels.sums_of, kernels.gradients_of
    distance._way = lambda *_: way
    try:
        yield
    finally:
        distance._way = usual


def measure(options: Options) -> Report:
    """Counts the launches of each loss."""
    report = Report('launches', 'Kernel launches')
    if not available():
        report.say('This PyTorch cannot register a device in Python: nothing is counted.')
        return report
    shapes, channels = (QUICK_SHAPES, 16) if options.quick else (SHAPES, 256)
    report.say(
        f'Counted, not timed: forward and backward, {len(shapes)} levels from {shapes[0]}, batch 2, {channels} '
        "channels. A size is that of the student's features."
    )
    rows = []
    for name, (launches, size) in counted(shapes, channels).items():
        kernels, traffic, peak = launches.kernels, launches.bytes / size, launches.peak / size
        rows.append([name, kernels, f'{traffic:.1f}', f'{peak:.2f}'])
        report.record(name, kernels=kernels, traffic=round(traffic, 2), peak=round(peak, 3))
        for what, wanted, value in zip(
            ('kernels', 'traffic', 'memory'), TARGETS.get(name, ()), (kernels, traffic, peak)
        ):
            report.target(f'{name}: {what}', Spread.exactly(value), at_most=wanted)
    report.table(['', 'kernels', 'traffic (sizes)', 'memory beside the inputs (sizes)'], rows)
    return report
