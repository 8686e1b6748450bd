"""FreeKDLoss, forward and backward, against the released formula and against a plain MSE.

At the shapes of a COCO feature pyramid: 5 levels from 100 x 168, batch 2, 256 channels.
"""

from __future__ import annotations

import math
import tempfile
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from freekd_mm.compat.versions import zip_equal
from freekd_mm.frequency import dwt2d
from freekd_mm.losses import FreeKDLoss, FreeKDPlusLoss, WaveletLoss
from freekd_mm.prompts import PromptFile, save_prompt
from speed.tables import Report
from speed.timing import Job, Options, Spread, Turns, peak_bytes, profile_table, take_turns

SHAPES = ((100, 168), (50, 84), (25, 42), (13, 21), (7, 11))
QUICK_SHAPES = ((16, 24), (7, 11))
TOKENS = (2, 6)
Loss = Callable[[typing.Sequence[Tensor], typing.Sequence[Tensor]], Tensor]
# What is wanted of code mode against the naive formula, by number of tokens.
CODE_SPEEDUPS = {2: 6.0, 6: 12.0}


def floor(students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Job:
    """What every loss must do: read both inputs and write a gradient."""
    out = [torch.empty_like(level) for level in students]
    plain = [level.detach() for level in students]

    def run() -> None:
        for student, teacher, into in zip_equal(plain, teachers, out):
            torch.sub(student, teacher, out=into)

    return run


def mse(students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
    """The simplest feature loss."""
    return sum(F.mse_loss(student, teacher) for student, teacher in zip_equal(students, teachers))


def naive(tokens: Tensor) -> Loss:
    """The released formula as it is written: T masks times all bands of student and teacher."""
    from pytorch_wavelets import DWTForward

    transform = DWTForward(J=3, mode='zero', wave='haar').to(tokens.device)
    count = tokens.shape[1]

    def loss(students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
        total = torch.zeros((), device=tokens.device)
        for student, teacher in zip_equal(students, teachers):
            for level, (own, other) in enumerate(zip_equal(transform(student)[1], transform(teacher)[1])):
                batch, channels, _, height, width = other.shape
                masks = (tokens[level + 1] @ other.sum(2).reshape(batch, channels, -1)).sigmoid()
                masks = masks.reshape(batch, count, 1, 1, height, width)
                total = total + F.l1_loss(masks * own[:, None], masks * other[:, None])
        return total

    return loss


def naive_wavelet(students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
    """WaveletLoss with its defaults, from whole bands as its formula has them."""
    parts, roots = [], []
    for student, teacher in zip_equal(students, teachers):
        # Only what lies within the map counts.
        sizes = [[length >> level for length in teacher.shape[2:]] for level in (1, 2, 3)]
        depth, gaps = sum(len(teacher) * math.prod(size) >= 16 for size in sizes), []
        for size, *sides in zip(sizes, dwt2d(student, depth).high, dwt2d(teacher, depth).high):
            for b, a in zip_equal(*([band[..., : size[0], : size[1]] for band in side] for side in sides)):
                own_square, square = (x.square().mean((0, 2, 3), keepdim=True) for x in (b, a))
                gap = b / (own_square + 1e-4 * square).sqrt() - a / (1.0001 * square).sqrt()
                gaps.append(gap.square().mean())
        parts.append(torch.stack(gaps).mean())
        roots.append(math.sqrt(math.prod(teacher.shape[2:])))
    return 2 * sum(root * part for root, part in zip_equal(roots, parts)) / sum(roots)


def save_random_prompt(path: Path, levels: int, num_tokens: int, channels: int) -> Tensor:
    """Saves a prompt with the same random tokens (4, T, C) for every level, and returns them."""
    tokens = 0.05 * torch.randn(4, num_tokens, channels)
    save_prompt(PromptFile({f'neck[{level}]': tokens for level in range(levels)}, num_tokens=num_tokens), path)
    return tokens


def losses(num_tokens: int, channels: int, levels: int, device: torch.device) -> dict[str, Loss]:
    """Returns the rows that depend on the number of tokens."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'prompt.pth'
        tokens = save_random_prompt(file, levels, num_tokens, channels).to(device)
        options = dict(channels=channels, prompt=str(file))

        return {
            'naive formula': naive(tokens),
            'code': FreeKDLoss(mode='code', **options).to(device),
            'WaveletLoss': WaveletLoss(**options).to(device),
            'paper': FreeKDLoss(mode='paper', **options).to(device),
            'paper, no relation': FreeKDLoss(mode='paper', relation=None, **options).to(device),
            'FreeKDPlusLoss': FreeKDPlusLoss(**options).to(device),
        }


def measure(options: Options) -> Report:
    """Measures every loss for each number of tokens."""
    report = Report('loss', 'FreeKD loss')
    shapes, channels = (QUICK_SHAPES, 16) if options.quick else (SHAPES, 256)
    students = [torch.randn(2, channels, *shape, device=options.device, requires_grad=True) for shape in shapes]
    teachers = [torch.randn(2, channels, *shape, device=options.device) for shape in shapes]

    def job(loss: Loss) -> Job:
        return lambda: torch.autograd.grad(loss(students, teachers), students)

    report.say(f'Forward and backward, {len(shapes)} levels from {shapes[0]}, batch 2, {channels} channels.')
    for num_tokens in TOKENS:
        rows = losses(num_tokens, channels, len(shapes), options.device)
        jobs = {'read both, write one (floor)': floor(students, teachers), 'plain MSE': job(mse)}
        jobs.update({name: job(loss) for name, loss in rows.items()})
        turns = take_turns(jobs, options)
        size = sum(level.numel() * level.element_size() for level in students)
        peaks = {name: peak_bytes(run, options.device) / size for name, run in jobs.items()}
        _tell(report, turns, peaks, num_tokens)
        value, wanted = rows['code'](students, teachers), rows['naive formula'](students, teachers)
        report.record(f'code, T = {num_tokens}', difference=float(((value - wanted).abs() / wanted).detach()))
        if options.profile and num_tokens == TOKENS[0]:
            for name in ('naive formula', 'code', 'paper'):
                report.profile(f'{name}, T = {num_tokens}', profile_table(jobs[name], options))
    return report


def _tell(report: Report, turns: Turns, peaks: dict[str, float], num_tokens: int) -> None:
    """Adds the table, the records and the targets of one number of tokens."""
    rows = []
    for name in turns.seconds:
        slower, share = turns.ratio('naive formula', name), peaks[name] / peaks['naive formula']
        relative = turns.ratio(name, 'plain MSE')
        rows.append([name, turns.milliseconds(name), relative, slower, f'{peaks[name]:.2f}', f'{share:.2f}'])
        report.record(
            f'{name}, T = {num_tokens}',
            milliseconds=turns.milliseconds(name),
            times_mse=relative,
            naive_is_slower=slower,
            peak_inputs=round(peaks[name], 3),
            peak_of_naive=round(share, 3),
        )
    header = [f'T = {num_tokens}', 'ms', 'x plain MSE', 'the naive formula is x slower', 'peak memory (inputs)']
    report.table([*header, 'peak, naive = 1'], rows)
    report.target(
        f'code mode, T = {num_tokens}: times as fast as the naive formula',
        turns.ratio('naive formula', 'code'),
        at_least=CODE_SPEEDUPS[num_tokens],
    )
    if num_tokens == TOKENS[0]:
        share = peaks['code'] / peaks['naive formula']
        report.target(
            'code mode, T = 2: peak memory over that of the naive formula', Spread.exactly(share), at_most=0.5
        )
    what = f'paper mode with masks and relation, T = {num_tokens}: time over a plain MSE'
    report.target(what, turns.ratio('paper', 'plain MSE'), at_most=4.0)
