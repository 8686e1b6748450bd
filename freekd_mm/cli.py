"""What the command lines of the tools share."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any, Callable

from freekd_mm.doctor.checkup import obstacle


def run(main: Callable[[], int | None]) -> None:
    """Runs a tool and ends the program with its status; one line and 1 where the packages here cannot work."""
    status = obstacle() or main()
    if status:
        sys.exit(status)


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that MMDetection's tools share."""
    from mmengine.config import DictAction

    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='directory for logs and checkpoints; work_dirs/<config name> by default')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='override settings: key=value key.sub=value'
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    parser.add_argument(
        '--trust-checkpoint',
        nargs='+',
        default=[],
        metavar='FILE',
        help='load these files by plain unpickling, which runs any code in them: only for files that you made yourself',
    )
    # torch.distributed.launch passes it, torchrun sets the variable.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def prepare_config(args: argparse.Namespace) -> Any:
    """Loads the config and applies the common options."""
    from mmengine.config import Config

    from freekd_mm.compat import install

    install()
    if not Path(args.config).is_file():
        raise SystemExit(f'config should be an existing file, but got {args.config!r}')
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    if args.trust_checkpoint:
        from freekd_mm.checkpoints.sources import trust

        trust(*args.trust_checkpoint)
    cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    return cfg
