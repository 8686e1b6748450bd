"""Writes the plain student of a distillation checkpoint, and checks that it predicts the same."""

import argparse
from pathlib import Path

from freekd_mm.api import export
from freekd_mm.cli import Parser, run


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument('config', help='the distillation config')
    parser.add_argument('checkpoint', help='a checkpoint written in training')
    parser.add_argument('-o', '--out', required=True, help='file to write')
    parser.add_argument('--half', action='store_true', help='store the weights in half precision')
    parser.add_force()
    parser.add_argument('--images', type=int, default=2, help='how many test images to compare predictions on')
    args = parser.parse_args()
    if Path(args.out).suffix.lower() not in ('.pth', '.pt', '.ckpt', '.pkl') or Path(args.out).is_dir():
        parser.error(f'-o should be a checkpoint, like {Path(args.out).stem}.pth, but got {args.out}')
    return args


def main() -> None:
    """Exports and prints what was written."""
    args = parse_args()
    print(export(args.config, args.checkpoint, args.out, half=args.half, images=args.images, force=args.force))


if __name__ == '__main__':
    run(main)
