"""Trains a detector, a segmenter, a distilled student or a frequency prompt from a config."""

import argparse

from freekd_mm.cli import Parser, add_common_options, prepare_config, run


def parse_args() -> argparse.Namespace:
    """Reads the command line; the options are those of MMDetection's train.py."""
    parser = Parser(description=__doc__)
    add_common_options(parser)
    parser.add_argument('--amp', action='store_true', help='train with automatic mixed precision')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help="scale the learning rate by the config's base batch size"
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='resume from this checkpoint, or without a path from the newest in the work directory',
    )
    return parser.parse_args()


def main() -> None:
    """Runs stage 1 if its prompt is missing, then the config itself."""
    args = parse_args()
    from torch.distributed.elastic.multiprocessing.errors import record

    from freekd_mm.engine.distributed import leave_process_group
    from freekd_mm.engine.training import run as train
    from freekd_mm.engine.workdir import is_first_process

    # With torchrun the last lines then say which process failed first, and why.
    cfg = prepare_config(args)
    record(train)(cfg, amp=args.amp, auto_scale_lr=args.auto_scale_lr, resume=args.resume, check=args.check)
    if is_first_process(cfg.launcher):
        from freekd_mm.report.summary import summary

        print(summary(cfg.work_dir, args.config))
    leave_process_group()


if __name__ == '__main__':
    run(main)
