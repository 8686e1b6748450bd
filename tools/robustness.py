"""Evaluates models under the 15 common corruptions in 5 severities: mPC and rPC, as in COCO-C.

python tools/robustness.py student.py alone.pth distilled.pth --metric coco/bbox_mAP --out-dir work_dirs/robustness
"""

import argparse
from pathlib import Path

from freekd_mm.cli import Parser, run
from freekd_mm.compat import install


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument('config', help='config of a detector or segmenter, plain or distilled')
    parser.add_argument('checkpoints', nargs='+', help='checkpoints to compare, all of this config')
    parser.add_argument('--metric', required=True, help='coco/bbox_mAP, mIoU, ...')
    parser.add_argument(
        '--out-dir', required=True, help='gets a JSON file for each checkpoint; a second call continues'
    )
    parser.add_argument('--data-root', help="replaces the config's data_root")
    parser.add_argument('--corruptions', nargs='+', help='only these')
    parser.add_argument('--severities', nargs='+', type=int, choices=[1, 2, 3, 4, 5], default=[1, 2, 3, 4, 5])
    return parser.parse_args()


def main() -> None:
    """Evaluates and prints the table."""
    args = parse_args()
    install()
    from freekd_mm.benchmark.jobs import load_task_config
    from freekd_mm.robustness.corruptions import CORRUPTIONS
    from freekd_mm.robustness.protocol import compare, measure
    from freekd_mm.text import short_names

    cfg = load_task_config(args.config, args.data_root, {})
    results = {}
    for checkpoint, name in zip(args.checkpoints, short_names(args.checkpoints, 2)):
        results[name] = measure(
            cfg,
            checkpoint,
            args.metric,
            args.corruptions or tuple(CORRUPTIONS),
            args.severities,
            Path(args.out_dir) / f'{name}.json',
        )
    # AP is logged as a share, mIoU in percent.
    print(compare(results, 100 if all(result['clean'] <= 1 for result in results.values()) else 1))


if __name__ == '__main__':
    run(main)
