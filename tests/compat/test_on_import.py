"""What waits for an import: it runs before anyone sees the module, and imports nothing by itself."""

from __future__ import annotations

import importlib
import subprocess
import sys
from types import ModuleType

import pytest

from freekd_mm.compat.on_import import ImportFinder, when_imported


@pytest.fixture
def waited_for(tmp_path, monkeypatch):
    """A module that nobody has imported yet."""
    (tmp_path / 'waited_for.py').write_text('value = 1\n')
    monkeypatch.syspath_prepend(tmp_path)
    yield 'waited_for'
    sys.modules.pop('waited_for', None)
    for finder in sys.meta_path:
        if isinstance(finder, ImportFinder):
            finder.actions.pop('waited_for', None)


def double(module: ModuleType) -> None:
    module.value *= 2


def test_runs_once_when_the_module_comes(waited_for):
    when_imported(waited_for, double)
    when_imported(waited_for, double)
    assert waited_for not in sys.modules
    assert importlib.import_module(waited_for).value == 2


def test_runs_at_once_when_the_module_is_there(waited_for):
    module = importlib.import_module(waited_for)
    when_imported(waited_for, double)
    assert module.value == 2


def test_modules_of_other_finders_are_reached(waited_for, tmp_path, monkeypatch):
    """An editable installation is found by a finder of its own."""
    from importlib.machinery import PathFinder

    class Editable:
        @staticmethod
        def find_spec(name, path=None, target=None):
            return PathFinder.find_spec(name, [str(tmp_path)]) if name == 'waited_for' else None

    monkeypatch.setattr(sys, 'path', [entry for entry in sys.path if entry != str(tmp_path)])
    monkeypatch.setattr(sys, 'meta_path', [*sys.meta_path, Editable])
    when_imported(waited_for, double)
    assert importlib.import_module(waited_for).value == 2


@pytest.mark.parametrize('order', ['freekd_mm.registry, mmengine.runner', 'mmengine.runner, freekd_mm.registry'])
def test_checkpoints_are_safe_whichever_is_imported_first(tmp_path, order):
    code = f"""
import {order}
from mmengine.runner import CheckpointLoader, Runner, save_checkpoint
from mmengine.runner import checkpoint, runner
assert save_checkpoint.atomic and runner.save_checkpoint.atomic and checkpoint.save_checkpoint.atomic
assert CheckpointLoader._get_checkpoint_loader('a.pth').__module__ == 'freekd_mm.checkpoints.loading'
assert checkpoint.load_from_http.__module__ == 'freekd_mm.checkpoints.loading'
"""
    answer = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize(
    ('command', 'unwanted'),
    [
        ('import freekd_mm.losses', {'mmengine.runner', 'mmcv', 'ptwt', 'pywt', 'scipy'}),
        ('import freekd_mm, freekd_mm.cli', {'torch', 'mmengine'}),
    ],
)
def test_imports_bring_no_more_than_they_need(tmp_path, command, unwanted):
    code = f'{command}; import sys; print(*sys.modules)'
    answer = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert answer.returncode == 0, answer.stderr
    assert not unwanted & set(answer.stdout.split())
