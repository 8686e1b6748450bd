"""The demo: a teacher, a student alone and a distilled student on generated scenes, then the exported file.

It runs the ordinary tools. After a stop it continues where it was.
"""

import argparse
from pathlib import Path

from freekd_mm.cli import Parser, run
from freekd_mm.compat import install


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument('--task', choices=['det', 'seg'], default='det', help='detection or segmentation')
    parser.add_argument('--method', default='wavelet-prompt', help='a method of tools/make_config.py')
    parser.add_argument('--seed', type=int, default=0, help='seed of both students')
    parser.add_argument('--work-dir', type=Path, help='where to write; work_dirs/demo by default')
    return parser.parse_args()


def main() -> None:
    """Runs the demo from the repository's root."""
    args = parse_args()
    install()
    from demo_steps import run_demo

    work_dir = args.work_dir.resolve() if args.work_dir else None
    run_demo(args.task, args.method, Path(__file__).resolve().parents[1], args.seed, work_dir)


if __name__ == '__main__':
    run(main)
