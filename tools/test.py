"""Evaluates a checkpoint: a detector, a segmenter or a distilled student."""

import argparse

from freekd_mm.cli import add_common_options, prepare_config, run


def parse_args() -> argparse.Namespace:
    """Reads the command line; the options are those of MMDetection's test.py."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_options(parser)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', help='write the metrics to this JSON file')
    parser.add_argument('--show-dir', help='write pictures of the predictions to this directory')
    return parser.parse_args()


def main() -> None:
    """Tests with the plain student: the teacher is neither needed nor built."""
    args = parse_args()
    from freekd_mm.engine.distributed import leave_process_group
    from freekd_mm.engine.evaluation import evaluate

    evaluate(prepare_config(args), args.checkpoint, out=args.out, show_dir=args.show_dir)
    leave_process_group()


if __name__ == '__main__':
    run(main)
