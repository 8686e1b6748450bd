"""Measures speed and memory of freekd_mm on this machine, and prints tables in Markdown.

    python -m speed                          everything; minutes on one core
    python -m speed loss step --rounds 15    some parts
    python -m speed --quick                  only whether everything runs

The compared calls take turns, so that other work of the machine slows them equally: compare the ratios, given as
median (least to most) over the rounds. On a busy machine use one thread and the CPU clock.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from speed import fam, growth, launches, layer, loss, parallel, startup, step
from speed.tables import Report, machine, targets_table, write_records
from speed.timing import CLOCKS, Options

PARTS = {
    'launches': launches.measure,
    'layer': layer.measure,
    'loss': loss.measure,
    'step': step.measure,
    'fam': fam.measure,
    'growth': growth.measure,
    'parallel': parallel.measure,
    'startup': startup.measure,
}


def main(arguments: Sequence[str] | None = None) -> list[Report]:
    """Runs the chosen parts; prints, and writes JSON lines where asked to."""
    parser = argparse.ArgumentParser(
        prog='python -m speed', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('parts', nargs='*', metavar='part', help=f'of {", ".join(PARTS)}; all by default')
    parser.add_argument('--quick', action='store_true', help='small shapes and two rounds: no figures to quote')
    parser.add_argument('--rounds', type=int, help='rounds that count; 9, or 2 with --quick')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--clock', choices=CLOCKS, help="'cpu' on a CPU, 'wall' on a GPU")
    amp = dict(nargs='?', const='float16', default='', choices=('float16', 'bfloat16'))
    parser.add_argument('--amp', **amp, help='whole steps under autocast; on a GPU alone')
    parser.add_argument('--profile', action='store_true', help='add profiles of the loss and of the step')
    parser.add_argument('--jsonl', type=Path, help='write the figures to this file')
    args = parser.parse_args(arguments)
    unknown = [part for part in args.parts if part not in PARTS]
    if unknown:
        parser.error(f'part should be one of {", ".join(PARTS)}, but got {", ".join(unknown)}')
    device = torch.device(args.device)
    if args.amp and device.type != 'cuda':
        parser.error(f"--amp should be used on a GPU, as mmengine's AmpOptimWrapper asks for, but got {device}")
    torch.set_num_threads(args.threads)
    options = Options(
        device,
        clock=args.clock or ('wall' if device.type == 'cuda' else 'cpu'),
        rounds=args.rounds or (2 if args.quick else 9),
        quick=args.quick,
        amp=args.amp,
        profile=args.profile,
    )
    print(', '.join(f'{key} {value}' for key, value in machine(options).items()), flush=True)
    reports = []
    for part in args.parts or PARTS:
        torch.manual_seed(0)
        reports.append(PARTS[part](options))
        print(f'\n{reports[-1].markdown()}', flush=True)
    targets = [target for report in reports for target in report.targets]
    if targets and not args.quick:
        print(f'\n## Targets\n\n{targets_table(targets)}')
    if args.jsonl:
        write_records(args.jsonl, reports, options)
    return reports


if __name__ == '__main__':
    main()
