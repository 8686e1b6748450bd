"""FAM's default filter against the dense one of the paper, and alone if the dense one does not fit.

A dense filter has 2 x C_in x C_out x H x W numbers: 8.2 GiB for 256 channels at 100 x 168, before its gradient.
"""

from __future__ import annotations

import torch
from torch import nn

from freekd_mm.connectors.fam import FAM
from speed.tables import Report
from speed.timing import Job, Options, peak_bytes, take_turns

BOTH = ((7, 11), (13, 21), (25, 42))
ALONE = ((50, 84), (100, 168))
CONVOLUTION = '1x1 convolution'


def job_of(module: nn.Module, x: torch.Tensor) -> Job:
    """Returns a call, forward and backward into input and parameters."""
    gradient = torch.randn_like(module(x))
    wanted = [x, *module.parameters()]
    return lambda: torch.autograd.grad(module(x), wanted, gradient)


def measure(options: Options) -> Report:
    """Measures one size after the other."""
    report = Report('fam', 'FAM')
    channels = 8 if options.quick else 256
    both, alone = (((4, 6),), ((7, 11),)) if options.quick else (BOTH, ALONE)
    report.say(f'FAM, {channels} to {channels} channels, forward and backward, batch 2.')
    rows = []
    for size in (*both, *alone):
        modules: dict[str, nn.Module] = {
            CONVOLUTION: nn.Conv2d(channels, channels, 1),
            'default (lowrank)': FAM(channels, channels),
            'depthwise': FAM(channels, channels, mode='depthwise'),
        }
        if size in both:
            modules['dense'] = FAM(channels, channels, mode='dense', size=size)
        x = torch.randn(2, channels, *size, device=options.device, requires_grad=True)
        jobs = {name: job_of(module.to(options.device), x) for name, module in modules.items()}
        turns = take_turns(jobs, options)
        for name, module in modules.items():
            stored = sum(parameter.numel() for parameter in module.parameters())
            peak = peak_bytes(jobs[name], options.device) / 2**20
            relative = turns.ratio(name, CONVOLUTION)
            dense = turns.ratio('dense', name) if 'dense' in jobs else None
            where = f'{name}, {size[0]}x{size[1]}'
            time = turns.milliseconds(name)
            rows.append([where, f'{stored:,}', time, relative, dense or 'not run', f'{peak:.1f}'])
            report.record(
                where, parameters=stored, milliseconds=time, times_conv=relative, dense_is_slower=dense, peak_mib=peak
            )
        del modules, jobs
    header = ['', 'parameters', 'ms', f'x {CONVOLUTION}', 'dense is x slower', 'peak memory (MiB)']
    report.table(header, rows)
    return report
