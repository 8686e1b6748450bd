"""Tries one config of each model family of mmdet and mmseg, or any list of configs: does it take a distilled step?

Student and teacher are built from the same config with random weights; the step is on two generated pictures. Each
config runs in its own process. Results are kept in the work directory: a second run continues with what is missing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from freekd_mm.cli import Parser, run
from freekd_mm.compat import install

DATA = 'configs of data sets, for models of other folders'
TRACKERS = 'trackers, and networks for them'
#: Folders of configs that are not families, and why.
LEFT_OUT = {
    **dict.fromkeys(['cityscapes', 'deepfashion', 'dsdl', 'lvis', 'objects365', 'openimages', 'pascal_voc'], DATA),
    **dict.fromkeys(['v3det', 'wider_face'], DATA),
    **dict.fromkeys(['bytetrack', 'deepsort', 'mask2former_vis', 'masktrack_rcnn', 'ocsort', 'qdtrack'], TRACKERS),
    **dict.fromkeys(['reid', 'sort', 'strongsort'], TRACKERS),
    '_base_': 'parts of configs',
    'common': 'parts of configs',
}
BIG = re.compile(
    r'[rxs]101|r152|regnetx-[^4]|swin-[bl]|[-_](?:x|l|large|huge|b[1-5])[-_]|ms-|2x|lsj|levir|dpool|(?:hr|w)(?:32|40|48)'
)
# Of a family whose first config does not train on this machine without a teacher.
TRIES = 3
SMALL = re.compile(r'r18|r34|tiny|nano|[-_](?:s|t|b0|small)[-_]|hr18s|w18s|mbv2|mnv2')


def choose_configs() -> list[list[Path]]:
    """Returns the configs to try of each family of the installed packages: the smallest by their names, best first."""
    chosen = []
    for package in ('mmdet', 'mmseg'):
        folder = Path(__import__(package).__file__).parent / '.mim/configs'
        for family in sorted(path for path in folder.iterdir() if path.is_dir() and path.name not in LEFT_OUT):
            files = [path for path in sorted(family.glob('*.py')) if not path.name.startswith('_')]
            files.sort(key=lambda p: (bool(BIG.search(p.name)), not SMALL.search(p.name), len(p.name)))
            chosen += [files[:TRIES]] if files else []
    return chosen


def family_of(config: Path) -> str:
    """Returns the folder of a config, after its package if it has one."""
    parts = config.parts
    return f'{parts[parts.index(".mim") - 1]}/{config.parent.name}' if '.mim' in parts else config.parent.name


def try_config(config: Path, method: str, file: Path) -> None:
    """Takes the distilled step, or the plain one if that fails, and writes what happened."""
    from freekd_mm.wizard.survey import PICTURES, distilled_step, plain_step

    # Some configs name others by a path from the folder of all configs.
    os.chdir(config.parents[2])
    for picture in PICTURES:
        found: dict[str, Any] = {}
        try:
            found['distilled'] = distilled_step(str(config), str(config), method, picture)
            break
        except Exception as error:
            found['distilled_error'] = f'{type(error).__name__}: {error}'
        try:
            found['plain'] = plain_step(str(config), picture)
            break
        except Exception as error:
            found['plain_error'] = f'{type(error).__name__}: {error}'
    file.write_text(json.dumps(found))


def run_family(configs: list[Path], args: argparse.Namespace) -> dict[str, Any]:
    """Tries configs until one is distilled, or fails although the plain model trains; returns its result."""
    results = []
    for config in configs:
        results.append(run_config(config, args))
        if 'plain_error' not in results[-1]:
            return results[-1]
    return results[0]


def run_config(config: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Returns the result of a config, from the work directory or of a new process."""
    family = family_of(config)
    file = args.work_dir / f'{family.replace("/", "_")}_{config.stem}.json'
    known = json.loads(file.read_text()) if file.is_file() else None
    if known is not None and (succeeded(known) or not args.again):
        return known
    begin = time.monotonic()
    file.unlink(missing_ok=True)
    # The packages are imported already; what a config breaks ends with its process.
    child = multiprocessing.get_context('fork').Process(target=try_config, args=(config, args.method, file))
    child.start()
    child.join(args.time_limit)
    known = json.loads(file.read_text()) if file.is_file() else {'error': f'ended with {child.exitcode}'}
    if child.is_alive():
        child.kill()
        known['error'] = f'not done after {args.time_limit:.0f} s'
    known.update(family=family, config=config.name, seconds=round(time.monotonic() - begin, 1))
    file.write_text(json.dumps(known, indent=1))
    print(f'{family}: {"distilled" if succeeded(known) else verdict(known)}', flush=True)
    return known


def succeeded(result: dict[str, Any]) -> bool:
    """Whether the distillation loss reached every level of the student, and the exported student is the plain one."""
    found = result.get('distilled')
    if not found:
        return False
    return found['exported'] == 0 and all(value > 0 for values in found['gradients'].values() for value in values)


def verdict(result: dict[str, Any]) -> str:
    """Says why a config was not distilled, and whose fault it is."""
    if 'distilled' in result:
        found = result['distilled']
        return f'ours: gradients {found["gradients"]}, exported student differs by {found["exported"]}'
    for whose, key in (("the plain model's", 'plain_error'), ('ours', 'distilled_error'), ('not settled', 'error')):
        if key in result:
            return f'{whose}: {" ".join(str(result[key]).split())[:300]}'
    return 'no result'


def markdown(results: list[dict[str, Any]], command: str) -> str:
    """Returns the page."""
    from freekd_mm.doctor.checkup import versions_line

    good = [result for result in results if succeeded(result)]
    lines = [
        '# Which models can be distilled',
        '',
        f'{len(good)} of {len(results)} families took a distilled step. {versions_line()}',
    ]
    return '\n'.join(lines)


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument('configs', nargs='*', type=Path, help='config files; default: one of each family')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/zoo'), help='where the results are kept')
    parser.add_argument('--method', default='mse', help='a method of tools/make_config.py')
    parser.add_argument('--time-limit', type=float, default=90, help='seconds for one config')
    parser.add_argument('--again', action='store_true', help='try again those that were not distilled')
    parser.add_argument('-o', '--out', type=Path, help='the page to write, docs/zoo.md for example')
    return parser.parse_args()


def main() -> None:
    """Runs the survey and writes its page."""
    args = parse_args()
    install()
    args.work_dir = args.work_dir.resolve()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    import mmdet.models  # noqa: F401
    import mmseg.models  # noqa: F401
    import torch

    import freekd_mm.wizard.survey  # noqa: F401

    torch.set_num_threads(1)
    families = [[path.resolve()] for path in args.configs] or choose_configs()
    results = [run_family(configs, args) for configs in families]
    print(f'{sum(map(succeeded, results))} of {len(results)} families distilled', flush=True)
    if args.out is not None:
        args.out.write_text(markdown(results, ' '.join(sys.argv)))


if __name__ == '__main__':
    run(main)
