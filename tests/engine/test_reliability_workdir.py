"""One run a work directory."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import time

import pytest
from toy_runs import toy_config, toy_run

from freekd_mm.engine.checkpoint_hook import last_checkpoint
from freekd_mm.engine.workdir import LOCK, is_first_process, own_work_dir


@pytest.fixture
def holder(tmp_path):
    """Starts a process that holds the directory, perhaps with a fork of its own; returns its id."""
    started = []

    def start(forks=False):
        reading, writing = os.pipe()
        process = os.fork()
        if process == 0:
            try:
                os.setsid()
                with own_work_dir(tmp_path / 'work'):
                    if not forks or os.fork():
                        os.write(writing, b'held')
                    time.sleep(60)
            finally:
                os._exit(0)
        started.append(process)
        assert os.read(reading, 4) == b'held'
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process, 0)


def test_a_second_run_is_refused(holder, tmp_path):
    first = holder()
    with pytest.raises(BlockingIOError, match=f"work' should belong to one run, but is in use by process {first} on"):
        toy_run(toy_config(tmp_path))
    # Nothing was written there.
    assert [path.name for path in (tmp_path / 'work').iterdir()] == [LOCK]


@pytest.mark.parametrize('forks', [False, True])
def test_a_dead_run_holds_nothing(forks, holder, tmp_path):
    """Not even where its data loading processes live on for some seconds."""
    first = holder(forks)
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    with own_work_dir(tmp_path / 'work') as path:
        assert f'process {os.getpid()} on' in (path / LOCK).read_text()


def test_it_is_free_after_a_failure(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), own_work_dir(tmp_path / 'work'):
            raise ZeroDivisionError
    assert (tmp_path / 'work' / LOCK).read_text() == ''


def test_only_the_first_process_of_a_run_holds_it(holder, tmp_path, monkeypatch):
    holder()
    monkeypatch.setenv('RANK', '1')
    with own_work_dir(tmp_path / 'work', 'pytorch'):
        pass
    with pytest.raises(BlockingIOError), own_work_dir(tmp_path / 'work'):
        pass


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('freekd_mm.engine.workdir.warn', said.append)

    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr('fcntl.lockf', refuse)
    with own_work_dir(tmp_path / 'work'):
        pass
    assert said == [f'{tmp_path}/work cannot be locked (No locks available): make sure that no other run writes there']


def test_a_file_in_its_place(tmp_path):
    (tmp_path / 'work').write_text('')
    with pytest.raises(PermissionError, match=r"work_dir should be a folder that can be written, but got '.*work'"):
        toy_run(toy_config(tmp_path))


@pytest.fixture
def read_only(tmp_path):
    """A file system that cannot be written, also not by root."""
    folder = tmp_path / 'disk'
    (folder / 'work').mkdir(parents=True)
    if os.geteuid() != 0:
        folder.chmod(0o555)
        (folder / 'work').chmod(0o555)
        yield folder
        folder.chmod(0o755)
        (folder / 'work').chmod(0o755)
        return
    for options in (['--bind'], ['-o', 'remount,ro,bind']):
        if subprocess.run(['mount', *options, str(folder), str(folder)], capture_output=True, check=False).returncode:
            pytest.skip('needs the right to mount')
    yield folder
    subprocess.run(['umount', '-l', str(folder)], check=True)


@pytest.mark.parametrize('name', ['work', 'new'])
def test_read_only(name, read_only, tmp_path):
    """Said before anything is built, not at the first checkpoint."""
    config = toy_config(tmp_path, work_dir=str(read_only / name), model={'type': 'NoSuchModel'})
    with pytest.raises(PermissionError, match=r'(?s)can be written, but got .*Choose another with --work-dir'):
        toy_run(config)


def test_the_directory_is_made_with_those_above_it(tmp_path):
    with own_work_dir(str(tmp_path / 'a' / 'b' / 'c')) as path:
        assert path == tmp_path / 'a' / 'b' / 'c'
        assert path.is_dir()


def test_a_folder_that_was_set_aside_has_its_own_checkpoints(tmp_path):
    """Its pointer names a path at which the next run has written since."""
    for folder in ('earlier', 'work'):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'epoch_2.pth').touch()
        (tmp_path / folder / 'last_checkpoint').write_text(str(tmp_path / 'work/epoch_2.pth'))
        assert last_checkpoint(tmp_path / folder) == tmp_path / folder / 'epoch_2.pth'


@pytest.mark.parametrize(('launcher', 'name'), [('pytorch', 'RANK'), ('slurm', 'SLURM_PROCID')])
def test_the_first_process_is_that_of_the_launcher(launcher, name, monkeypatch):
    """srun may have started torchrun, and number its own processes in another order."""
    for other in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'):
        monkeypatch.setenv(other, '1')
    assert not is_first_process(launcher)
    monkeypatch.setenv(name, '0')
    assert is_first_process(launcher)


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob('*.pth')}


@pytest.mark.parametrize('change', ['', 'out_dir', 'parent', 'filename_tmpl'])
def test_checkpoints_of_an_earlier_run_are_all_kept(change, tmp_path):
    config = toy_config(tmp_path, train_cfg={'type': 'EpochBasedTrainLoop', 'max_epochs': 2, 'val_interval': 1})
    hook = config['default_hooks']['checkpoint']
    hook.update({'save_best': 'score', 'rule': 'greater'})
    hook.update(
        {
            'out_dir': {'out_dir': str(tmp_path / 'out')},
            'parent': {'out_dir': str(tmp_path)},  # the work directory once more
            'filename_tmpl': {'filename_tmpl': 'e_{:03d}.pth'},
        }.get(change, {})
    )
    toy_run(config)
    first = contents(tmp_path)
    toy_run(config)
    kept = [content for name, content in contents(tmp_path).items() if 'earlier-' in name]
    assert sorted(kept) == sorted(first.values())


def test_a_resume_from_elsewhere_overwrites_nothing(tmp_path):
    """Neither what the folder has of an earlier run, nor the best checkpoint of the run that is continued."""
    limits = {'type': 'EpochBasedTrainLoop', 'max_epochs': 3, 'val_interval': 1}
    runs = {name: toy_config(tmp_path / name, train_cfg=limits, randomness={'seed': 5}) for name in ('one', 'two')}
    for config in runs.values():
        config['default_hooks']['checkpoint'].update({'save_best': 'score', 'rule': 'greater', 'max_keep_ckpts': 2})
        toy_run(config)
    one, two = (contents(tmp_path / name) for name in ('one', 'two'))
    runs['two']['train_cfg'] = {**limits, 'max_epochs': 6}
    toy_run(runs['two'], resume=str(tmp_path / 'one/work/epoch_3.pth'))
    assert contents(tmp_path / 'one') == one
    kept = [content for name, content in contents(tmp_path / 'two').items() if 'earlier-' in name]
    assert sorted(kept) == sorted(two.values())
    assert (tmp_path / 'two/work/epoch_6.pth').is_file()
