"""Several processes: they fail together, stop together, and go on where they were."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_configs
import torch
from distill_cases import CWD, distilled, save_weights
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from ranks import processes
from toy_runs import Stop, changed, last_state, toy_config, toy_run

from freekd_mm.engine.checkpoint_hook import find_resume_point
from freekd_mm.engine.signals import EXIT_STATUS

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _quick(quick_disk):
    pass


@HOOKS.register_module(force=True)
class OnOneProcess(Hook):
    """Raises, or gets a signal, in one process only, behind an iteration."""

    priority = 'LOWEST'

    def __init__(self, rank=1, behind=4, signal=None):
        self.rank, self.behind, self.signal = rank, behind, signal

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if int(os.environ['RANK']) == self.rank and runner.iter + 1 == self.behind:
            if self.signal is None:
                raise Stop('the cat is on the keyboard')
            signal.raise_signal(self.signal)


def launched(folder, **changes):
    return toy_config(folder, launcher='pytorch', **changes)


def test_one_fails_all_end_with_its_error(tmp_path):
    config = launched(tmp_path)
    results = processes(tmp_path, lambda: toy_run(config, {'type': 'OnOneProcess'}))
    assert [status for status, _ in results] == [1, 1]
    for _, output in results:
        assert 'Stop: the cat is on the keyboard' in output
    assert 'RuntimeError: process 1 on ' in results[0][1]
    assert 'Stop: the cat is on the keyboard (that was the first failure; this process then stopped' in results[0][1]
    assert 'that was the first failure' not in results[1][1]


def test_the_writing_process_fails(tmp_path):
    """The disk of the first process is full; the others wait for nothing."""
    config = launched(tmp_path)
    (tmp_path / 'work' / 'epoch_1.pth').mkdir(parents=True)
    results = processes(tmp_path, lambda: toy_run(config))
    assert [status for status, _ in results] == [1, 1]
    for _, output in results:
        assert 'epoch_1.pth cannot be written: Is a directory' in output


@pytest.mark.parametrize('policy', ['error', 'skip'])
def test_not_finite_in_one_process(policy, tmp_path):
    """Sample 3 is loaded by one of the two; both know it, and do the same."""
    config = launched(tmp_path, reliability={'nonfinite': policy})
    config['train_dataloader']['dataset']['bad'] = (3,)
    results = processes(tmp_path, lambda: toy_run(config))
    assert [status for status, _ in results] == ([1, 1] if policy == 'error' else [0, 0])
    if policy == 'error':
        for _, output in results:
            assert 'FloatingPointError: Iteration 1: ' in output
            assert 'the input is not finite for /data/3.png' in output
    else:
        assert results[0][1].count('the input is not finite for /data/3.png') == 4
        state = last_state(config['work_dir'])
        assert all(bool(torch.isfinite(value).all()) for value in state.values() if torch.is_tensor(value))


def test_sigterm_to_one_process_stops_all_at_the_same_place(tmp_path):
    whole = launched(tmp_path / 'whole')
    assert [status for status, _ in processes(tmp_path / 'whole', lambda: toy_run(whole))] == [0, 0]
    config = launched(tmp_path / 'stopped')
    stop = {'type': 'OnOneProcess', 'behind': 4, 'signal': int(signal.SIGTERM)}
    results = processes(tmp_path / 'stopped', lambda: toy_run(config, stop))
    assert [status for status, _ in results] == [EXIT_STATUS, EXIT_STATUS], results
    assert find_resume_point('auto', config).iteration == 4
    results = processes(tmp_path / 'stopped', lambda: toy_run(config, resume='auto'))
    assert [status for status, _ in results] == [0, 0]
    # Within an epoch each process has statistics of the norms of its own; the checkpoint holds the first's.
    state, expected = last_state(config['work_dir']), last_state(whole['work_dir'])
    assert not [key for key in changed(expected, state) if 'running' not in key]


def test_resume_behind_an_epoch_is_exact(tmp_path):
    whole = launched(tmp_path / 'whole')
    assert [status for status, _ in processes(tmp_path / 'whole', lambda: toy_run(whole))] == [0, 0]
    config = launched(tmp_path / 'stopped')
    results = processes(tmp_path / 'stopped', lambda: toy_run(config, {'type': 'OnOneProcess', 'behind': 5}))
    assert [status for status, _ in results] == [1, 1]
    results = processes(tmp_path / 'stopped', lambda: toy_run(config, resume='auto'))
    assert [status for status, _ in results] == [0, 0]
    assert not changed(last_state(whole['work_dir']), last_state(config['work_dir']))


@pytest.mark.parametrize('count', [7, 9])
def test_unequal_last_batches(count, tmp_path):
    """Without rounding up one process gets a smaller last batch, or one batch fewer: the latter cannot work."""
    config = launched(tmp_path)
    config['train_dataloader']['dataset']['count'] = count
    config['train_dataloader']['sampler']['round_up'] = False
    results = processes(tmp_path, lambda: toy_run(config))
    assert [status for status, _ in results] == ([0, 0] if count == 7 else [1, 1])
    if count == 9:
        for _, output in results:
            assert 'should give every process the same number of batches, but gives [2, 1]: use a sampler' in output


def test_images_without_boxes_on_one_process(scenes_root, tmp_path):
    """A detector: one process sees boxes, the other never does."""
    root = tmp_path / 'scenes'
    shutil.copytree(scenes_root, root)
    file = root / 'annotations' / 'instances_train2017.json'
    content = json.loads(file.read_text())
    empty = {image['id'] for image in content['images'][1::2]}
    content['annotations'] = [box for box in content['annotations'] if box['image_id'] not in empty]
    file.write_text(json.dumps(content))
    config = tiny_configs.detector(root)
    config['train_dataloader']['sampler']['shuffle'] = False
    config['train_dataloader']['batch_size'] = 2
    teacher = tiny_configs.detector(root, head='gfl', width=16, channels=24)['model']
    weights = save_weights(teacher, tmp_path / 'teacher.pth')
    freekd = {'type': 'freekd_mm.FreeKDLoss', 'channels': 24, 'levels': 2}
    entries = {'freekd': {'loss': freekd}, 'cwd': {'loss': CWD}}
    config = distilled(config, {'model': teacher, 'checkpoint': str(weights)}, entries)
    config.update({'launcher': 'pytorch', 'val_dataloader': None, 'val_evaluator': None, 'val_cfg': None})
    path = tiny_configs.write(tmp_path / 'config.py', config)

    def train():
        from freekd_mm.engine.training import run

        torch.set_num_threads(1)
        run(Config.fromfile(path))

    results = processes(tmp_path, train)
    assert [status for status, _ in results] == [0, 0], results[0][1][-2000:] + results[1][1][-2000:]
    assert (tmp_path / 'config_work' / 'epoch_1.pth').is_file()


def free_port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


def test_the_tool_under_torchrun_says_why_it_failed(tmp_path):
    config = toy_config(tmp_path, reliability={'nonfinite': 'eror'})
    Config(config).dump(tmp_path / 'config.py')
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2', f'--master_port={free_port()}']
    command = [
        *launcher,
        str(TESTS.parent / 'tools' / 'train.py'),
        str(tmp_path / 'config.py'),
        '--launcher',
        'pytorch',
    ]
    environment = {**os.environ, 'PYTHONPATH': f'{TESTS}:{TESTS.parent}:{os.environ["PYTHONPATH"]}'}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 1
    cause = done.stderr[done.stderr.index('Root Cause') :]
    assert "nonfinite of reliability should be one of 'error', 'skip', 'ignore', but got 'eror'." in cause
    assert "Did you mean 'error'?" in cause
    assert 'Traceback' not in cause
