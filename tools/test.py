"""Evaluates a checkpoint: a detector, a segmenter or a distilled student."""

import argparse

from freekd_mm.cli import Parser, add_common_options, prepare_config, run


def parse_args() -> argparse.Namespace:
    """Reads the command line.

    For test time augmentation or a window, give the exported student to MMDetection's or MMSegmentation's own test.py.
    """
    parser = Parser(description=__doc__)
    add_common_options(parser)
    parser.add_force()
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--result', help='write the metrics to this JSON file')
    parser.add_argument(
        '--out',
        help='write the predictions to this .pkl file; with a segmenter also to a directory of label maps',
    )
    parser.add_argument('--show-dir', help='write pictures of the predictions to this directory')
    return parser.parse_args()


def main() -> None:
    """Tests with the plain student: the teacher is neither needed nor built."""
    args = parse_args()
    from freekd_mm.engine.distributed import leave_process_group
    from freekd_mm.engine.evaluation import evaluate
    from freekd_mm.files import check_output

    cfg = prepare_config(args)
    for path in filter(None, (args.result, args.out, args.show_dir)):
        check_output(path, [args.config, args.checkpoint], args.force)
    evaluate(cfg, args.checkpoint, result=args.result, out=args.out, show_dir=args.show_dir)
    leave_process_group()


if __name__ == '__main__':
    run(main)
