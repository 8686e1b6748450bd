"""Compares distillation methods on your data: same student, teacher, data order, schedule and seeds for all.

python tools/benchmark.py configs/benchmark/bccd.yaml --data-root data/bccd --work-dir work_dirs/benchmark
"""

import argparse
import os
import signal
import sys
from pathlib import Path

from freekd_mm.cli import Parser, run
from freekd_mm.compat import install


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    from mmengine.config import DictAction

    parser = Parser(description=__doc__)
    parser.add_argument('plan', help='YAML plan, see configs/benchmark')
    parser.add_argument('--data-root', help="replaces the configs' data_root; one work directory for each data set")
    parser.add_argument('--work-dir', default='work_dirs/benchmark', help='results, runs, cache (default: %(default)s)')
    parser.add_argument(
        '--lines', type=Path, help='file of the results; table and plots beside it (default: in the work directory)'
    )
    parser.add_argument('--methods', nargs='+', help='only these, the student alone and the teacher; * and ? match')
    parser.add_argument('--seeds', nargs='+', type=int, help="instead of the plan's")
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='processes (default: the cores, %(default)s)')
    parser.add_argument('--report', action='store_true', help='run nothing: write table and plots of what is there')
    parser.add_argument('--dry-run', action='store_true', help='run nothing: list the jobs')
    parser.add_argument('--no-plots', action='store_true', help='no PNG file')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings of both: key=value')
    return parser.parse_args()


def main() -> int:
    """Runs what is missing and writes the report; returns the exit status."""
    args = parse_args()
    # The running jobs end with this process, no matter how it is told to stop.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    install()
    from freekd_mm.benchmark.run import benchmark

    try:
        return benchmark(
            args.plan,
            Path(args.work_dir),
            data_root=args.data_root,
            methods=args.methods,
            seeds=args.seeds,
            processes=args.jobs,
            options=args.cfg_options,
            action='report' if args.report else 'list' if args.dry_run else 'run',
            plots=not args.no_plots,
            lines=args.lines,
        )
    except KeyboardInterrupt:
        print('stopped; the same command continues from here', file=sys.stderr)
        return 130


if __name__ == '__main__':
    run(main)
