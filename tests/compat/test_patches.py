"""The changes to other packages: one list, one call, a switch, and a test for each that fails when it can go."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel, BaseTTAModel
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import checkpoint
from test_rooms import PACKAGE, ROOT, modules

from freekd_mm.compat import install, patches
from freekd_mm.compat.versions import installed_version, torch_at_least
from freekd_mm.engine.evaluation import evaluate
from freekd_mm.engine.training import run
from freekd_mm.registry import HOOKS as OURS
from freekd_mm.runtime.export import export_student


def run_python(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """Runs code in a new Python, as this one has the changes already."""
    return subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
        env={**os.environ, **environment},
    )


# ---------------------------------------------------------------------- the list

SIGNS = ('.__class__ = ', 'register_scheme(', 'sys.modules.setdefault(', 'signal.signal(', '.forward = ', '_at_fork(')


def test_list_names_tests_that_are_there():
    for test in [*(until for _, until in patches.PATCHES.values()), *re.findall(r'tests/[\w/]+\.py', patches.__doc__)]:
        file, _, function = test.partition('::')
        assert (ROOT / file).is_file(), test
        assert f'def {function}(' in (ROOT / file).read_text(encoding='utf-8') if function else True, test


def test_list_names_the_modules_that_change_something():
    """What gives an object another class or another method, or swaps a registered function, is in the list."""
    listed = set(re.findall(r'^- ``(.*?)``', patches.__doc__, re.MULTILINE))
    assert len(listed) > 7
    assert listed < set(modules())
    for module, path in modules().items():
        if module.startswith('compat') or module in listed:
            continue
        text = path.read_text(encoding='utf-8')
        for node in ast.walk(ast.parse(text)):
            code = ast.get_source_segment(text, node) if isinstance(node, (ast.Assign, ast.Call)) else ''
            assert not any(sign in code for sign in SIGNS), f'{path.relative_to(PACKAGE)}: {code}'
            assert not (code.startswith('vars(') and '] = ' in code), f'{path.relative_to(PACKAGE)}: {code}'


# ---------------------------------------------------------------------- who installs


def test_imports_change_nothing_and_install_changes_all(tmp_path):
    code = """
import sys, torch
import freekd_mm.engine.training, freekd_mm.losses, freekd_mm.registry, freekd_mm.runtime, freekd_mm.stage1
from mmengine.runner import CheckpointLoader, checkpoint, runner
import mmengine.runner
def changed():
    loaders = [CheckpointLoader._get_checkpoint_loader(name) for name in ('a.pth', 'http://a/b.pth')]
    places = [place.save_checkpoint for place in (mmengine.runner, runner, checkpoint)]
    stand_ins = [sys.modules[name] for name in ('mmrazor.structures.quantization',) if name in sys.modules]
    ours = [item.__module__.startswith('freekd_mm.') for item in (*loaders, *places, checkpoint.load_from_http)]
    return ours + [item.QConfigHandler is None for item in stand_ins]
assert not any(changed())
from freekd_mm.compat import install
install()
install()
assert changed() == [True] * (7 if torch.__version__ >= '2' else 6), changed()
"""
    answer = run_python(code, tmp_path)
    assert answer.returncode == 0, answer.stderr


@pytest.fixture
def installed(monkeypatch):
    """A list that grows when the patches would be installed, and this process is as if they were not."""
    calls: list[int] = []
    monkeypatch.setattr(patches, 'install_patches', lambda: calls.append(1))
    install.cache_clear()
    yield calls
    install.cache_clear()


CALLS = {
    'run': lambda: run(Config()),
    'evaluate': lambda: evaluate(Config(), ''),
    'export': lambda: export_student(Config(), '', ''),
    'model': lambda: MODELS.build(dict(type='freekd_mm.DistilledModel', architecture={}, teacher={}, distill={})),
    'encoder': lambda: MODELS.build({'type': 'freekd_mm.FeatureEncoder', 'backbone': {}}),
}


@pytest.mark.parametrize('call', CALLS)
def test_python_calls_and_models_install(installed, call):
    with contextlib.suppress(Exception):
        CALLS[call]()
    assert installed


#: These refuse to train without a DistilledModel, which has installed by then, or run in our own processes.
NEEDS_US = {'DistillScheduleHook', 'DistillPicturesHook', 'BenchmarkImagesHook'}


@pytest.mark.parametrize('name', sorted(set(OURS.modules) - NEEDS_US))
def test_hooks_install_in_the_training_of_somebody_else(installed, name):
    hook = HOOKS.build({'type': f'freekd_mm.{name}', **({'interval': 1} if 'Checkpoint' in name else {})})
    if name == 'SafeCheckpointHook':
        assert not installed
        hook.before_run(SimpleNamespace())
    assert installed


def test_tools_install():
    """All that read configs, and before they do."""
    for tool in (ROOT / 'tools').glob('*.py'):
        code = tool.read_text(encoding='utf-8')
        if tool.stem in ('doctor', 'make_scenes') or '__main__' not in code:
            continue
        calls = ('    install()\n', 'prepare_config(args)', 'from freekd_mm.api import')  # all of which do it
        assert any(call in code for call in calls), tool


# ---------------------------------------------------------------------- without them


def test_switch_leaves_them_out_and_says_so(tmp_path):
    code = """
import os, pickle, torch
from freekd_mm.compat import install
install()
install()
from mmengine.runner import CheckpointLoader, save_checkpoint
assert CheckpointLoader._get_checkpoint_loader('a.pth').__module__.startswith('mmengine')
assert save_checkpoint.__module__.startswith('mmengine')

class Attack:
    def __reduce__(self):
        return os.mkdir, ('trace',)

from freekd_mm.checkpoints.loading import UntrustedCheckpointError
from freekd_mm.prompts import load_prompt
from freekd_mm.runtime.teacher import load_weights
torch.save(dict(state_dict=dict(weight=torch.zeros(1)), meta=Attack()), 'a.pth')
for load in (load_prompt, lambda file: load_weights(torch.nn.Linear(1, 1), file)):
    try:
        load('a.pth')
    except UntrustedCheckpointError:
        pass
    else:
        raise AssertionError('it was loaded')
assert not os.path.exists('trace')
"""
    answer = run_python(code, tmp_path, **{patches.SWITCH: '1'})
    assert answer.returncode == 0, answer.stderr
    lines = [line for line in answer.stdout.splitlines() if patches.SWITCH in line]
    assert len(lines) == 1
    assert all(lost in lines[0] for lost, _ in patches.PATCHES.values())


def test_loader_is_still_needed(tmp_path):
    """mmengine alone does not read its own checkpoints, or runs code in them: else the loader should go."""
    code = """
import os, sys, torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

class Attack:
    def __reduce__(self):
        return os.mkdir, ('trace',)

torch.save(HistoryBuffer([1.0], [1]), 'a.pth')
torch.save(Attack(), 'b.pth')
for file in ('a.pth', 'b.pth'):
    try:
        CheckpointLoader.load_checkpoint(file)
    except Exception as error:
        print(type(error).__name__)
"""
    answer = run_python(code, tmp_path)
    reads_its_own = answer.stdout.split().count('UnpicklingError') < 2
    assert not reads_its_own or (tmp_path / 'trace').exists(), 'mmengine loads as data: remove load_only_data'


def test_what_does_not_fit_still_takes_many_lines(tmp_path):
    """mmengine's own has a line for each weight; ours loads the same, and has one."""
    code = """
import torch
from mmengine.runner import checkpoint
state = torch.nn.Sequential(*(torch.nn.Linear(2, size) for size in (3, 4, 5, 2)), torch.nn.Linear(2, 2)).state_dict()
def fit():
    model = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(4)), torch.nn.Identity(), torch.nn.Linear(1, 1))
    checkpoint.load_state_dict(model, state)
    assert torch.equal(model[3].weight, state['3.weight'])
fit()
print('-' * 9)
state['distillation.a'] = torch.zeros(1)
from freekd_mm.compat import install
install()
fit()
"""
    answer = run_python(code, tmp_path)
    assert answer.returncode == 0, answer.stderr
    theirs, ours = answer.stdout.split('-' * 9)
    assert theirs.count('size mismatch') == 6
    assert (
        '20% of the 10 weights of Sequential were loaded; missing: 5.bias, 5.weight; other shape: 0.weight (2, 2) but '
        '(3, 2) in the file, 0.bias (2,) but (3,) in the file, ' in ours
    )
    assert '; unused: 4.weight, 4.bias\n' in ours
    assert 'size mismatch' not in ours
    assert 'distillation' not in ours, 'what a distillation added is no news for a plain student'


def test_a_wrapped_model_gets_its_weights(capfd):
    install()

    class Bare(BaseModel):
        def forward(self, inputs, data_samples=None, mode='tensor'):
            return inputs

    class Wrapped(BaseTTAModel):
        def merge_preds(self, data_samples_list):
            return data_samples_list

    source = torch.nn.Linear(2, 2)
    bare = Bare()
    bare.layer = torch.nn.Linear(2, 2)
    checkpoint.load_state_dict(Wrapped(bare), {f'layer.{key}': value for key, value in source.state_dict().items()})
    assert torch.equal(bare.layer.weight, source.weight)
    assert 'were loaded' not in ''.join(capfd.readouterr())


@pytest.mark.skipif(sys.platform == 'win32', reason='needs a limit on the size of files')
def test_saver_is_still_needed(tmp_path):
    """mmengine alone damages the file that it cannot replace: else the saver should go."""
    code = """
import resource, signal, torch
from mmengine.runner import save_checkpoint
save_checkpoint(dict(weight=torch.zeros(1)), 'a.pth')
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    save_checkpoint(dict(weight=torch.zeros(1000)), 'a.pth')
except OSError:
    pass
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
torch.load('a.pth', weights_only=True)
"""
    answer = run_python(code, tmp_path)
    assert answer.returncode != 0, 'mmengine writes whole files: remove save_whole'
    assert 'line 12' in answer.stderr, answer.stderr


@pytest.mark.skipif(torch_at_least(2, 1), reason='PyTorch 2.1 and newer take SyncBN on the CPU')
def test_sync_bn_still_refuses_the_cpu(tmp_path):
    code = 'import torch; torch.nn.SyncBatchNorm(3)(torch.zeros(2, 3, 4, 4))'
    answer = run_python(code, tmp_path)
    assert 'expected input tensor to be on GPU' in answer.stderr, 'PyTorch takes it: remove normalize_on_cpu'


def test_sync_bn_on_the_cpu_is_plain_batch_normalization():
    x = torch.randn(2, 3, 4, 5)
    sync, plain = torch.nn.SyncBatchNorm(3), torch.nn.BatchNorm2d(3)
    for mode in (True, False):
        torch.testing.assert_close(sync.train(mode)(x), plain.train(mode)(x))
    torch.testing.assert_close(sync.state_dict(), plain.state_dict())


# ---------------------------------------------------------------------- configs of the onedl line

CONFIG = "_base_ = ['mmseg::_base_/default_runtime.py']\n"


def test_mmseg_configs_are_found(tmp_path):
    pytest.importorskip('mmseg')
    install()
    (tmp_path / 'my.py').write_text(CONFIG)
    assert Config.fromfile(tmp_path / 'my.py').default_scope == 'mmseg'


@pytest.mark.skipif(not installed_version('onedl-mmsegmentation'), reason='the forks are not installed')
def test_configs_of_forks_are_still_not_found(tmp_path, monkeypatch):
    """Fails when the fork finds its own configs: then find_configs_of_forks should go."""
    (tmp_path / 'my.py').write_text(CONFIG)
    monkeypatch.setitem(sys.modules['mmengine.config.utils'].MODULE2PACKAGE, 'mmseg', 'mmsegmentation')
    with pytest.raises(ModuleNotFoundError, match='mmsegmentation is not installed'):
        Config.fromfile(tmp_path / 'my.py')


@pytest.mark.parametrize(
    ('distributions', 'package'),
    [
        ({'mmsegmentation'}, 'mmsegmentation'),
        ({'onedl-mmsegmentation'}, 'mmseg'),
        ({'onedl-mmsegmentation', 'mmsegmentation'}, 'mmsegmentation'),
        (set(), 'mmsegmentation'),
    ],
)
def test_only_the_forks_are_changed(monkeypatch, distributions, package):
    packages = {'mmseg': 'mmsegmentation', 'mmdet': 'mmdet'}
    monkeypatch.setattr('mmengine.config.utils.MODULE2PACKAGE', packages)
    monkeypatch.setattr(patches, 'installed_version', distributions.__contains__)
    patches.find_configs_of_forks()
    assert packages == {'mmseg': package, 'mmdet': 'mmdet'}
