"""The model zoo: what README and metafile of a config folder should say, from the configs and the published numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config

from freekd_mm.compat.versions import cache
from freekd_mm.stage1.recipe import MOST

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs'
#: The method of each folder as the papers' columns call it; ours is in no paper.
METHODS: dict[str, str | None] = {
    'wavelet': None,
    'freekd': 'FreeKD',
    'famkd': 'FAM-KD',
    'figkd': 'FiGKD',
    'dctkd': 'DCT-driven attention',
    'ld': 'LD',
    'crosskd': 'CrossKD',
    'kl': 'KD',
}
SOURCES = {'mmdet': 'MMDetection', 'mmseg': 'MMSegmentation'}
FOLDERS = (*METHODS, 'demo', 'benchmark')


@cache
def published() -> dict[str, dict[str, Any]]:
    """Returns the published numbers by pair."""
    return yaml.safe_load((CONFIGS / '_base_/pairs/published.yml').read_text(encoding='utf-8'))


@cache
def load(path: Path) -> Config:
    """Loads a config once."""
    return Config.fromfile(path)


@cache
def metafile(folder: str) -> dict[str, Any]:
    """Returns a folder's metafile."""
    return yaml.safe_load((CONFIGS / folder / 'metafile.yml').read_text(encoding='utf-8'))


def config_files(folder: str) -> list[Path]:
    """Returns all configs of a folder that can be run; those below _base_ cannot."""
    return [
        path for path in sorted((CONFIGS / folder).rglob('*.py')) if '_base_' not in path.parts[len(ROOT.parts) + 1 :]
    ]


def pair_of(path: Path) -> str | None:
    """Returns the pair that a config inherits, or None."""
    for base in re.findall(
        r"'([^']+\.py)'", (re.search(r'^_base_ = (\[.*?\])', path.read_text(), re.M | re.S) or [''])[0]
    ):
        if '::' in base:
            continue
        file = (path.parent / base).resolve()
        found = file.stem if file.parent.name == 'pairs' else pair_of(file)
        if found:
            return found
    return None


def number(pair: dict[str, Any], value: float | None) -> str:
    """Returns a number as the tables have it: AP with one digit, mIoU with two."""
    if value is None:
        return ''
    return f'{value:.2f}' if pair['metric'] == 'mIoU' else f'{value:.1f}'


def row(path: Path, folder: str, method: str | None) -> str:
    """Returns the cells of student, teacher and paper, and the command, as the README's row of a config has them.

    Args:
        path: The config.
        folder: Its folder, e.g. 'freekd'.
        method: The paper's name where its number is for exactly this config.
    """
    pair = published().get(pair_of(path) or '', {'metric': 'box AP'})
    student = number(pair, pair.get('student'))
    if pair.get('source', {}).get('student'):
        student += ' (paper)'
    paper = number(pair, pair.get('papers', {}).get(method)) if method else ''
    cells = [student, number(pair, pair.get('teacher')), paper, '']
    middle = '|'.join(f' {cell} ' if cell else ' ' for cell in cells)
    return f'|{middle}| `python tools/train.py configs/{folder}/{path.relative_to(CONFIGS / folder).as_posix()}` |'


def metadata(path: Path) -> dict[str, Any]:
    """Returns the part of a config's Metadata that follows from the config and its pair."""
    if "_base_ = ['mmpretrain::" in path.read_text(encoding='utf-8'):
        return {}  # loads only where mmpretrain is installed
    cfg = load(path)
    for hook in cfg.get('custom_hooks') or ():
        if hook['type'] == 'freekd_mm.FrequencyPromptHook':  # stage 1, with a loop of its own
            # A fifth of what such a config trains for is more than the most.
            return {'Iterations': hook.get('max_iters', MOST)}
    found: dict[str, Any] = {}
    loop = cfg.get('train_cfg') or {}
    if loop.get('max_epochs'):
        found['Epochs'] = loop.max_epochs
    elif loop.get('max_iters'):
        found['Iterations'] = loop.max_iters
    name = pair_of(path)
    if name is None:
        return found
    pair = published()[name]
    base = CONFIGS / '_base_/pairs' / f'{name}.py'
    student = re.search(r"'(\w+::[^']+)'", base.read_text())
    assert student is not None, f'{base} should inherit a config of mmdet or mmseg'
    metric = pair['metric']
    return {
        'Training Data': pair['dataset'],
        **found,
        'Student': {
            'Config': student[1],
            'Metrics': {metric: pair['student']},
            'Source': pair.get('source', {}).get('student') or SOURCES[student[1].split('::')[0]],
        },
        'Teacher': {
            'Config': cfg.model.teacher.cfg_path,
            'Metrics': {metric: pair['teacher']},
            'Source': SOURCES[cfg.model.teacher.cfg_path.split('::')[0]],
            'Weights': cfg.model.teacher.checkpoint,
        },
    }
