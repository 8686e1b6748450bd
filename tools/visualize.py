"""Shows what a distillation compares: wavelet bands of teacher and student, PoI masks, channel weights.

python tools/visualize.py my_kd.py work_dirs/my_kd/epoch_12.pth street.jpg --before --out pictures.html
"""

import argparse
from pathlib import Path

from freekd_mm.cli import Parser, run
from freekd_mm.compat import install


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument('config', help='the distillation config')
    parser.add_argument('checkpoint', help='a checkpoint that the distillation wrote')
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='image files')
    parser.add_argument('--out', required=True, help='a page (name.html) or a folder for PNG files')
    parser.add_force()
    parser.add_argument(
        '--before',
        action='store_true',
        help='compare also with the student as its training started',
    )
    args = parser.parse_args()
    if Path(args.out).suffix.lower() in ('.pdf', '.png', '.jpg', '.jpeg', '.svg', '.json', '.md'):
        parser.error(f'--out should be a page, like {Path(args.out).stem}.html, or a folder, but got {args.out}')
    return args


def main() -> None:
    """Writes the pictures."""
    args = parse_args()
    install()
    from freekd_mm.runtime.config import load_config
    from freekd_mm.visualize.draw import visualize

    cfg = load_config(args.config)
    written = visualize(cfg, args.checkpoint, args.images, args.out, args.before, args.force)
    print('\n'.join(f'written: {path}' for path in written))


if __name__ == '__main__':
    run(main)
