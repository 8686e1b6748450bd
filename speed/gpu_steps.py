"""Training steps on a GPU, the second layer of ``make gpu-check``: needs mmdet, and mmcv with operators of CUDA."""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from speed.launches import has_triton
from speed.tables import Report
from speed.timing import Options, peak_bytes, take_turns

STUDENT = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
TEACHER = 'mmdet::retinanet/retinanet_x101-64x4d_fpn_1x_coco.py'
SIZE = (800, 1333)
ROOT = Path(__file__).resolve().parents[1]
#: Folders with tests that have a form for a GPU, with 'cuda' in its name.
TESTS = ('tests/frequency',)


class SkippedError(Exception):
    """A part cannot run here; says why."""


def need_operators(options: Options) -> None:
    """Raises SkippedError if mmdet is missing, or mmcv has no operators for the device."""
    for package in ('mmcv', 'mmdet'):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise SkippedError(f'{package} is not here: {error}') from error
    try:
        from mmcv.ops import nms

        boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=options.device)
        nms(boxes, torch.ones(1, device=options.device), 0.5)
    except Exception as error:
        said = ' '.join(str(error).split())[:200]
        raise SkippedError(f'the operators of mmcv do not run on {options.device}: {said}') from error


def steps(report: Report, options: Options) -> None:
    """R50 <- X101 at 800x1333: time and memory of a step in float32, float16 and bfloat16, and finite weights."""
    need_operators(options)
    from speed.pair import batch_of, build, config_of, distilled
    from speed.step import QUICK_SIZE, forward_of, step_of

    student, teacher = config_of(STUDENT, options.quick), config_of(TEACHER, options.quick)
    channels, size = student.neck.out_channels, QUICK_SIZE if options.quick else SIZE
    batch = batch_of(2, size)
    kinds: dict[str, Any] = {
        'plain MSE': {'type': 'freekd_mm.FeatureMSELoss'},
        'WaveletLoss': {'type': 'freekd_mm.WaveletLoss', 'channels': channels},
        'FreeKDLoss, paper': {'type': 'freekd_mm.FreeKDLoss', 'mode': 'paper', 'channels': channels},
    }
    models = {'plain student': build(student)}
    models.update({name: distilled(student, teacher, loss) for name, loss in kinds.items()})
    report.say(f'Student {STUDENT}, teacher {TEACHER}, random weights, batch 2 of {size[0]}x{size[1]}.')
    # mmengine has mixed precision on a GPU alone.
    for amp in ('', 'float16', 'bfloat16') if options.device.type == 'cuda' else ('',):
        here, precision, rows = replace(options.with_at_most(5), amp=amp), amp or 'float32', []
        jobs = {name: step_of(model, here, batch) for name, model in models.items()}
        jobs["teacher's backbone and neck, forward"] = forward_of(build(teacher, 1), here, batch)
        try:
            turns = take_turns(jobs, here)
        except NotImplementedError as error:  # mmcv's focal loss has no bfloat16 on CUDA
            report.say(f'Not in {precision}: {error}')
            continue
        for name, job in jobs.items():
            peak, relative = peak_bytes(job, options.device) / 2**20, turns.ratio(name, 'plain student')
            rows.append([name, turns.milliseconds(name), relative, f'{peak:.0f}'])
            report.record(f'{name}, {precision}', milliseconds=turns.milliseconds(name), peak_mib=round(peak))
        report.table([f'step, {precision}', 'ms', 'x plain student', 'memory beside the weights (MiB)'], rows)
        _check_weights(models, amp)
    if has_triton():
        from freekd_mm.losses.bands.kernels import COMPARED

        report.say(f'The Triton kernels in the process, by the check at their first use: {COMPARED or "not used"}.')


def _check_weights(models: dict[str, Any], amp: str) -> None:
    """Raises for weights that are not finite any more."""
    for name, model in models.items():
        if not all(bool(p.isfinite().all()) for p in model.parameters()):
            raise ValueError(f'{name}, {amp or "float32"}: weights are not finite after the steps')


def ranks(report: Report, options: Options) -> None:
    """Two processes, each with a GPU of its own."""
    need_operators(options)
    if options.device.type == 'cuda' and torch.cuda.device_count() < 2:
        raise SkippedError('two processes need two GPUs, and there is one')
    from speed import parallel

    found = parallel.measure(options)
    report.blocks += found.blocks
    report.records += found.records


def tests(report: Report, options: Options) -> None:
    """The tests that have a form for a GPU."""
    need_operators(options)
    if options.device.type != 'cuda':
        raise SkippedError('they are run for a GPU')
    if not find_spec('pytest'):
        raise SkippedError('pytest is not here: pip install -r requirements/test.txt')
    chosen = ['-rf', '--tb=short', '-W', 'ignore', '-p', 'no:cacheprovider', '-k', 'cuda']
    command = [sys.executable, '-m', 'pytest', *chosen, *TESTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    report.say(f'```text\n{done.stdout.strip()[-1500:]}\n```')
    if done.returncode:
        raise ValueError(f'pytest ended with {done.returncode}')
