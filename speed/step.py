"""A whole distillation step against its parts, and against mmrazor's algorithm.

A step is mmengine's ``train_step``: preprocessing, losses, backward, optimizer. The minimum is a step of the plain
student of mmdet plus the teacher's backbone and neck, forward.
"""

from __future__ import annotations

import copy
import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper

from speed.pair import CHANNELS, L2, LEVELS, STUDENT, TEACHER, batch_of, build, by_mmrazor, config_of, distilled
from speed.pair import freekd as freekd_loss
from speed.tables import Report
from speed.timing import Job, Options, peak_bytes, profile_table, take_turns

SIZE = (320, 512)
QUICK_SIZE = (64, 96)
STUDENT_STEP, TEACHER_FORWARD = 'plain student, step', "teacher's backbone and neck, forward"
OURS, MMRAZOR, FREEKD = 'DistilledModel, L2', "mmrazor's SingleTeacherDistill, L2", 'DistilledModel, FreeKD'


def step_of(model: Any, options: Options, batch: dict[str, Any]) -> Job:
    """Returns a training step on a copy of the batch, with a learning rate that moves nothing away."""
    model.to(options.device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-6, momentum=0.9)
    make: Any = functools.partial(AmpOptimWrapper, dtype=options.amp) if options.amp else OptimWrapper
    wrapper = make(optimizer=optimizer)
    return lambda: model.train_step(copy.deepcopy(batch), wrapper)


def forward_of(teacher: Any, options: Options, batch: dict[str, Any]) -> Job:
    """Returns the forward pass of the teacher's backbone and neck, as little as a teacher can do."""
    teacher.to(options.device).eval()

    @torch.no_grad()
    def run() -> None:
        inputs = teacher.data_preprocessor(copy.deepcopy(batch), False)['inputs']
        with torch.autocast(options.device.type, getattr(torch, options.amp or 'bfloat16'), enabled=bool(options.amp)):
            teacher.extract_feat(inputs)

    return run


def jobs_of(options: Options, folder: Path) -> dict[str, Job]:
    """Returns what is compared."""
    student, teacher = config_of(STUDENT, options.quick), config_of(TEACHER, options.quick)
    batch = batch_of(2, QUICK_SIZE if options.quick else SIZE)
    freekd = freekd_loss(folder, student.neck.out_channels)
    return {
        STUDENT_STEP: step_of(build(student), options, batch),
        TEACHER_FORWARD: forward_of(build(teacher, 1), options, batch),
        OURS: step_of(distilled(student, teacher, L2), options, batch),
        MMRAZOR: step_of(by_mmrazor(student, teacher, L2), options, batch),
        FREEKD: step_of(distilled(student, teacher, freekd), options, batch),
    }


def measure(options: Options) -> Report:
    """Measures steps with L2 and with FreeKD's paper mode."""
    report = Report('step', 'A distillation step')
    height, width = QUICK_SIZE if options.quick else SIZE
    report.say(
        f'Student {STUDENT}, teacher {TEACHER}, both with random weights; batch 2 of {height}x{width}, '
        f'{LEVELS} levels of the neck{"" if options.quick else f" with {CHANNELS} channels"}.'
    )
    with tempfile.TemporaryDirectory() as folder:
        jobs = jobs_of(options, Path(folder))
        turns = take_turns(jobs, options.with_at_most(5))
        peaks = {name: peak_bytes(job, options.device) / 2**20 for name, job in jobs.items()}
        rows = []
        for name in jobs:
            parts, razor = turns.ratio(name, STUDENT_STEP, TEACHER_FORWARD), turns.ratio(MMRAZOR, name)
            rows.append([name, turns.milliseconds(name), parts, razor, f'{peaks[name]:.0f}'])
            report.record(
                name,
                milliseconds=turns.milliseconds(name),
                times_parts=parts,
                mmrazor_is_slower=razor,
                peak_mib=round(peaks[name], 1),
            )
        header = ['', 'ms', 'x (student step + teacher forward)', 'mmrazor is x slower', 'peak memory (MiB)']
        report.table(header, rows)
        for name in (OURS, FREEKD):
            parts = turns.ratio(name, STUDENT_STEP, TEACHER_FORWARD)
            report.target(f'{name}: step over student step + teacher forward', parts, at_most=1.10)
            what = f"{name}: times as fast as mmrazor's SingleTeacherDistill with L2"
            report.target(what, turns.ratio(MMRAZOR, name), at_least=1.15)
        if options.profile:
            for name in (MMRAZOR, OURS, FREEKD):
                report.profile(name, profile_table(jobs[name], options))
    return report
