"""Tries one config of each model family of mmdet and mmseg, or any list of configs: does it take a distilled step?

Student and teacher are built from the same config with random weights; the step is on two generated pictures. Each
config runs in its own process. Results are kept in the work directory: a second run continues with what is missing.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import importlib.metadata
import json
import logging
import math
import multiprocessing
import os
import re
import textwrap
import time
from pathlib import Path
from typing import Any

from freekd_mm.checks import check_file
from freekd_mm.cli import Parser, run
from freekd_mm.compat import install
from freekd_mm.compat.versions import zip_equal
from freekd_mm.files import check_output, write_kept
from freekd_mm.text import table

#: What can come out for a family: in the summary, and before the error in its row.
VERDICTS = {
    'distilled': ('distilled', ''),
    'plain': ('the plain model does not train this step', 'the plain model'),
    'package': ('the plain model needs a package that is not installed', 'the plain model needs'),
    'ours': ('the plain model trains, the distilled one does not', 'ours'),
    'open': ('not settled', 'not settled'),
}
#: Packages whose versions the page names.
PACKAGES = (
    *('torch', 'mmengine', 'mmcv', 'mmdet', 'mmsegmentation', 'mmpretrain', 'timm', 'torchvision', 'transformers'),
    *('fairscale', 'scikit-learn', 'scikit-image'),
)
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
    from zoo_step import PICTURES, distilled_step, plain_step

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
    known.update(family=family, config=config.name, seconds=round(time.monotonic() - begin, 1), versions=versions())
    file.write_text(json.dumps(known, indent=1))
    print(f'{family}: {" ".join(verdict(known))}', flush=True)
    return known


def succeeded(result: dict[str, Any]) -> bool:
    """Whether the distillation loss reached every level of the student, and the exported student is the plain one."""
    found = result.get('distilled')
    if not found:
        return False
    return found['exported'] == 0 and all(value > 0 for values in found['gradients'].values() for value in values)


def verdict(result: dict[str, Any]) -> tuple[str, str]:
    """Returns what came out for a config, a key of ``VERDICTS``, and the error."""
    from freekd_mm.runtime.config import missing_package

    if succeeded(result):
        return 'distilled', ''
    if 'distilled' in result:
        found = result['distilled']
        return 'ours', f'gradients {found["gradients"]}, exported student differs by {found["exported"]}'
    if 'plain' in result and not math.isfinite(result['plain']['loss']):
        return 'plain', f'the loss is {result["plain"]["loss"]}'
    for name, key in (('plain', 'plain_error'), ('ours', 'distilled_error')):
        if key in result:
            package = missing_package(result[key])
            return ('package', package) if package and name == 'plain' else (name, result[key])
    return 'open', result['error']


def markdown(results: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """Returns the page."""
    verdicts = [verdict(result) for result in results]
    counts = collections.Counter(name for name, _ in verdicts)
    date = datetime.datetime.now(datetime.timezone.utc).date()
    command = f'python tools/zoo.py --method {args.method} --time-limit {args.time_limit:.0f} -o docs/zoo.md'
    rows = [
        [
            result['family'],
            f'`{result["config"]}`',
            compared(result),
            'yes' if name == 'distilled' else 'no',
            f'{VERDICTS[name][1]}{f": {shorten(error)}" if error else ""}',
        ]
        for result, (name, error) in zip_equal(results, verdicts)
    ]
    left_out = [[f'`{name}`', why] for name, why in LEFT_OUT.items()]
    summary = [[text, str(counts[name])] for name, (text, _) in VERDICTS.items()]
    return f"""# Which models can be distilled

{counts['distilled']} of {len(results)} model families of MMDetection and MMSegmentation take a distilled training step.

A family is a folder of configs in one of the packages. One small config per family is tried: both the student and the
teacher are built from it with random weights. `make_config` connects them with the method `{args.method}`, and they
train for one step on two generated pictures. A family counts as distilled if

- the gradient of the distillation loss alone reaches every level of the student that is compared, and
- the exported student predicts exactly what the plain model with these weights predicts.

If this fails, the plain model trains the same step without a teacher. If that fails too, up to two other configs
of the family are tried. If none trains, the table has the error of the first one.

{table(summary, ['result', 'families'], markdown=True)}

Made on {date} by the command

```bash
{command}
```

with {versions()}.{elsewhere(results)}

## The families

{table(rows, ['family', 'config', 'compared', 'distilled', 'why not'], markdown=True)}

## What is left out

{table(left_out, ['folder', 'why'], markdown=True)}
"""


def elsewhere(results: list[dict[str, Any]]) -> str:
    """Says which families were tried with other versions."""
    own, families = versions(), collections.defaultdict(list)
    for result in results:
        if result.get('versions', own) != own:
            families[result['versions']].append(result['family'])
    return ''.join(f'\n\nWith {other}: {", ".join(names)}.' for other, names in families.items())


def compared(result: dict[str, Any]) -> str:
    """Says which features of the student were compared."""
    taps = collections.Counter(row[2] for row in result.get('distilled', {}).get('compared', []) if row[2])
    return ', '.join(f'`{tap}`' + (f' ({count} levels)' if count > 1 else '') for tap, count in taps.items())


def shorten(error: str) -> str:
    """Returns an error as one cell of a table, without folders of this machine."""
    text = re.sub(r"(?<![\w.])/[^\s'\"]*/(?=[\w.-]+)", '', ' '.join(error.split()))
    return f'`{textwrap.shorten(text, 160, placeholder=" ...")}`'


def versions() -> str:
    """Names what is installed of the packages that the configs use."""
    installed = {dist.metadata['Name'].lower(): dist.version for dist in importlib.metadata.distributions()}
    return ', '.join(f'{name} {installed[name]}' for name in PACKAGES if name in installed)


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument('configs', nargs='*', type=Path, help='config files; default: one of each family')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/zoo'), help='where the results are kept')
    parser.add_argument('--method', default='mse', help='a method of tools/make_config.py')
    parser.add_argument('--time-limit', type=float, default=90, help='seconds for one config')
    parser.add_argument('--again', action='store_true', help='try again those that were not distilled')
    parser.add_argument('-o', '--out', type=Path, help='the page to write, docs/zoo.md for example')
    parser.add_force()
    return parser.parse_args()


def main() -> None:
    """Runs the survey and writes its page."""
    args = parse_args()
    for config in args.configs:
        check_file('a config', config)
    if args.out is not None:
        check_output(args.out, args.configs, args.force)
    install()
    args.work_dir = args.work_dir.resolve()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    import mmdet.models  # noqa: F401
    import mmseg.models  # noqa: F401
    import torch
    import zoo_step  # noqa: F401

    torch.set_num_threads(1)
    logging.disable(logging.INFO)  # how each parameter was initialised
    families = [[path.resolve()] for path in args.configs] or choose_configs()
    results = [run_family(configs, args) for configs in families]
    print(f'{sum(map(succeeded, results))} of {len(results)} families distilled', flush=True)
    if args.out is not None:
        write_kept(args.out, markdown(results, args))


if __name__ == '__main__':
    run(main)
