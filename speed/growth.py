"""How time and memory grow with batch, channels, pixels, tokens and levels."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from freekd_mm.connectors.fam import FAMConnector
from freekd_mm.losses import FreeKDLoss
from speed.loss import mse, naive, save_random_prompt
from speed.tables import Report
from speed.timing import Job, Options, peak_bytes, take_turns


@dataclass(frozen=True)
class Case:
    """The sizes of one call; every level is as large as the others, so that each counts the same."""

    batch: int = 2
    channels: int = 128
    height: int = 48
    width: int = 80
    tokens: int = 2
    levels: int = 2


#: What is changed, and to what; the first of each is 1.
AXES: dict[str, list[dict[str, int]]] = {
    'batch': [{'batch': value} for value in (1, 2, 4)],
    'channels': [{'channels': value} for value in (64, 128, 256)],
    'pixels': [{'height': 24 * factor, 'width': 40 * factor} for factor in (1, 2, 4)],
    'tokens': [{'tokens': value} for value in (1, 2, 4, 8)],
    'levels': [{'levels': value} for value in (1, 2, 4)],
}
TINY = Case(batch=2, channels=8, height=8, width=8)


def jobs_of(case: Case, device: torch.device) -> dict[str, Job]:
    """Returns what is measured, forward and backward."""
    shape = (case.batch, case.channels, case.height, case.width)
    students = [torch.randn(shape, device=device, requires_grad=True) for _ in range(case.levels)]
    teachers = [torch.randn(shape, device=device) for _ in range(case.levels)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'prompt.pth'
        tokens = save_random_prompt(file, case.levels, case.tokens, case.channels)
        options = dict(channels=case.channels, prompt=str(file))
        code = FreeKDLoss(mode='code', **options).to(device)
        paper = FreeKDLoss(mode='paper', **options).to(device)
    fam = FAMConnector(case.channels, case.channels, num_levels=case.levels).to(device)

    def loss_job(loss: Callable) -> Job:
        return lambda: torch.autograd.grad(loss(students, teachers), students)

    return {
        'plain MSE': loss_job(mse),
        'FreeKD code': loss_job(code),
        'FreeKD paper': loss_job(paper),
        'naive formula': loss_job(naive(tokens.to(device))),
        'FAM, MSE': loss_job(lambda own, other: mse(fam(tuple(own)), other)),
    }


def measure(options: Options) -> Report:
    """Measures one axis after the other; the sizes of an axis take turns."""
    report = Report('growth', 'Growth')
    base = TINY if options.quick else Case()
    report.say(
        f'Time and peak memory as multiples of the first row of each axis. Elsewhere: batch {base.batch}, '
        f'{base.channels} channels, {base.height}x{base.width} pixels, {base.tokens} tokens, {base.levels} levels of '
        'one size.'
    )
    names: list[str] = []
    rows = []
    for axis, changes in AXES.items():
        cases = [replace(base, **change) for change in changes[: 2 if options.quick else None]]
        if options.quick and axis in ('channels', 'pixels'):
            cases = [base, replace(base, channels=16) if axis == 'channels' else replace(base, width=16)]
        jobs = {
            (index, name): job
            for index, case in enumerate(cases)
            for name, job in jobs_of(case, options.device).items()
        }
        turns = take_turns({f'{index} {name}': job for (index, name), job in jobs.items()}, options)
        names = [name for index, name in jobs if index == 0]
        peaks = {key: peak_bytes(job, options.device) for key, job in jobs.items()}
        for index, case in enumerate(cases):
            cells: list[object] = []
            for name in names:
                grown = turns.ratio(f'{index} {name}', f'0 {name}')
                memory = peaks[index, name] / peaks[0, name]
                cells.append(f'{grown.median:.2f} / {memory:.2f}')
                report.record(f'{axis} {_value(axis, case)}, {name}', times_first=grown, memory_first=round(memory, 3))
            rows.append([f'{axis} {_value(axis, case)}', *cells])
    report.table(['time / memory', *names], rows)
    return report


def _value(axis: str, case: Case) -> str:
    return f'{case.height}x{case.width}' if axis == 'pixels' else str(getattr(case, axis))
