"""Checkpoints are loaded as data: what official files and mmengine's own hold, and nothing that runs."""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
from collections import OrderedDict
from pathlib import Path

import mmengine.runner.checkpoint as mmengine_checkpoint
import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from torch import nn

from freekd_mm.checkpoints import loading
from freekd_mm.checkpoints.loading import UntrustedCheckpointError, load_checkpoint_file
from freekd_mm.checkpoints.sources import HASH_SUFFIX, fetch, sha256
from freekd_mm.compat import install
from freekd_mm.compat import patches as changes

install()


class Attack:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def save(content, path: Path, **options) -> Path:
    torch.save(content, path, **options)
    return path


@pytest.fixture
def weights():
    return nn.Conv2d(3, 4, 1).state_dict()


def test_meta_of_a_training_checkpoint(tmp_path, weights):
    """What mmengine keeps for the logs; PyTorch alone refuses it."""
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    hub = {'log_scalars': OrderedDict(loss=history), 'runtime_info': {'lr': np.float64(0.1), 'step': np.int64(3)}}
    meta = {'seed': 0, 'dataset_meta': {'classes': ('a', 'b'), 'palette': np.zeros((2, 3), np.uint8)}}
    path = save({'state_dict': weights, 'message_hub': hub, 'meta': meta}, tmp_path / 'epoch_1.pth')
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    file = load_checkpoint_file(path)
    assert torch.equal(file['state_dict']['weight'], weights['weight'])
    assert file['message_hub']['log_scalars']['loss'].mean() == 1.5
    assert file['message_hub']['log_scalars']['loss'].statistics('mean') == 1.5
    assert np.array_equal(file['meta']['dataset_meta']['palette'], np.zeros((2, 3)))
    assert file['message_hub']['runtime_info']['lr'] == 0.1


@pytest.mark.parametrize('dtype', ['bool', 'uint8', 'int32', 'int64', 'float16', 'float32', 'float64', '<U5'])
def test_arrays_of_all_usual_types(tmp_path, dtype):
    array = np.array([[1, 0], [1, 1]]).astype(dtype)
    path = save({'meta': {'array': array, 'scalar': array[0, 0]}}, tmp_path / 'x.pth')
    meta = load_checkpoint_file(path)['meta']
    assert meta['array'].dtype == array.dtype
    assert np.array_equal(meta['array'], array)
    assert meta['scalar'] == array[0, 0]


def test_old_file_format(tmp_path, weights):
    """Official files from before PyTorch 1.6."""
    path = save({'state_dict': weights, 'meta': {}}, tmp_path / 'x.pth', _use_new_zipfile_serialization=False)
    assert torch.equal(load_checkpoint_file(path)['state_dict']['weight'], weights['weight'])


def test_getattr_reaches_nothing_but_statistics(tmp_path):
    """History buffers name their statistics by getattr; any other use of it is refused."""

    class Reach:
        def __reduce__(self):
            return getattr, (HistoryBuffer, '__init__')

    with pytest.raises(UntrustedCheckpointError, match='getattr'):
        load_checkpoint_file(save({'meta': Reach()}, tmp_path / 'x.pth'))


def test_missing_and_broken_files(tmp_path, weights):
    with pytest.raises(FileNotFoundError, match=r'checkpoint should be an existing file, but got .*nothing.pth'):
        load_checkpoint_file(tmp_path / 'nothing.pth')
    path = save({'state_dict': weights}, tmp_path / 'x.pth')
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(RuntimeError, match=r'should be a PyTorch checkpoint, but cannot be read \(cut off\?\)'):
        load_checkpoint_file(path)


def test_files_of_safetensors_are_read_as_such(tmp_path, weights, monkeypatch):
    save_file = pytest.importorskip('safetensors.torch').save_file
    path = tmp_path / 'x.safetensors'
    save_file(weights, path)
    monkeypatch.setattr(loading, 'TRUSTED', {path.resolve()})
    assert torch.equal(load_checkpoint_file(path)['weight'], weights['weight'])
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(RuntimeError, match=r'should be a file of safetensors, but cannot be read \(cut off\?\)'):
        load_checkpoint_file(path)
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    with pytest.raises(ImportError, match=r'x.safetensors needs .*: pip install safetensors'):
        load_checkpoint_file(path)


@pytest.mark.parametrize('error', [PermissionError, MemoryError])
def test_not_every_error_says_that_the_file_is_cut_off(error, tmp_path, weights, monkeypatch):
    path = save({'state_dict': weights}, tmp_path / 'x.pth')

    def fail(*_):
        raise error

    monkeypatch.setattr(loading, 'load_as_data', fail)
    with pytest.raises(error):
        load_checkpoint_file(path)


def test_home_folder(tmp_path, weights, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    save({'state_dict': weights}, tmp_path / 'x.pth')
    assert 'state_dict' in load_checkpoint_file('~/x.pth')


class TestMMEngine:
    """Everything that mmengine loads goes through the loader."""

    def test_local_files(self, tmp_path, weights):
        model = nn.Conv2d(3, 4, 1)
        path = save({'state_dict': weights, 'meta': {'mean': np.float64(1)}}, tmp_path / 'x.pth')
        mmengine_checkpoint.load_checkpoint(model, str(path))
        assert torch.equal(model.weight, weights['weight'])

    @pytest.mark.parametrize('prefix', ['https://', 'open-mmlab://', 'mmcls://', 'torchvision://'])
    def test_downloads(self, tmp_path, weights, monkeypatch, prefix):
        """Also by the names that stand for an address."""
        path = save({'state_dict': weights, 'meta': Attack(tmp_path / 'trace')}, tmp_path / 'x.pth')
        fetched = []
        monkeypatch.setattr(changes, 'fetch', lambda source: fetched.append(source) or str(path))
        names = {'open-mmlab://': 'vgg16_caffe', 'mmcls://': 'vgg11', 'torchvision://': 'resnet18'}
        name = prefix + names.get(prefix, 'somewhere/x.pth')
        try:
            with pytest.raises(UntrustedCheckpointError):
                mmengine_checkpoint.CheckpointLoader.load_checkpoint(name, map_location='cpu')
        except ImportError:
            pytest.skip('torchvision is not installed')
        assert fetched[0].startswith('https://')
        assert not (tmp_path / 'trace').exists()


def test_sha256(tmp_path):
    (tmp_path / 'x').write_bytes(b'abc')
    assert sha256(tmp_path / 'x') == 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'


@pytest.mark.parametrize(
    ('name', 'digits'),
    [
        ('model_20200130-ba7816bf.pth', 'ba7816bf'),
        ('model-ba7816bf8f01cfea.pt', 'ba7816bf8f01cfea'),
        *((name, None) for name in ('model.pth', 'model-20200130.pth', 'a-b.pth')),
    ],
)
def test_names_of_official_files_end_with_their_hash(name, digits):
    found = HASH_SUFFIX.search(name)
    assert (found.group(1) if found else None) == digits


def test_local_paths_are_not_verified(tmp_path):
    assert fetch(str(tmp_path / 'mine-00000000.pth')) == str(tmp_path / 'mine-00000000.pth')


@pytest.mark.parametrize('works', [True, False])
def test_processes_take_turns_to_download(works, tmp_path, monkeypatch):
    """One download is enough; where it fails, each process says so, and none waits for a file that never comes."""
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    calls, found = [], []

    def download(url, target, digits):
        calls.append(url)
        time.sleep(0.3)
        if not works:
            raise OSError('no route')
        Path(target).write_bytes(b'x')

    def process():
        try:
            found.append(Path(fetch('https://somewhere/x.pth')).read_bytes())
        except RuntimeError as error:
            found.append(str(error))

    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    threads = [threading.Thread(target=process) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(calls) == (1 if works else 3)
    assert len(found) == 3
    assert all(each == b'x' if works else 'cannot download https://somewhere/x.pth: no route' in each for each in found)
    if not works:
        Path(found[0].rsplit(' as ', 1)[1].rstrip('.')).write_bytes(b'x')
        assert Path(fetch('https://somewhere/x.pth')).read_bytes() == b'x', 'found where the error said'


def test_two_urls_of_one_name_are_two_files(tmp_path, monkeypatch):
    """A name with its hash is one file wherever it is, as for mmengine."""
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', lambda url, target, _: Path(target).write_text(url))
    urls = ['https://somewhere/a/best.pth', 'https://somewhere/b/best.pth']
    assert [Path(fetch(url)).read_text() for url in (*urls, *urls)] == [*urls, *urls]
    assert fetch('https://somewhere/x/model-0123abcd.pth') == str(tmp_path / 'checkpoints/model-0123abcd.pth')
