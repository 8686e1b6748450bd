"""Checkpoints are whole or not there, at every moment; the newest that is whole is resumed from."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from toy_runs import Stop, changed, last_state, toy_config, toy_run

from freekd_mm.checkpoints.loading import load_checkpoint_file
from freekd_mm.checkpoints.saving import save_atomically
from freekd_mm.engine.checkpoint_hook import POINTER, find_resume_point
from freekd_mm.files import write_atomically


@pytest.fixture(autouse=True)
def _quick(quick_disk):
    pass


class Crash(BaseException):
    """Stands for a process that ends at once: nothing catches it."""


class Crashes:
    """Ends the process, so to say, at the n-th call that changes the disk."""

    names = ('replace', 'remove', 'unlink')

    def __init__(self, monkeypatch, at):
        self.left = at
        for name in self.names:
            monkeypatch.setattr(os, name, self.wrap(getattr(os, name)))

    def wrap(self, call):
        def crashing(*args, **kwargs):
            paths = [str(arg) for arg in args]
            # Only what belongs to checkpoints; a temporary file is removed by nobody when the process ends.
            if any(path.endswith(('.pth', POINTER)) for path in paths):
                self.left -= 1
                if self.left == 0:
                    raise Crash
            return call(*args, **kwargs)

        return crashing


def saving_config(folder):
    config = toy_config(folder, train_cfg={'type': 'EpochBasedTrainLoop', 'max_epochs': 4, 'val_interval': 1})
    config['default_hooks']['checkpoint'].update({'max_keep_ckpts': 1, 'save_best': 'score', 'rule': 'greater'})
    return config


def test_a_crash_at_any_change_of_the_disk(tmp_path, monkeypatch):
    """One checkpoint is kept beside the best one, so that mmengine has moments with none."""
    toy_run(saving_config(tmp_path / 'whole'))
    expected = last_state(tmp_path / 'whole' / 'work')
    for at in range(1, 100):
        config = saving_config(tmp_path / str(at))
        work_dir = Path(config['work_dir'])
        with monkeypatch.context() as patch:
            crashes = Crashes(patch, at)
            try:
                toy_run(config)
            except Crash:
                pass
            else:
                break
        assert crashes.left == 0
        for path in work_dir.glob('*.pth'):
            load_checkpoint_file(path)
        pointer = work_dir / POINTER
        assert not pointer.exists() or Path(pointer.read_text()).is_file(), at
        assert pointer.exists() or at <= 2
        toy_run(config, resume='auto')
        assert not changed(expected, last_state(work_dir)), at
        names = sorted(path.name for path in work_dir.glob('*.pth'))
        assert 'epoch_4.pth' in names
        # At most one file more than without a crash: the one that was about to be removed.
        assert len(names) <= 3
    assert at > 8


def test_mmengine_alone_has_a_moment_without_a_checkpoint(tmp_path, monkeypatch):
    """The test above can fail."""
    monkeypatch.setattr('freekd_mm.engine.training.make_safe', lambda runner: None)
    removed_last = []
    remove = os.remove

    def watch(path, *args, **kwargs):
        remove(path, *args, **kwargs)
        folder = Path(path).parent
        removed_last.append(not list(folder.glob('epoch_*.pth')))

    monkeypatch.setattr(os, 'remove', watch)
    toy_run(saving_config(tmp_path))
    assert any(removed_last)


def test_settings_of_the_hook_hold(tmp_path):
    config = saving_config(tmp_path)
    config['default_hooks']['checkpoint'].update({'max_keep_ckpts': 2, 'filename_tmpl': 'model_{}.pth'})
    toy_run(config)
    names = sorted(path.name for path in (tmp_path / 'work').glob('*.pth'))
    assert names[-2:] == ['model_3.pth', 'model_4.pth']
    assert len(names) == 3
    assert names[0].startswith('best_score_model_')
    assert find_resume_point('auto', config).epoch == 4


def test_old_checkpoints_go_also_with_a_file_client(tmp_path):
    config = saving_config(tmp_path)
    config['default_hooks']['checkpoint']['file_client_args'] = {'backend': 'disk'}
    toy_run(config)
    assert len(list((tmp_path / 'work').glob('best_*.pth'))) == 1
    assert [path.name for path in (tmp_path / 'work').glob('epoch_*.pth')] == ['epoch_4.pth']


@HOOKS.register_module(force=True)
class OwnCheckpointHook(CheckpointHook):
    """A user's own."""


def test_a_users_own_hook_is_made_safe_too(tmp_path):
    from freekd_mm.engine.checkpoint_hook import SafeCheckpointMixin, make_safe

    hook = OwnCheckpointHook(interval=1)
    make_safe(type('Runner', (), {'hooks': [hook]}))
    assert isinstance(hook, SafeCheckpointMixin)
    assert isinstance(hook, OwnCheckpointHook)


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == 'empty':
        content = b''
    elif how == 'cut short':
        content = content[: len(content) // 2]
    elif how == 'one bit':
        # The format's own checksums; PyTorch does not look at them.
        weights = load_checkpoint_file(path)['state_dict']['head.weight'].numpy().tobytes()
        content[bytes(content).index(weights)] ^= 1
    elif how == 'no checkpoint':
        content = b'hello' * 100
    path.write_bytes(content)


@pytest.mark.parametrize('how', ['empty', 'cut short', 'one bit', 'no checkpoint'])
def test_a_damaged_checkpoint_is_passed_over(how, tmp_path, capsys):
    config = toy_config(tmp_path)
    toy_run(config)
    expected = last_state(config['work_dir'])
    work_dir = Path(config['work_dir'])
    for epoch in (3, 4):
        damage(work_dir / f'epoch_{epoch}.pth', how)
    point = find_resume_point('auto', {'work_dir': work_dir})
    assert (point.epoch, point.iteration) == (2, 6)
    printed = capsys.readouterr().out
    assert 'epoch_4.pth cannot be resumed from' in printed
    assert (
        f'continuing from {work_dir}/epoch_2.pth instead of {work_dir}/epoch_4.pth, {work_dir}/epoch_3.pth' in printed
    )
    toy_run(config, resume='auto')
    assert not changed(expected, last_state(work_dir))


@pytest.mark.parametrize('pointer', [None, '', 'gone.pth'])
def test_the_pointer_is_missing_or_wrong(pointer, tmp_path):
    config = toy_config(tmp_path)
    toy_run(config)
    file = tmp_path / 'work' / POINTER
    file.unlink()
    if pointer is not None:
        file.write_text(pointer)
    assert find_resume_point('auto', {'work_dir': tmp_path / 'work'}).epoch == 4


def test_a_moved_work_directory(tmp_path):
    config = toy_config(tmp_path)
    toy_run(config)
    shutil.move(tmp_path / 'work', tmp_path / 'moved')
    point = find_resume_point('auto', {'work_dir': tmp_path / 'moved'})
    assert point.path == str(tmp_path / 'moved' / 'epoch_4.pth')


def test_files_of_an_earlier_run_do_not_count(tmp_path):
    """A new run in the same folder: numbers that are higher are older."""
    config = toy_config(tmp_path)
    toy_run(config)
    with pytest.raises(Stop):
        toy_run(config, {'type': 'ToyStop', 'behind': 7})
    assert find_resume_point('auto', {'work_dir': tmp_path / 'work'}).epoch == 2


def test_none_is_whole(tmp_path):
    config = toy_config(tmp_path)
    toy_run(config)
    for path in (tmp_path / 'work').glob('*.pth'):
        damage(path, 'cut short')
    with pytest.raises(RuntimeError, match=r'--resume should find a whole checkpoint in .*, but none of .*epoch_4.pth'):
        toy_run(config, resume='auto')


def test_there_is_none_yet(tmp_path):
    config = toy_config(tmp_path)
    assert find_resume_point('auto', {'work_dir': tmp_path / 'work'}) is None
    toy_run(config, resume='auto')
    assert (tmp_path / 'work' / 'epoch_4.pth').is_file()


def test_a_named_checkpoint(tmp_path):
    config = toy_config(tmp_path)
    toy_run(config)
    expected = last_state(config['work_dir'])
    toy_run({**config, 'work_dir': str(tmp_path / 'other')}, resume=str(tmp_path / 'work' / 'epoch_1.pth'))
    assert not changed(expected, last_state(tmp_path / 'other'))


def test_a_best_checkpoint_is_no_place_to_resume(tmp_path):
    """It has no optimizer: the schedule would start again within the run."""
    toy_run(saving_config(tmp_path))
    best = next((tmp_path / 'work').glob('best_*.pth'))
    with pytest.raises(ValueError, match=r'best_.*, but has no optimizer\. To start .*, set load_from'):
        toy_run(toy_config(tmp_path), resume=str(best))


def test_halves_of_a_killed_run_are_cleared_away(tmp_path):
    work_dir = tmp_path / 'work'
    work_dir.mkdir()
    half, other = work_dir / '.epoch_1.pth.123.part', work_dir / 'mine.part'
    half.write_bytes(b'0' * 100)
    other.write_bytes(b'0')
    toy_run(toy_config(tmp_path))
    assert not half.exists()
    assert other.exists()


def test_files_reach_the_disk_before_their_name(tmp_path, monkeypatch):
    """Else a loss of power leaves a name without content; the folder is flushed last."""
    calls = []
    fsync = os.fsync
    monkeypatch.setattr(os, 'fsync', lambda fd: calls.append(os.readlink(f'/proc/self/fd/{fd}')) or fsync(fd))
    replace = os.replace
    monkeypatch.setattr(os, 'replace', lambda *paths: calls.append('replace') or replace(*paths))
    save_atomically({'a': torch.ones(2)}, tmp_path / 'a.pth')
    part, *others = (Path(call).name for call in calls)
    assert re.fullmatch(r'\.a\.pth\.[0-9a-f]{32}\.part', part)
    assert others == ['replace', tmp_path.name]


def test_two_writers_of_one_number_do_not_share_a_half(tmp_path):
    """Containers that share a disk number their processes alike."""
    content = {'inner': b'1', 'outer': b'2'}

    def write(part):
        part.write_bytes(content['outer'])
        write_atomically(tmp_path / 'a', lambda other: other.write_bytes(content['inner']))
        assert part.read_bytes() == content['outer']

    write_atomically(tmp_path / 'a', write)
    assert (tmp_path / 'a').read_bytes() == content['outer']


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte; only root can have one."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip('needs the right to mount a small file system')
    yield folder
    subprocess.run(['umount', '-l', str(folder)], check=True)


def test_full_disk(small_disk):
    path = small_disk / 'model.pth'
    save_atomically({'epoch': torch.tensor(1)}, path)
    with pytest.raises(OSError, match=r'No space left on device. It needs 4.0 MB, and 1.\d MB are free') as caught:
        save_atomically({'weights': torch.ones(1_000_000)}, path)
    assert caught.value.errno == errno.ENOSPC
    assert 'The old file is intact: free some space, and continue with --resume' in str(caught.value)
    assert load_checkpoint_file(path) == {'epoch': torch.tensor(1)}
    assert [file.name for file in small_disk.iterdir()] == ['model.pth']


def test_training_on_a_full_disk_goes_on_when_there_is_room(small_disk, tmp_path):
    config = toy_config(tmp_path, work_dir=str(small_disk / 'work'))
    toy_run({**config, 'work_dir': str(tmp_path / 'whole')})
    ballast = small_disk / 'ballast'
    model = {'type': 'ToyModel', 'width': 4}
    with pytest.raises(OSError, match=r'epoch_\d.pth cannot be written: No space left on device'):
        toy_run({**config, 'model': model}, {'type': 'FillDisk', 'path': str(ballast)})
    assert find_resume_point('auto', {'work_dir': small_disk / 'work'}).epoch == 2
    ballast.unlink()
    toy_run({**config, 'model': model}, resume='auto')
    assert not changed(last_state(tmp_path / 'whole'), last_state(small_disk / 'work'))


@HOOKS.register_module(force=True)
class FillDisk(CheckpointHook):
    """Takes all room behind the second epoch."""

    priority = 'LOWEST'

    def __init__(self, path):
        super().__init__(interval=-1, save_last=False)
        self.path = path

    def after_train_epoch(self, runner):
        if runner.epoch == 1:
            with open(self.path, 'wb', buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError:
                    pass


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES])
def test_an_error_of_the_disk_leaves_the_old_file(number, tmp_path, monkeypatch):
    path = tmp_path / 'model.pth'
    save_atomically({'old': 1}, path)

    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, 'fsync', fail)
    with pytest.raises(OSError, match=f'model.pth cannot be written: {os.strerror(number)}') as caught:
        save_atomically({'new': 2}, path)
    assert ('free some space' in str(caught.value)) is (number in (errno.ENOSPC, errno.EDQUOT))
    assert 'The old file is intact' in str(caught.value)
    assert load_checkpoint_file(path) == {'old': 1}
    assert [file.name for file in tmp_path.iterdir()] == ['model.pth']


def test_an_error_while_the_content_is_made_leaves_the_old_file(tmp_path):
    path = tmp_path / 'file'
    path.write_text('old')

    def write(part):
        part.write_text('half of the n')
        raise Crash

    with pytest.raises(Crash):
        write_atomically(path, write)
    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]
