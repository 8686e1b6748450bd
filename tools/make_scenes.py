"""Generates the toy data set of the demo, in the layouts of COCO and of Cityscapes.

python tools/make_scenes.py data/scenes --train 560 --val 150 --size 160 --seed 0
"""

import argparse

from freekd_mm.cli import Parser, run


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument('out', help='folder to write to: new, empty, or made by the same call before')
    parser.add_argument('--train', type=int, default=560, help='number of training pictures (default: %(default)s)')
    parser.add_argument('--val', type=int, default=150, help='number of validation pictures (default: %(default)s)')
    parser.add_argument('--size', type=int, default=160, help='width and height in pixels (default: %(default)s)')
    parser.add_force()
    parser.add_argument('--seed', type=int, default=0, help='seed of the data set (default: %(default)s)')
    return parser.parse_args()


def main() -> None:
    """Writes the data set."""
    args = parse_args()
    from scenes import write_scenes

    root = write_scenes(args.out, args.train, args.val, args.size, args.seed, args.force)
    print(f'{args.train} training and {args.val} validation pictures of {args.size} x {args.size} are in {root}')


if __name__ == '__main__':
    run(main)
