"""The scope ``mmseg::`` in a config's ``_base_``, on either line."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
from mmengine.config import Config

from freekd_mm.compat import onedl

pytest.importorskip('mmseg')
CONFIG = "_base_ = ['mmseg::_base_/default_runtime.py']\n"


@pytest.mark.parametrize('order', ['import freekd_mm, mmengine', 'import mmengine, freekd_mm'])
def test_mmseg_configs_are_found(tmp_path, order):
    (tmp_path / 'my.py').write_text(CONFIG)
    code = f'{order}; print(mmengine.Config.fromfile("my.py").default_scope)'
    answer = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == 'mmseg'


@pytest.mark.skipif(not onedl._is_installed('onedl-mmsegmentation'), reason='the forks are not installed')
def test_it_is_still_needed(tmp_path, monkeypatch):
    """Fails when the fork finds its own configs: then freekd_mm/compat/onedl.py should go."""
    (tmp_path / 'my.py').write_text(CONFIG)
    monkeypatch.setitem(sys.modules[onedl.UTILS].MODULE2PACKAGE, 'mmseg', 'mmsegmentation')
    with pytest.raises(ModuleNotFoundError, match='mmsegmentation is not installed'):
        Config.fromfile(tmp_path / 'my.py')


@pytest.mark.parametrize(
    ('installed', 'package'),
    [
        ({'mmsegmentation'}, 'mmsegmentation'),
        ({'onedl-mmsegmentation'}, 'mmseg'),
        ({'onedl-mmsegmentation', 'mmsegmentation'}, 'mmsegmentation'),
        (set(), 'mmsegmentation'),
    ],
)
def test_only_the_forks_are_changed(monkeypatch, installed, package):
    packages = {'mmseg': 'mmsegmentation', 'mmdet': 'mmdet'}
    monkeypatch.setattr(onedl, '_is_installed', installed.__contains__)
    onedl.mend(SimpleNamespace(MODULE2PACKAGE=packages))
    assert packages == {'mmseg': package, 'mmdet': 'mmdet'}
