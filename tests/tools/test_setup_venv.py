"""Environments in the set-up program: what it keeps, what it leaves alone, where it goes on. No network."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from setup_env import installs, mmcv_wheel, venv
from setup_env.errors import SetupError
from setup_env.installs import install_torch, missing
from setup_env.main import main
from setup_fakes import ROOT, FakeSteps, fake_venv, isolate

from freekd_mm.doctor.pins import PIN_SETS

#: Pins for the Python that runs the tests.
HERE = next(name for name, pins in PIN_SETS.items() if pins.oldest <= sys.version_info[:2] <= pins.newest)


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    """No test sees or fills the user's cache, or follows the user's settings."""
    isolate(tmp_path, monkeypatch)


def finished(folder: Path, stack: str = 'openmmlab', torch: str = '2.13.0') -> venv.Venv:
    """An environment as a finished set-up leaves it."""
    pins = venv.wanted(stack, sys.version_info[:2])
    environment = fake_venv(folder, **pins, torch=f'{torch}+cpu', freekd_mm='0.1.0')
    environment.note(
        stack=stack, torch=torch, torch_version=f'{torch}+cpu', mmcv='key', done=venv.fingerprint(stack, torch)
    )
    return environment


def test_nothing_to_do(tmp_path, capsys):
    finished(tmp_path / 'env')
    assert main(['--venv', str(tmp_path / 'env')]) == 0
    assert 'is up to date (openmmlab line, torch 2.13.0)' in capsys.readouterr().out


def test_what_an_environment_was_made_with_is_remembered(tmp_path, capsys):
    finished(tmp_path / 'env', 'onedl', '2.12.0')
    assert main(['--venv', str(tmp_path / 'env')]) == 0
    assert 'is up to date (onedl line, torch 2.12.0)' in capsys.readouterr().out


@pytest.mark.parametrize('change', ['pin', 'torch', 'package', 'python', 'record'])
def test_a_changed_environment_is_not_up_to_date(tmp_path, monkeypatch, change):
    environment = finished(tmp_path / 'env')
    assert venv.up_to_date(environment, 'openmmlab', '2.13.0')
    if change == 'pin':
        monkeypatch.setattr(venv, 'fingerprint', lambda *_: 'another')
    elif change == 'torch':
        next(environment.site.glob('torch-*')).rename(environment.site / 'torch-2.14.0.dist-info')
        (environment.site / 'torch-2.14.0.dist-info' / 'METADATA').write_text('Name: torch\nVersion: 2.14.0\n')
    elif change == 'package':
        next(environment.site.glob('mmdet-*')).rename(environment.site / 'gone')
    elif change == 'python':
        environment.python.unlink()
    else:
        environment.record_file.write_text('{broken')
    assert not venv.up_to_date(environment, 'openmmlab', '2.13.0')


def test_only_what_is_missing_is_installed(tmp_path):
    environment = fake_venv(tmp_path / 'env', mmdet='3.3.0', numpy='2.2.6')
    assert missing(environment, {'mmdet': '3.3.0', 'numpy': '1.26.4', 'six': '1.17.0'}) == [
        'numpy==1.26.4',
        'six==1.17.0',
    ]


def test_other_line_in_the_same_place(tmp_path, capsys):
    finished(tmp_path / 'env')
    assert main(['--venv', str(tmp_path / 'env'), '--stack', 'onedl']) == 1
    message = capsys.readouterr().err
    assert 'holds the line openmmlab, not onedl' in message
    assert 'make setup STACK=onedl VENV=.venv-onedl' in message


def test_unknown_line(tmp_path, capsys):
    assert main(['--venv', str(tmp_path / 'env'), '--stack', 'openmlab']) == 1
    message = capsys.readouterr().err
    assert 'STACK should be one of openmmlab, onedl, ' in message
    assert "but got 'openmlab'. Did you mean 'openmmlab'?" in message
    assert main(['--venv', str(tmp_path / 'env'), '--env', 'py38-torch13']) == 1
    assert "but got 'py38-torch13'. Did you mean 'py38-torch113'?" in capsys.readouterr().err
    assert not (tmp_path / 'env').exists()


def test_a_tested_environment_by_name(tmp_path, capsys):
    """ENV names pins; the Python is asked for only where the environment is still to be made."""
    finished(tmp_path / 'env', 'py38-torch113', '1.13.1')
    assert main(['--venv', str(tmp_path / 'env'), '--env', 'py38-torch113']) == 0
    assert 'is up to date (py38-torch113 line, torch 1.13.1)' in capsys.readouterr().out


@pytest.mark.parametrize('place', ['path', 'pyenv', 'nowhere'])
def test_python_of_a_version(tmp_path, monkeypatch, place):
    """On the path or among pyenv's, which puts programs on the path that only say that they are not there."""
    folder = {'path': tmp_path, 'pyenv': tmp_path / 'versions' / '3.8.18' / 'bin', 'nowhere': tmp_path / 'x'}[place]
    folder.mkdir(parents=True, exist_ok=True)
    shim, python = tmp_path / 'python3.8', folder / ('python3.8' if place == 'path' else 'python')
    for program, answer in ((shim, 'exit 1'), (python, 'echo "[3, 8]"')):
        program.write_text(f'#!/bin/sh\n{answer}\n')
        program.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.setenv('PYENV_ROOT', str(tmp_path))
    if place == 'nowhere':
        with pytest.raises(SetupError, match=r'there is no Python 3\.8 here'):
            venv.find_python((3, 8))
    else:
        assert venv.find_python((3, 8)) == str(python)


def test_an_environment_of_the_user_is_not_damaged(tmp_path, capsys):
    fake_venv(tmp_path / 'env', mmdet='3.2.0', mmcv='2.0.1')
    assert main(['--venv', str(tmp_path / 'env')]) == 1
    message = capsys.readouterr().err
    assert 'mmcv 2.0.1, mmdet 3.2.0, which make setup would replace' in message
    assert 'pip install -e .' in message


def test_a_folder_that_is_no_environment(tmp_path, capsys):
    (tmp_path / 'env').mkdir()
    (tmp_path / 'env' / 'thesis.tex').touch()
    assert main(['--venv', str(tmp_path / 'env')]) == 1
    assert 'is not a virtual environment' in capsys.readouterr().err
    assert (tmp_path / 'env' / 'thesis.tex').exists()


def test_broken_environment_of_ours_is_removed_and_others_are_not(tmp_path):
    ours = fake_venv(tmp_path / 'ours')
    ours.note(stack='openmmlab')
    assert not ours.remove_if_broken()
    ours.python.unlink()
    assert ours.remove_if_broken()
    assert not ours.folder.exists()
    theirs = fake_venv(tmp_path / 'theirs')
    theirs.python.unlink()
    assert not theirs.remove_if_broken()
    assert theirs.folder.exists()


def test_another_python_than_the_environment_has(tmp_path):
    environment = fake_venv(tmp_path / 'env')
    fake = tmp_path / 'python3.99'
    fake.write_text('#!/bin/sh\necho \'[3, 99, "/include"]\'\n')
    fake.chmod(0o755)
    with pytest.raises(SetupError, match=r'has Python 3\.\d+, but .*python3\.99 is 3\.99'):
        venv.base_python(environment, str(fake))
    with pytest.raises(SetupError, match='PYTHON=pythom3 is not a program here'):
        venv.base_python(environment, 'pythom3')
    assert venv.base_python(environment, '').version == sys.version_info[:2]


def test_torch_that_is_there_is_kept(tmp_path):
    run = FakeSteps(tmp_path)
    environment = fake_venv(tmp_path / 'env', torch='2.13.0+cu130')
    install_torch(run, environment, '2.13.0', '', sys.executable)
    install_torch(run, environment, 'installed', '', sys.executable)
    assert run.commands == []
    install_torch(run, environment, '2.12.0', 'https://index', sys.executable)
    assert run.commands[0].endswith('torch==2.12.0 --index-url https://index')


def test_torch_of_another_python_is_linked(tmp_path):
    environment = fake_venv(tmp_path / 'env', numpy='0.1')
    install_torch(FakeSteps(tmp_path), environment, 'installed', '', sys.executable)
    lines = (environment.site / 'freekd_mm_base.pth').read_text().split()
    assert any((Path(line) / 'torch').is_dir() for line in lines)
    # What pip will find there counts as installed; the environment's own packages come first.
    assert environment.installed()['torch'] == importlib.metadata.version('torch')
    assert environment.installed()['numpy'] == '0.1'


@pytest.mark.parametrize(
    ('works', 'recorded', 'skipped'), [(True, None, True), (True, 'x', False), (False, None, False)]
)
def test_mmcv_that_works_is_kept(tmp_path, monkeypatch, works, recorded, skipped):
    target = mmcv_wheel.Target('mmcv', '2.1.0', '2.13.0', 'cpu', 'cp311', 'linux_x86_64', '')
    done = []
    monkeypatch.setattr(installs, 'describe', lambda *_: target)
    monkeypatch.setattr(installs, 'works', lambda *_: works)
    monkeypatch.setattr(installs, 'install_mmcv', lambda *_: done.append('installed'))
    environment = fake_venv(tmp_path / 'env', mmcv='2.1.0')
    environment.note(mmcv=recorded)
    installs.install_operators(FakeSteps(tmp_path), environment, 'mmcv', '2.1.0')
    assert bool(done) is not skipped
    assert environment.record['mmcv'] == target.key


def test_torch_that_is_nowhere(tmp_path):
    fake = tmp_path / 'python'
    fake.write_text('#!/bin/sh\necho []\n')
    fake.chmod(0o755)
    with pytest.raises(SetupError, match=r'TORCH=installed, but neither .* has PyTorch'):
        install_torch(FakeSteps(tmp_path), fake_venv(tmp_path / 'env'), 'installed', '', str(fake))


def test_no_compiler_is_said_before_anything_is_downloaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('PATH', str(tmp_path))
    assert main(['--venv', str(tmp_path / 'env'), '--stack', HERE]) == 1
    assert 'no C++ compiler' in capsys.readouterr().err
    assert not (tmp_path / 'env').exists()


@pytest.fixture(scope='module')
def empty_environment(tmp_path_factory) -> Path:
    """A real virtual environment with nothing but pip in it."""
    folder = tmp_path_factory.mktemp('real') / 'env'
    subprocess.run([sys.executable, '-m', 'venv', folder], check=True)
    return folder


def test_unreachable_index(empty_environment, monkeypatch, capsys):
    """The real pip against an index that nobody answers."""
    monkeypatch.setenv('PIP_CONFIG_FILE', os.devnull)
    monkeypatch.setenv('PIP_INDEX_URL', 'http://127.0.0.1:9/simple')
    monkeypatch.setenv('PIP_RETRIES', '1')
    for name in ('PIP_FIND_LINKS', 'PIP_EXTRA_INDEX_URL', 'PIP_NO_INDEX'):
        monkeypatch.delenv(name, raising=False)
    assert main(['--venv', str(empty_environment), '--stack', HERE]) == 1
    message = capsys.readouterr().err
    assert 'Build tools: the package index cannot be reached' in message
    assert 'PIP_INDEX_URL' in message
    log = Path(re.search(r'Full output: (.+)', message)[1])
    assert log.is_file()
    # A second try knows what was asked for, and goes on from there.
    record = json.loads((empty_environment / 'freekd_mm-setup.json').read_text())
    assert record['stack'] == HERE
    assert record['done'] is None


def test_full_disk_while_writing(empty_environment, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(empty_environment))

    monkeypatch.setattr('setup_env.installs.install_build_tools', full)
    monkeypatch.setattr('setup_env.main.install_build_tools', full)
    assert main(['--venv', str(empty_environment), '--stack', HERE]) == 1
    assert 'Set-up stopped: the disk is full' in capsys.readouterr().err


@pytest.mark.skipif(not Path('/usr/bin/make').exists(), reason='needs make')
def test_make_without_python(tmp_path):
    command = ['/usr/bin/make', 'setup', f'VENV={tmp_path / "env"}', 'PYTHON=python3.not-there']
    answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert answer.returncode != 0
    assert 'PYTHON=python3.not-there is not a program here' in answer.stdout
