"""The rooms of the package: each imports only those above it, and a loss loads no more than it needs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'freekd_mm'
#: From top to bottom, as CONTRIBUTING.md prints it; a name is a folder, a file, or a module in a folder.
ROOMS = """
version, compat/versions
checks, files, log, text, tensors
pictures
frequency
checkpoints
compat
registry
prompts
losses
connectors
runtime
engine
stage1
datasets
wizard
robustness
pages
visualize
report
benchmark
doctor
cli, api
"""
RANK = {room: rank for rank, line in enumerate(ROOMS.split('\n')) for room in line.split(', ') if room}


def modules() -> dict[str, Path]:
    """All modules by their dotted names, without ``freekd_mm.``."""
    found = {}
    for path in PACKAGE.rglob('*.py'):
        parts = path.relative_to(PACKAGE).with_suffix('').parts
        found['.'.join(parts[:-1] if parts[-1] == '__init__' else parts)] = path
    return found


def room_of(module: str) -> str:
    parts = module.split('.')
    inner = '/'.join(parts[:2])
    return inner if inner in RANK else parts[0]


def imports_of(path: Path) -> Iterator[str]:
    """Modules of ours that a file imports, also within functions and for type checkers."""
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path} has a relative import'
            names = [f'{node.module}.{alias.name}' for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition('.')
            if package == PACKAGE.name and rest != '__version__':
                yield rest


def test_every_module_is_in_a_room():
    rooms = {room_of(module) for module in modules() if module}
    assert rooms == set(RANK)


@pytest.mark.parametrize('room', RANK)
def test_imports_go_upwards(room):
    """Rooms of one line do not import each other, so there is no circle either."""
    wrong = [
        f'{path.relative_to(ROOT)} imports {target}'
        for module, path in modules().items()
        if module and room_of(module) == room
        for target in imports_of(path)
        if room_of(target) != room and RANK[room_of(target)] >= RANK[room]
    ]
    assert not wrong


def test_mmcv_and_what_is_on_it_are_imported_within_functions():
    late = re.compile('^(import|from) (mmcv|mmdet|mmseg|mmrazor)\\b', re.MULTILINE)
    assert not [module for module, path in modules().items() if late.search(path.read_text(encoding='utf-8'))]


def test_contributing_prints_the_rooms():
    assert ROOMS.strip() in (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')


def loaded_by(code: str) -> set[str]:
    """The modules that a fresh process has loaded behind some code."""
    command = f'import sys; {code}; print(*sys.modules)'
    answer = subprocess.run([sys.executable, '-c', command], capture_output=True, text=True, cwd=ROOT, check=False)
    assert answer.returncode == 0, answer.stderr
    return set(answer.stdout.splitlines()[-1].split())


def test_importing_the_package_loads_next_to_nothing():
    loaded = loaded_by('import freekd_mm, freekd_mm.compat, freekd_mm.cli')
    others = {name.split('.')[0] for name in loaded}
    assert not others & {'torch', 'numpy', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmrazor'}


@pytest.mark.parametrize(
    'code',
    [
        'from freekd_mm.losses import FiGKDLoss, WaveletLoss; WaveletLoss(4), FiGKDLoss()',
        'from mmengine.registry import MODELS; MODELS.build(dict(type="freekd_mm.WaveletLoss", channels=4)); '
        'MODELS.build(dict(type="freekd_mm.DCTAttentionLoss"))',
    ],
    ids=['class', 'registry'],
)
def test_building_a_loss_loads_no_room_below_it(code):
    loaded = loaded_by(code)
    rooms = {room_of(name.partition('.')[2]) for name in loaded if name.startswith('freekd_mm.')}
    assert not {room for room in rooms if RANK[room] > RANK['losses']}
    assert not {'freekd_mm.compat.patches', 'mmengine.runner', 'mmcv', 'scipy'} & loaded
