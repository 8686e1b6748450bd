"""Evaluates a checkpoint: a detector, a segmenter or a distilled student."""

import argparse

from freekd_mm.cli import Parser, add_common_options, prepare_config, run


def parse_args() -> argparse.Namespace:
    """Reads the command line; the options are those of MMDetection's and MMSegmentation's test.py, and ``--result``."""
    parser = Parser(description=__doc__)
    add_common_options(parser)
    parser.add_force()
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--result', help='write the metrics to this JSON file')
    parser.add_argument(
        '--out',
        help='write the predictions to this .pkl file; with a segmenter also to a directory of label maps',
    )
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument('--show-dir', help='write pictures of the predictions to this directory')
    parser.add_argument('--wait-time', type=float, default=2.0, help='seconds for which each picture is shown')
    parser.add_argument('--tta', action='store_true', help='test time augmentation')
    return parser.parse_args()


def main() -> None:
    """Tests with the plain student: the teacher is neither needed nor built."""
    args = parse_args()
    from freekd_mm.engine.distributed import leave_process_group
    from freekd_mm.engine.evaluation import evaluate
    from freekd_mm.files import check_output

    cfg = prepare_config(args)
    for path in filter(None, (args.result, args.out, args.show_dir)):
        folder = path != args.result and not path.endswith('.pkl')
        check_output(path, [args.config, args.checkpoint], args.force, folder)
    evaluate(
        cfg,
        args.checkpoint,
        result=args.result,
        out=args.out,
        show=args.show,
        show_dir=args.show_dir,
        wait_time=args.wait_time,
        tta=args.tta,
    )
    leave_process_group()


if __name__ == '__main__':
    run(main)
