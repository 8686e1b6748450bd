"""Writes one HTML file about one or several runs: curves, results, settings, environment.

python tools/report.py work_dirs/student work_dirs/student_kd --out report.html
"""

import argparse
import sys
from pathlib import Path

from freekd_mm.checks import check_positive
from freekd_mm.cli import Parser, run
from freekd_mm.compat import install


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument('work_dirs', nargs='+', metavar='WORK_DIR', help='work directory of a training run')
    parser.add_argument('--out', type=Path, default=Path('report.html'), help='file to write (default: %(default)s)')
    parser.add_force()
    parser.add_argument('--names', nargs='+', help='what to call the runs, one per work directory')
    parser.add_argument('--title', help='title of the page')
    parser.add_argument(
        '--pictures',
        type=int,
        default=0,
        metavar='N',
        help='show what the models predict on N pictures of the test data, and what was distilled; this builds the '
        'models of the configs in these folders, so use it only for your own folders',
    )
    args = parser.parse_args()
    if args.out.suffix.lower() not in ('.html', '.htm') or args.out.is_dir():
        parser.error(f'--out should be an HTML page, like {args.out.stem}.html, but got {args.out}')
    return args


def main() -> None:
    """Writes the report."""
    args = parse_args()
    install()
    from freekd_mm.files import check_output
    from freekd_mm.report.build import write_report

    check_positive('--pictures', args.pictures, integer=True, zero=True)
    check_output(args.out, args.work_dirs, args.force)
    path, left_out = write_report(args.work_dirs, args.out, args.names, args.title, args.pictures)
    for line in left_out:
        print(f'left out: {line}', file=sys.stderr)
    print(f'the report is in {path}')


if __name__ == '__main__':
    run(main)
