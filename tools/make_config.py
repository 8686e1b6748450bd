"""Writes a distillation config for your student and your teacher."""

import argparse
import sys
from pathlib import Path

from freekd_mm.cli import Parser, run
from freekd_mm.compat import install
from freekd_mm.files import check_output, here


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    from freekd_mm.wizard.methods import list_methods

    parser = Parser(
        description=__doc__,
        epilog=f'methods (several joined by +, for example wavelet+figkd):\n{list_methods()}',
    )
    parser.add_argument(
        'student', help="the student's config: a file, or like mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"
    )
    parser.add_argument(
        'teacher', help='the same for the teacher, or transformers:NAME, timm:NAME, module:PACKAGE.MODULE:CLASS'
    )
    parser.add_argument(
        '--teacher-checkpoint', help="the teacher's checkpoint: a file or a URL; timm and transformers have their own"
    )
    parser.add_argument('--method', default='best', help='what to distil with; see below')
    parser.add_argument('-o', '--out', required=True, help='the config to write')
    parser.add_argument(
        '--stage', choices=['prompt', 'distill'], default='distill', help='prompt: write only stage 1 of FreeKD'
    )
    parser.add_argument('--prompt', help='a prompt file made before, instead of stage 1')
    parser.add_argument(
        '--prompt-iters', type=int, help='iterations of stage 1; default: a fifth of the training, 100 to 2000'
    )
    parser.add_argument(
        '--inherit',
        nargs='*',
        default=[],
        metavar='MODULE',
        help="modules of the student that start with the teacher's weights, for example neck bbox_head; "
        'default: all that fit, except the backbone',
    )
    parser.add_argument(
        '--no-inherit', dest='inherit', action='store_const', const=None, help='the student starts as its config says'
    )
    parser.add_argument(
        '--no-head',
        dest='head',
        action='store_false',
        help='do not compare what the decode heads of segmenters classify (compared by default)',
    )
    parser.add_argument('--prompt-dir', help='work directory of stage 1; default: work_dirs/<its config>_<mode>')
    parser.add_argument(
        '--features',
        nargs='+',
        default=[],
        metavar='TAP',
        help='what to compare, for example neck[1:4]: one tap for both (of the student alone where the teacher is of '
        'another library), or one of the student and one of the teacher; default: the neck, or the backbone',
    )
    parser.add_argument(
        '--probe-size',
        nargs='+',
        type=int,
        metavar='PIXELS',
        help='height and width of the dummy image that finds the shapes; default: from the configs',
    )
    parser.add_argument(
        '--unlabelled', metavar='FOLDER', help='pictures without labels: distilled too, between the labelled batches'
    )
    parser.add_argument('--dry-run', action='store_true', help='print what would be written')
    parser.add_argument('-v', '--verbose', action='store_true', help='list the modules that can be tapped')
    parser.add_argument(
        '--no-check',
        dest='check',
        action='store_false',
        help='do not look at the checkpoint, the prompt and the data first',
    )
    parser.add_force()
    args = parser.parse_args()
    for name, most in (('features', 2), ('probe_size', 2)):
        if len(getattr(args, name) or []) > most:
            parser.error(f'--{name.replace("_", "-")} takes one or two values')
    if Path(args.out).is_dir():
        parser.error(f'-o should be a file, but {args.out} is a folder')
    return args


def main() -> None:
    """Writes the config and says what to run."""
    args = parse_args()
    install()
    from freekd_mm.log import quiet
    from freekd_mm.wizard.make_config import plan_config

    if not args.dry_run:
        check_output(args.out, filter(None, (args.student, args.teacher, args.teacher_checkpoint)), args.force)
    with quiet():
        plan = plan_config(
            args.student,
            args.teacher,
            args.teacher_checkpoint,
            args.method,
            args.out,
            stage=args.stage,
            prompt=args.prompt,
            prompt_iters=args.prompt_iters,
            prompt_dir=args.prompt_dir,
            inherit=args.inherit,
            head=args.head,
            size=(args.probe_size[0], args.probe_size[-1]) if args.probe_size else None,
            features=args.features,
            check=args.check,
            unlabelled=args.unlabelled,
        )
    if args.verbose:
        for probed in plan.probed:
            print(f'{probed.listing()}\n')
    print(plan.summary())
    if args.dry_run:
        for file, text in plan.files.items():
            print(f'\n# {file}\n{text}', end='')
        return
    files = plan.write(args.force)
    for file in files:
        print(f'wrote {file}')
    print(f'next: python {here(Path(sys.argv[0]).with_name("train.py"))} {files[-1]}')


if __name__ == '__main__':
    run(main)
