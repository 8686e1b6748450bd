"""Checkpoints from elsewhere are data: what they hold beside it is refused, and never run."""

from __future__ import annotations

import builtins
import functools
import importlib
import io
import os
import pickle
import re
import runpy
import subprocess
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import tiny_configs
import torch
from distill_cases import CWD, build, distilled
from mmengine.config import Config
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner import CheckpointLoader, load_checkpoint
from torch_versions import newer_torch
from toy_runs import toy_config, toy_run

from freekd_mm.checkpoints import sources
from freekd_mm.checkpoints.loading import UntrustedCheckpointError, load_checkpoint_file
from freekd_mm.prompts import load_prompt

REFUSED = r'should hold tensors and plain data only, but .*Nothing of it was run\. .*--trust-checkpoint'


class Call:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def payloads(sentinel):
    """Returns ways to run code that leaves ``sentinel`` behind."""
    touch = f'touch {sentinel}'
    code = f'open({str(sentinel)!r}, "w").close()'
    run_code = compile(code, 'payload', 'exec').co_code
    return {
        'os.system': Call(os.system, touch),
        'posix.popen': Call(os.popen, touch),
        'subprocess': Call(subprocess.Popen, ['touch', str(sentinel)]),
        'eval': Call(eval, f'__import__("os").system({touch!r})'),
        'exec': Call(exec, code),
        'open': Call(open, str(sentinel), 'w'),
        'import': Call(importlib.import_module, 'antigravity'),
        'runpy': Call(runpy.run_path, str(sentinel)),
        'getattr of a module': Call(builtins.getattr, Call(importlib.import_module, 'os'), 'system'),
        'getattr of a class': Call(builtins.getattr, HistoryBuffer, '__init__'),
        'partial': Call(functools.partial, os.system, touch),
        'pickle in a pickle': Call(pickle.loads, pickle.dumps(Call(os.system, touch))),
        'torch.load': Call(torch.load, str(sentinel)),
        'torch.hub': Call(torch.hub.load, 'stranger/repository', 'model'),
        'numpy.load': Call(np.load, str(sentinel), None, True),
        'path': Call(Path.write_text, Path(sentinel), str(run_code)),
        'a class of ours': build,
    }


def write(content, path, format='zip'):
    """Writes in one of the formats that ``torch.load`` reads."""
    if format == 'pickle':
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=format == 'zip')
    return path


@pytest.mark.parametrize('name', payloads(Path('x')))
@pytest.mark.parametrize('format', ['zip', 'legacy', 'pickle'])
def test_code_is_refused(name, format, tmp_path):
    sentinel = tmp_path / 'sentinel'
    path = write({'state_dict': {}, 'meta': payloads(sentinel)[name]}, tmp_path / 'evil.pth', format)
    # A plain pickle is no format of checkpoints: that it does not load is enough.
    match = None if format == 'pickle' else REFUSED
    with pytest.raises(RuntimeError, match=match) as caught:
        load_checkpoint_file(path)
    assert format == 'pickle' or isinstance(caught.value, UntrustedCheckpointError)
    if name == 'os.system' and format != 'pickle':
        assert re.search(r"but it names '\w+\.system'\.", str(caught.value))
    assert not sentinel.exists()


@pytest.fixture
def evil(tmp_path):
    """A checkpoint that leaves ``sentinel`` behind when it is unpickled."""
    content = {'state_dict': {}, 'meta': {'epoch': 1, 'iter': 3}, 'message_hub': {}, 'optimizer': {}}
    content['hook'] = Call(os.system, f'touch {tmp_path / "sentinel"}')
    return write(content, tmp_path / 'evil.pth')


def use_as_teacher(evil, tmp_path):
    student, teacher = (tiny_configs.detector(tmp_path)['model'] for _ in range(2))
    entry = {'cwd': {'student': 'neck', 'loss': CWD}}
    build(distilled({'model': student}, {'model': teacher, 'checkpoint': str(evil)}, entry)['model'])


def use_as_prompt(evil, tmp_path):
    load_prompt(evil)


def use_to_resume(evil, tmp_path):
    toy_run(toy_config(tmp_path), resume=str(evil))


def use_as_last(evil, tmp_path):
    work_dir = tmp_path / 'work'
    work_dir.mkdir(exist_ok=True)
    (work_dir / 'last_checkpoint').write_text(str(evil))
    toy_run(toy_config(tmp_path), resume='auto')


def use_to_start_from(evil, tmp_path):
    toy_run(toy_config(tmp_path, load_from=str(evil)))


def use_as_backbone(evil, tmp_path):
    model = tiny_configs.detector(tmp_path)['model']
    model['backbone']['init_cfg'] = {'type': 'Pretrained', 'checkpoint': str(evil)}
    build(model).init_weights()


def use_in_mmengine(evil, tmp_path):
    load_checkpoint(torch.nn.Linear(1, 1), str(evil))


def use_to_evaluate(evil, tmp_path):
    from freekd_mm.engine.evaluation import evaluate

    loader = toy_config(tmp_path)['val_dataloader']
    test = {'test_dataloader': loader, 'test_evaluator': {'type': 'ToyMetric'}, 'test_cfg': {}}
    evaluate(Config(toy_config(tmp_path, **test)), str(evil))


def use_to_export(evil, tmp_path):
    from freekd_mm.runtime.export import export_student

    export_student(Config(toy_config(tmp_path)), evil, tmp_path / 'out.pth')


USES = [value for name, value in list(globals().items()) if name.startswith('use_')]


@pytest.mark.parametrize('use', USES)
def test_wherever_a_file_is_used(use, evil, tmp_path, monkeypatch):
    with pytest.raises(UntrustedCheckpointError, match=REFUSED):
        use(evil, tmp_path)
    assert not (tmp_path / 'sentinel').exists()
    # The switch of PyTorch that takes the protection from all programs does not take it from us.
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    with pytest.raises(UntrustedCheckpointError, match=REFUSED):
        use(evil, tmp_path)
    assert not (tmp_path / 'sentinel').exists()


def test_the_payload_works(evil, tmp_path):
    """The tests above can fail."""
    torch.load(evil, weights_only=False)
    assert (tmp_path / 'sentinel').exists()


def test_config_of_a_checkpoint_is_not_run(tmp_path):
    """mmengine runs ``meta['config']`` as a Python file when it resumes."""
    config = toy_config(tmp_path)
    toy_run(config)
    path = tmp_path / 'work' / 'epoch_2.pth'
    content = load_checkpoint_file(path)
    code = f'open({str(tmp_path / "sentinel")!r}, "w").close()'
    content['meta']['config'] = f'x = 1\n{code}\n'
    torch.save(content, path)
    toy_run(config, resume=str(path))
    assert not (tmp_path / 'sentinel').exists()
    Config.fromstring(content['meta']['config'], '.py')
    assert (tmp_path / 'sentinel').exists()


@pytest.fixture
def nothing_trusted():
    sources.TRUSTED.clear()


def test_trusted_files_by_name(evil, tmp_path, nothing_trusted, monkeypatch):
    other = tmp_path / 'other.pth'
    other.write_bytes(evil.read_bytes())
    monkeypatch.chdir(tmp_path)
    sources.trust(evil.name)
    load_checkpoint_file(evil)
    assert (tmp_path / 'sentinel').exists()
    (tmp_path / 'sentinel').unlink()
    with pytest.raises(UntrustedCheckpointError, match='--trust-checkpoint'):
        load_checkpoint_file(other)
    assert not (tmp_path / 'sentinel').exists()


def test_trusted_files_of_the_command(evil, tmp_path, nothing_trusted):
    import argparse

    from freekd_mm.cli import add_common_options, prepare_config

    Config(toy_config(tmp_path)).dump(tmp_path / 'config.py')
    parser = argparse.ArgumentParser()
    add_common_options(parser)
    prepare_config(parser.parse_args([str(tmp_path / 'config.py'), '--trust-checkpoint', str(evil)]))
    CheckpointLoader.load_checkpoint(str(evil))
    assert (tmp_path / 'sentinel').exists()


def test_a_trusted_url_is_its_cached_copy(evil, tmp_path, nothing_trusted, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    cached = tmp_path / 'checkpoints' / 'model-0123abcd.pth'
    cached.parent.mkdir()
    cached.write_bytes(evil.read_bytes())
    with pytest.raises(UntrustedCheckpointError):
        CheckpointLoader.load_checkpoint('https://example.org/model-0123abcd.pth')
    sources.trust('https://example.org/model-0123abcd.pth')
    CheckpointLoader.load_checkpoint('https://example.org/model-0123abcd.pth')
    assert (tmp_path / 'sentinel').exists()


def official():
    """Returns what the files of OpenMMLab hold: mmengine's objects and NumPy's in the meta."""
    hub = MessageHub('official')
    for value in (1.0, np.float64(0.5), np.float32(2), torch.tensor(3.0)):
        hub.update_scalar('train/loss', value)
    hub.update_info('epoch', 11)
    hub.update_info('best_score', np.float64(0.374))
    hub.update_info('loop_stage', 'train')
    state = OrderedDict(weight=torch.ones(1, 1), bias=torch.zeros(1))
    state._metadata = OrderedDict({'': {'version': 1}})
    return {
        'meta': {
            'epoch': 12,
            'iter': 87960,
            'cfg': 'model = dict()',
            'seed': 0,
            'time': '20220926',
            'CLASSES': ('person', 'bicycle'),
            'dataset_meta': {'classes': ('person',), 'palette': [(220, 20, 60)], 'ids': np.arange(3)},
            'hook_msgs': {'best_score': np.float64(0.4), 'best_ckpt': 'epoch_12.pth'},
            'flags': [np.bool_(True), np.int64(3), np.uint8(1), np.array(['a', 'b']), np.array([[1.5]], np.float16)],
            'sets': {1, 2},
            'dtype': torch.float16,
            'device': torch.device('cpu'),
            'size': torch.Size([1, 2]),
        },
        'state_dict': state,
        'message_hub': hub.state_dict(),
        'optimizer': {'state': {0: {'momentum_buffer': None}}, 'param_groups': [{'lr': np.float64(0.01)}]},
        'param_schedulers': [{'_global_step': 12, 'last_values': [np.float32(0.1)]}],
    }


@pytest.mark.parametrize('format', ['zip', 'legacy'])
@pytest.mark.parametrize('numpy_module', [b'numpy.core.multiarray', b'numpy._core.multiarray'])
def test_official_files_load(format, numpy_module, tmp_path):
    path = write(official(), tmp_path / 'official.pth', format)
    rename(path, b'numpy._core.multiarray', b'numpy.core.multiarray')
    rename(path, b'numpy.core.multiarray', numpy_module)
    content = load_checkpoint_file(path)
    assert content['meta']['hook_msgs']['best_score'] == 0.4
    assert content['meta']['flags'][0]
    assert content['meta']['dataset_meta']['ids'].tolist() == [0, 1, 2]
    buffer = content['message_hub']['log_scalars']['train/loss']
    assert isinstance(buffer, HistoryBuffer)
    assert buffer.mean() == pytest.approx(6.5 / 4)
    model = torch.nn.Linear(1, 1)
    load_checkpoint(model, str(path))
    assert model.weight.item() == 1


def rename(path, old, new):
    """Renames a module within a checkpoint: NumPy 2 moved what NumPy 1 wrote, and files of both are about."""
    if not zipfile.is_zipfile(path):
        path.write_bytes(path.read_bytes().replace(old, new))
        return
    result = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(result, 'w') as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, content.replace(old, new) if name.endswith('data.pkl') else content)
    path.write_bytes(result.getvalue())


@newer_torch('list of allowed names', (2, 6))
def test_loading_allows_nothing_to_others(tmp_path):
    """The classes are allowed while we load, not for the whole process."""
    path = write(official(), tmp_path / 'official.pth')
    before = set(torch.serialization.get_safe_globals())
    load_checkpoint_file(path)
    assert set(torch.serialization.get_safe_globals()) == before


def test_a_file_that_is_no_checkpoint(tmp_path):
    path = tmp_path / 'model.pth'
    path.write_text('<html>404 Not Found</html>')
    with pytest.raises(RuntimeError, match=r'model\.pth should '):
        load_checkpoint_file(path)
    script = tmp_path / 'script.pt'
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), script)
    with pytest.raises(RuntimeError, match=r'script\.pt should be a PyTorch checkpoint'):
        load_checkpoint_file(script)
