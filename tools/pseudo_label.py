"""Writes the confident predictions of a trained model on pictures without labels, as labels to train on."""

import argparse

from freekd_mm.checks import check_positive
from freekd_mm.cli import Parser, run
from freekd_mm.compat import install


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument('config', help="the model's config, of a detector or a segmenter")
    parser.add_argument('checkpoint', help='its checkpoint: a file or a URL')
    parser.add_argument('folder', help='pictures: a folder, or a text file with one path per line')
    parser.add_argument(
        '-o', '--out', required=True, help='COCO file for boxes (name.json), or folder for label maps (PNG)'
    )
    parser.add_argument(
        '--score',
        type=float,
        default=0.5,
        help='leave out boxes with a lower score; pixels of a lower probability are ignored (255); default: 0.5',
    )
    parser.add_argument('--workers', type=int, default=2, help='processes that load pictures; default: 2')
    parser.add_argument('--device', help="where the model runs, for example cuda:1; default: the training's device")
    parser.add_force()
    return parser.parse_args()


def main() -> None:
    """Writes the labels and says how many there are."""
    args = parse_args()
    check_positive('--workers', args.workers, integer=True, zero=True)
    install()
    from freekd_mm.datasets.pseudo_labels import write_pseudo_labels
    from freekd_mm.runtime.config import load_config

    options = {'score': args.score, 'workers': args.workers, 'device': args.device, 'force': args.force}
    print(write_pseudo_labels(load_config(args.config), args.checkpoint, args.folder, args.out, **options))


if __name__ == '__main__':
    run(main)
