"""SIGTERM: the step is finished, a checkpoint written, and the exit status says what happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.config import Config
from toy_runs import changed, exit_code, last_state, toy_config, toy_run

from freekd_mm.engine.checkpoint_hook import find_resume_point
from freekd_mm.engine.signals import EXIT_STATUS, GracefulStopHook

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _quick(quick_disk):
    pass


def sigterm(behind, point='train_iter'):
    return {'type': 'ToyStop', 'behind': behind, 'point': point, 'signal': int(signal.SIGTERM)}


def stopped(config, hook):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        toy_run(config, hook)
    assert caught.value.code == EXIT_STATUS == 143
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ('loop', 'behind'), [('epochs', 1), ('epochs', 5), ('epochs', 6), ('iterations', 7), ('passes', 8)]
)
def test_stop_and_go_on(loop, behind, tmp_path):
    toy_run(toy_config(tmp_path / 'whole', loop))
    config = toy_config(tmp_path / 'stopped', loop)
    stopped(config, sigterm(behind))
    work_dir = Path(config['work_dir'])
    point = find_resume_point('auto', {'work_dir': work_dir})
    assert (Path(point.path).name, point.iteration) == ('interrupted.pth', behind)
    toy_run(config, resume='auto')
    assert not changed(last_state(tmp_path / 'whole' / 'work'), last_state(work_dir))
    assert not (work_dir / 'interrupted.pth').exists()


def test_twice_in_one_run(tmp_path):
    toy_run(toy_config(tmp_path / 'whole'))
    config = toy_config(tmp_path / 'stopped')
    stopped(config, sigterm(1))
    with pytest.raises(SystemExit):
        toy_run(config, sigterm(4), resume='auto')
    assert find_resume_point('auto', config).iteration == 4
    toy_run(config, resume='auto')
    assert not changed(last_state(tmp_path / 'whole' / 'work'), last_state(config['work_dir']))


def test_within_an_evaluation(tmp_path):
    """The moving average has changed places with the weights then, and the schedule waits for the metric."""
    plateau = {'type': 'ReduceOnPlateauLR', 'monitor': 'score', 'rule': 'less', 'patience': 0}
    plateau.update({'threshold': 100.0, 'threshold_rule': 'abs'})
    changes = {'custom_hooks': [{'type': 'EMAHook', 'momentum': 0.1}], 'param_scheduler': [plateau]}
    changes['train_cfg'] = {'type': 'EpochBasedTrainLoop', 'max_epochs': 4, 'val_interval': 1}
    toy_run(toy_config(tmp_path / 'whole', **changes))
    config = toy_config(tmp_path / 'stopped', **changes)
    stopped(config, sigterm(6, 'val_iter'))
    assert find_resume_point('auto', config).iteration == 6
    toy_run(config, resume='auto')
    assert not changed(last_state(tmp_path / 'whole' / 'work'), last_state(config['work_dir']))


def test_accumulated_gradients_are_used_first(tmp_path):
    wrapper = {'type': 'OptimWrapper', 'optimizer': {'type': 'SGD', 'lr': 0.01}, 'accumulative_counts': 4}
    toy_run(toy_config(tmp_path / 'whole', optim_wrapper=wrapper))
    config = toy_config(tmp_path / 'stopped', optim_wrapper=wrapper)
    stopped(config, sigterm(5))
    assert find_resume_point('auto', config).iteration == 8
    toy_run(config, resume='auto')
    assert not changed(last_state(tmp_path / 'whole' / 'work'), last_state(config['work_dir']))


def test_it_can_be_left_out(tmp_path):
    """Then the signal does what it does in any Python program: nothing is caught."""
    caught = []
    before = signal.signal(signal.SIGTERM, lambda *_: caught.append(1))
    try:
        toy_run(toy_config(tmp_path, reliability={'graceful_stop': False}), sigterm(5))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught
    assert not (tmp_path / 'work' / 'interrupted.pth').exists()


@pytest.mark.parametrize('torchrun', [True, False])
def test_a_second_signal_ends_the_process_unless_torchrun_may_have_passed_it_on(torchrun, monkeypatch):
    monkeypatch.delenv('TORCHELASTIC_RUN_ID', raising=False)
    if torchrun:
        monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'none')
    ended = []
    before = signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
    hook = GracefulStopHook()
    try:
        hook.before_train(SimpleNamespace(train_loop=None, val_loop=None))
        signal.raise_signal(signal.SIGTERM)
        assert hook.asked
        assert not ended
        signal.raise_signal(signal.SIGTERM)
        assert len(ended) == (not torchrun)
    finally:
        signal.signal(signal.SIGTERM, before)


def start(config, folder):
    """Starts ``tools/train.py`` as the leader of a process group."""
    path = folder / 'config.py'
    Config(config).dump(path)
    environment = {**os.environ, 'PYTHONPATH': f'{TESTS}:{TESTS.parent}:{os.environ["PYTHONPATH"]}'}
    command = [sys.executable, str(TESTS.parent / 'tools' / 'train.py'), str(path)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def wait_for(path, process):
    """Waits until a file is there."""
    deadline = time.monotonic() + 240
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_tool_and_its_data_loading_processes(tmp_path):
    """A scheduler sends the signal to all processes of a job; those that load data are needed for the last step."""
    config = toy_config(tmp_path, workers=2)
    config['train_dataloader']['dataset']['pause'] = 0.05
    process = start(config, tmp_path)
    wait_for(tmp_path / 'work' / 'epoch_1.pth', process)
    os.killpg(process.pid, signal.SIGTERM)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 143, output
    assert 'SIGTERM: stopped after iteration' in output
    assert 'interrupted.pth; continue with --resume' in output
    config['train_dataloader']['dataset']['pause'] = 0
    toy_run(config, resume='auto')
    toy_run({**config, 'work_dir': str(tmp_path / 'whole')})
    assert not changed(last_state(tmp_path / 'whole'), last_state(tmp_path / 'work'))


def _ends_by_sigterm_in_a_fork() -> bool:
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    return exit_code(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def test_processes_that_an_evaluation_forks_end_when_they_are_told_to():
    """A pool ends its processes by SIGTERM and waits for them: mmdet's VOC evaluation would wait forever."""
    loop = SimpleNamespace(dataloader=SimpleNamespace(worker_init_fn=None))
    hooks = [GracefulStopHook(), GracefulStopHook()]
    try:
        for hook in hooks:
            hook.before_train(SimpleNamespace(train_loop=loop, val_loop=None))
        assert signal.getsignal(signal.SIGTERM) == hooks[1]._ask
        assert _ends_by_sigterm_in_a_fork()
        assert signal.getsignal(signal.SIGTERM) == hooks[1]._ask
    finally:
        for hook in reversed(hooks):
            hook.release()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
