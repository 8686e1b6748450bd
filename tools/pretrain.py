"""Trains a backbone on pictures without labels: it learns the features of a teacher, for example DINOv2's.

python tools/pretrain.py my_detector.py pictures --teacher transformers:facebook/dinov2-small
"""

import argparse

from freekd_mm.api import pretrain
from freekd_mm.cli import Parser, run


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument('student', help='config of the model whose backbone is trained')
    parser.add_argument('folder', nargs='+', help='pictures: folders, or text files with one path per line')
    parser.add_argument(
        '--teacher', required=True, help='transformers:NAME, timm:NAME, module:PACKAGE.MODULE:CLASS, or a config'
    )
    parser.add_argument('--teacher-checkpoint', help="the teacher's weights, if they are not the library's own")
    parser.add_argument('--work-dir', help='where all is written; work_dirs/<student>_pretrain by default')
    parser.add_argument('--neck', action='store_true', help='train the neck too')
    parser.add_argument('--epochs', type=int, default=10, help='passes through the pictures; default: 10')
    parser.add_argument('--size', type=int, default=224, help='side of the crops; default: 224')
    parser.add_argument('--batch-size', type=int, default=32, help='crops in a batch; default: 32')
    return parser.parse_args()


def main() -> None:
    """Trains, and says which files the init_cfg of the student takes."""
    args = parse_args()
    options = {'neck': args.neck, 'epochs': args.epochs, 'size': args.size, 'batch_size': args.batch_size}
    found = pretrain(
        args.student, args.folder, args.teacher, args.work_dir, checkpoint=args.teacher_checkpoint, **options
    )
    for part, file in found.items():
        print(f"{part}: init_cfg=dict(type='Pretrained', checkpoint={str(file)!r})")


if __name__ == '__main__':
    run(main)
