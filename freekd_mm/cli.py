"""What the command lines of the tools share."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
import traceback
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Callable

from freekd_mm.checks import check_file
from freekd_mm.compat import install
from freekd_mm.doctor.checkup import obstacle

#: Packages that raise errors to say what is wrong with a config or a command.
SPEAKING = (Path(__file__).parent, *(Path('site-packages') / name for name in ('mmengine', 'mmcv', 'mmdet', 'mmseg')))
LONGEST = 2000
#: In the text of an error that PyTorch passes on from a process that loads data, and a place in that text.
FROM_WORKER, WORKER = ' in DataLoader worker process ', r'  File "(.*)", line \d+, in .*\n +(.*)'


class Parser(argparse.ArgumentParser):
    """A parser of a tool: its help is shown as written, and it has ``--traceback``."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self.add_argument('--traceback', action='store_true', help='show where in the code an error was raised')

    def add_force(self) -> None:
        """Adds the option of tools that write a file."""
        kept = 'the old one is kept with .bak after its name'
        self.add_argument('--force', action='store_true', help=f'replace an existing file; {kept}')


def run(main: Callable[[], int | None]) -> None:
    """Runs a tool and ends the program with its status.

    One line and 1 if the packages here cannot work; one block and 2 for an error that the user can fix.
    """
    try:
        status = obstacle() or main()
    except Exception as error:
        files = []
        if 'mmengine' in sys.modules:
            from freekd_mm.engine.process import log_error

            files = [file for file in log_error(error) if Path(file).is_file()]  # a temporary folder may be gone
        if '--traceback' in sys.argv or not _is_users(error):
            raise
        block = _block(error, files)
        print(block, file=sys.stderr)
        # torchrun repeats it in its last lines, where it would show the whole traceback.
        if 'TORCHELASTIC_ERROR_FILE' in os.environ:
            said = json.dumps({'message': block, 'timestamp': int(time.time())})
            Path(os.environ['TORCHELASTIC_ERROR_FILE']).write_text(said)
        status = 2
    if status:
        sys.exit(status)


def _is_users(error: BaseException) -> bool:
    """Whether an error was raised to tell the user what is wrong, not by a fault in the code."""
    if isinstance(error, (OSError, ImportError, UnpicklingError)):
        return True
    last = traceback.extract_tb(error.__traceback__)[-1]
    # What a process that loads data raised has its traceback as text.
    file, line = re.findall(WORKER, str(error))[-1] if FROM_WORKER in str(error) else (last.filename, last.line or '')
    # A fault in the code has an operation where these have a raise, or a call with the options of a config.
    spoken = line.startswith(('raise', 'obj = obj_cls(', 'super().__init__('))
    return spoken and any(str(place) in file for place in SPEAKING)


def _block(error: Exception, files: list[str]) -> str:
    said = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip() or type(error).__name__
    said = said.rpartition(f'\n{type(error).__name__}: ')[2] if FROM_WORKER in said else said
    said = said if len(said) <= LONGEST else f'{said[:LONGEST]} ...'
    return f'error: {said}\n({"the log has the traceback: " + files[0] if files else "--traceback shows where"})'


def add_common_options(parser: Parser) -> None:
    """Adds the options that MMDetection's tools share."""
    from mmengine.config import DictAction

    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='directory for logs and checkpoints; work_dirs/<config name> by default')
    pair = '--cfg-options should be key=value, but got '
    check: dict[str, Any] = {'type': lambda text: text if '=' in text else parser.error(f'{pair}{text!r}')}
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='settings: key=value a.b.c=value', **check)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    parser.add_argument(
        '--trust-checkpoint',
        nargs='+',
        default=[],
        metavar='FILE',
        help='load these files by plain unpickling, which runs any code in them: only for files that you made yourself',
    )
    parser.add_argument('--no-check', dest='check', action='store_false', help='do not check data and --cfg-options')
    # torch.distributed.launch passes it, torchrun sets the variable.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def prepare_config(args: argparse.Namespace) -> Any:
    """Loads the config and applies the common options."""
    from freekd_mm.runtime.config import load_config

    install()
    check_file('config', args.config)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    if args.trust_checkpoint:
        from freekd_mm.checkpoints.sources import trust

        trust(*args.trust_checkpoint)
    cfg = load_config(args.config)
    cfg.launcher = args.launcher
    if args.cfg_options:
        if args.check:
            from freekd_mm.engine.preflight import check_keys

            check_keys(cfg, args.cfg_options)
        cfg.merge_from_dict(args.cfg_options)
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    return cfg
