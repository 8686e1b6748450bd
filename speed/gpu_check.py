"""What a GPU does with the losses: one command for whoever has a GPU, which ends with text to paste into docs/speed.md.

    make gpu-check                                    all layers; the same as python -m speed.gpu_check
    python -m speed.gpu_check --layer 1               PyTorch, Triton and mmengine alone; at most five minutes
    python -m speed.gpu_check --device cpu --quick    whether it runs, without a GPU

Layer 1: values and gradients against float64, kernels and bytes against what was counted without a GPU, times and
memory. Layer 2 (mmdet, and mmcv with operators of CUDA): whole steps, mixed precision, two processes, tests.
What cannot run is skipped, and the reason is said.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Callable

import torch
from torch import Tensor

from freekd_mm.compat.versions import zip_equal
from speed import gpu_steps
from speed.accelerator import Launches, available
from speed.gpu_steps import SkippedError
from speed.launches import counted, has_triton, job_of, losses, way_of, width_of
from speed.loss import QUICK_SHAPES, SHAPES, floor, naive_wavelet
from speed.tables import Report, machine
from speed.timing import Options, peak_bytes, synchronize, take_turns

#: The largest difference from float64, over the largest value; half precision rounds the inputs' products and results.
ROUNDING = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}
Part = Callable[[Report, Options], None]


def size_of(options: Options) -> tuple[Sequence[Sequence[int]], int]:
    """Returns the sizes of the levels, and the channels."""
    return (QUICK_SHAPES, 4) if options.quick else (SHAPES, 256)


def case(options: Options, name: str = '') -> tuple[list[Tensor], list[Tensor]]:
    """Returns features of student and teacher for a loss of this name."""
    shapes, channels = size_of(options)
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(2, width_of(name, channels), *shape, generator=generator) for shape in (*shapes, *shapes)]
    students, teachers = made[: len(shapes)], made[len(shapes) :]
    teachers = [teacher + student for teacher, student in zip_equal(teachers, students)]
    return [x.to(options.device).requires_grad_() for x in students], [x.to(options.device) for x in teachers]


def all_losses(options: Options) -> dict[str, Any]:
    """Returns the losses of the table of launches; without Triton where it is not."""
    torch.manual_seed(0)
    shapes, channels = size_of(options)
    found = losses(channels, len(shapes))
    return {name: loss.to(options.device) for name, loss in found.items() if has_triton() or 'Triton' not in name}


def correctness(report: Report, options: Options) -> None:
    """Value and gradient of each loss in each precision, against the same loss in float64 on the CPU."""
    rows, wrong = [], []
    for name, loss in all_losses(options).items():
        row = [name]
        for dtype, most in ROUNDING.items():
            students, teachers = ([x.detach().to(dtype) for x in part] for part in case(options, name))
            exact = copy.deepcopy(loss).cpu().double()
            doubles = [x.cpu().double().requires_grad_() for x in students], [x.cpu().double() for x in teachers]
            loss_there = exact(*doubles)
            wanted, slopes = float(loss_there.detach()), torch.autograd.grad(loss_there, doubles[0])
            # As a scaler of gradients does: else half precision has none that small.
            factor = 1 / max(float(slope.abs().max()) for slope in slopes)
            students = [x.requires_grad_() for x in students]
            # TF32 would be a precision of its own; the losses switch it off for their bands themselves.
            with way_of(name), torch.backends.cudnn.flags(allow_tf32=False), torch.autocast(
                options.device.type, dtype, enabled=dtype != torch.float32
            ):
                value = loss(students, teachers)
            with way_of(name):
                gradients = torch.autograd.grad(value * factor, students)
            found = float(value.detach())
            gaps = [abs(found / wanted - 1)]
            gaps += [float((g.cpu() - factor * s).abs().max()) for g, s in zip_equal(gradients, slopes)]
            row.append(f'{gaps[0]:.0e} / {max(gaps[1:]):.0e}')
            if not max(gaps) <= most:
                wrong.append(f'{name}, {dtype}: {row[-1]} should be at most {most:g}')
            if name == 'WaveletLoss' and dtype == torch.float32:
                formula = float(naive_wavelet(*doubles).detach())
                if not abs(found / formula - 1) <= most:
                    wrong.append(f'{name} should be {formula:g} by its formula, but got {found:g}')
        rows.append(row)
    report.say('Difference from float64 on the CPU: of the value, and of the gradient over its largest value.')
    report.table(['', 'float32', 'float16', 'bfloat16'], rows)
    if wrong:
        raise ValueError('; '.join(wrong))


def first_step(report: Report, options: Options) -> None:
    """Whether the check at the first step of a training lets the Triton kernels be used."""
    if not has_triton():
        raise SkippedError('Triton or PyTorch 2.4 is not here')
    if options.device.type != 'cuda':
        raise SkippedError('a CPU does not use the kernels')
    from freekd_mm.losses.bands import kernels

    kernels.COMPARED.clear()
    all_losses(options)['WaveletLoss'](*case(options))
    report.say(f'The check at the first step of a training: {kernels.COMPARED}.')
    if not kernels.COMPARED or not all(kernels.COMPARED.values()):
        raise ValueError('the Triton kernels are not used; the log says why')


def ran(job: Callable[[], object], options: Options) -> tuple[int, float]:
    """Returns the kernels of a call and their milliseconds, by torch.profiler; the leaves of operators on a CPU."""
    kind = torch.autograd.DeviceType.CUDA if options.device.type == 'cuda' else torch.autograd.DeviceType.CPU
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if options.device.type == 'cuda' else []
    for _ in range(2):
        job()
    synchronize(options.device)
    with torch.profiler.profile(activities=kinds) as profile:
        job()
        synchronize(options.device)
    events = [event for event in profile.events() if event.device_type == kind and not event.cpu_children]
    return len(events), sum(event.time_range.elapsed_us() for event in events) / 1e3


def planned(options: Options) -> dict[str, tuple[Launches, int]]:
    """Returns what the accelerator that is not there counts, in a new process that sees no GPU."""
    if not available():
        raise RuntimeError('this PyTorch cannot register a device in Python')
    context, hidden = multiprocessing.get_context('spawn'), ('CUDA_VISIBLE_DEVICES', '')
    with ProcessPoolExecutor(1, mp_context=context, initializer=os.putenv, initargs=hidden) as pool:
        return pool.submit(counted, *size_of(options)).result(timeout=180)


def profiled(report: Report, options: Options) -> None:
    """Kernels and traffic by the profiler, beside what the accelerator that is not there counted."""
    plan = {}
    try:
        plan = planned(options)
    except Exception as error:
        report.say(f'Not counted: {type(error).__name__}: {" ".join(str(error).split())[-300:]}')
    students, teachers = case(options)
    sizes = sum(x.numel() * x.element_size() for x in students)
    # Reads one size and writes one: the time of a size that is moved.
    copies = [torch.empty_like(x) for x in students]
    pace = ran(lambda: [x.copy_(y) for x, y in zip_equal(copies, teachers)], options)[1] / 2
    rows = []
    for name, loss in all_losses(options).items():
        given = case(options, name)
        own = sum(x.numel() * x.element_size() for x in given[0])
        with way_of(name):
            kernels, milliseconds = ran(job_of(loss, *given), options)
        launches, size = plan.get(name, (None, 1))
        moved = milliseconds / max(pace, 1e-6) * sizes / own
        expected = [launches.kernels, f'{launches.bytes / size:.1f}'] if launches else ['-', '-']
        rows.append([name, expected[0], kernels, expected[1], f'{moved:.1f}', f'{milliseconds:.3f}'])
        report.record(name, kernels=kernels, kernel_milliseconds=round(milliseconds, 4), as_traffic=round(moved, 2))
    report.say(
        'A size is that of the features of the student. "At the speed of a copy" is the time of all kernels over the '
        'time in which a copy moves a size: a bound on the bytes that a loss moves.'
        + ('' if options.device.type == 'cuda' else ' On a CPU: leaves of operators in place of kernels.')
    )
    header = ['', 'kernels counted', 'kernels', 'sizes counted', 'sizes at the speed of a copy', 'ms of kernels']
    report.table(header, rows)


def times(report: Report, options: Options) -> None:
    """Times and memory of every loss, against MSE and against a copy of the bytes."""
    students, teachers = case(options)
    copies = [torch.empty_like(x) for x in students]
    jobs: dict[str, Any] = {
        'copy': lambda: [x.copy_(y) for x, y in zip_equal(copies, teachers)],
        'read both, write one': floor(students, teachers),
    }
    for name, loss in all_losses(options).items():
        plain = job_of(loss, *case(options, name))

        def job(name: str = name, plain: Any = plain) -> object:
            with way_of(name):
                return plain()

        jobs[name] = job
    turns, rows = take_turns(jobs, options, repeats=0 if options.quick else 5), []
    for name, job in jobs.items():
        size = sum(x.numel() * x.element_size() for x in case(options, name)[0])
        peak = peak_bytes(job, options.device) / size
        ratios = [turns.ratio(name, other) for other in ('plain MSE', 'copy')]
        rows.append([name, turns.milliseconds(name), *ratios, f'{peak:.2f}'])
        report.record(name, milliseconds=turns.milliseconds(name), times_mse=ratios[0], peak=round(peak, 3))
    report.table(['forward and backward', 'ms', 'x plain MSE', 'x copy', 'memory beside the inputs (sizes)'], rows)


def run(parts: dict[str, Part], options: Options, seconds: float) -> Iterator[Report]:
    """Runs parts for at most so long; a part that fails or is skipped says why, and the next one goes on."""
    deadline = time.monotonic() + seconds
    for title, part in parts.items():
        report = Report('gpu-check', title)
        try:
            if time.monotonic() > deadline:
                raise SkippedError(f'the {seconds / 60:g} minutes are over')
            part(report, options)
            outcome = 'ok'
        except SkippedError as reason:
            outcome = f'skipped: {reason}'
        except Exception as error:
            outcome = f'FAILED: {type(error).__name__}: {" ".join(str(error).split())[:1000]}'
        report.say(f'Outcome: {outcome}')
        print(f'{title}: {outcome}', file=sys.stderr, flush=True)
        yield report


def text(reports: Sequence[Report], options: Options) -> str:
    """Returns the block to paste, in Markdown."""
    about = ', '.join(f'{key} {value}' for key, value in machine(options).items())
    summary = Report(
        'gpu-check', 'On a GPU' if options.device.type == 'cuda' else 'Dry run on a CPU: no figures to quote'
    )
    summary.say(f'`make gpu-check`: {about}, CUDA {torch.version.cuda}.')
    summary.table(['part', 'outcome'], [[each.title, each.blocks[-1].partition(': ')[2]] for each in reports])
    blocks = [each.markdown().replace('## ', '### ', 1) for each in reports if len(each.blocks) > 1]
    return '\n\n'.join([summary.markdown(), *blocks])


LAYERS: dict[str, dict[str, Part]] = {
    '1': {
        'Kernels and traffic': profiled,
        'Values and gradients': correctness,
        'Check at the first step': first_step,
        'Times and memory': times,
    },
    '2': {'Training steps': gpu_steps.steps, 'Two processes': gpu_steps.ranks, 'Tests': gpu_steps.tests},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the layers; prints the text, and returns 1 if a part failed."""
    parser = argparse.ArgumentParser(
        prog='python -m speed.gpu_check', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--layer', choices=LAYERS, action='append', help='all by default')
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--quick', action='store_true', help='small shapes and two rounds: no figures to quote')
    parser.add_argument('--minutes', type=float, default=5, help='a part of layer 1 does not start later than this')
    parser.add_argument('--out', type=Path, help='write the text to this file as well')
    args = parser.parse_args(arguments)
    device = torch.device(args.device)
    if device.type == 'cuda' and not torch.cuda.is_available():
        parser.error('PyTorch sees no GPU here. A dry run without one: --device cpu --quick')
    if device.type == 'cpu' and 'TRITON_INTERPRET' not in os.environ:
        # Its kernels run on a CPU then. Triton reads it when it is imported, and PyTorch has done that.
        command = [sys.executable, '-m', 'speed.gpu_check', *(sys.argv[1:] if arguments is None else arguments)]
        return subprocess.call(command, env={**os.environ, 'TRITON_INTERPRET': '1'})
    clock = 'wall' if device.type == 'cuda' else 'cpu'
    options = Options(device, clock=clock, rounds=1 if args.quick else 9, quick=args.quick)
    reports: list[Report] = []
    for layer in args.layer or LAYERS:
        for report in run(LAYERS[layer], options, 60 * args.minutes if layer == '1' else float('inf')):
            reports.append(report)
            # After each part: the machine may be taken away.
            if args.out:
                args.out.write_text(text(reports, options) + '\n', encoding='utf-8')
            if len(report.blocks) > 1:
                print(report.markdown(), file=sys.stderr, flush=True)
    print(text(reports, options))
    return int(any('FAILED' in each.blocks[-1] for each in reports))


if __name__ == '__main__':
    sys.exit(main())
