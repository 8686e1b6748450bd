"""What the set-up program says when a step fails, and while one runs."""

from __future__ import annotations

import errno
import os
import re
import runpy
import sys
from pathlib import Path

import pytest
from setup_env import checks, steps
from setup_env.errors import SetupError, explain_os_error, explain_output
from setup_fakes import ROOT, isolate


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    """No test sees or fills the user's cache, or follows the user's settings."""
    isolate(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ('output', 'cause', 'advice'),
    [
        ('OSError: [Errno 28] No space left on device', 'the disk is full', 'XDG_CACHE_HOME'),
        ("error: command 'g++' failed: No such file or directory", 'no C\\+\\+ compiler', 'apt install g\\+\\+'),
        ('/bin/sh: 1: c++: not found\nninja: build stopped', 'no C\\+\\+ compiler', 'apt install g\\+\\+'),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'c++'", 'no C\\+\\+ compiler', 'apt install'),
        ('pybind.h:3:10: fatal error: Python.h: No such file or directory', 'C headers are missing', 'python3-dev'),
        ('c++: fatal error: Killed signal terminated program cc1plus', 'ran out of memory', 'MAX_JOBS=1'),
        (
            'WARNING: Retrying ... NameResolutionError: Failed to resolve host\nERROR: No matching distribution found '
            'for torch==2.13.0',
            'package index cannot be reached',
            'PIP_INDEX_URL',
        ),
        ('connection broken: Connection refused', 'package index cannot be reached', 'HTTPS_PROXY'),
        (
            'ERROR: Could not find a version (from versions: none)\nERROR: No matching distribution found for six==1',
            'cannot be reached, or does not have six==1',
            'PIP_INDEX_URL',
        ),
        (
            'ERROR: No matching distribution found for numpy==1.26.4',
            r'has no numpy==1\.26\.4 for this Python',
            'PYTHON=',
        ),
        ('The virtual environment was not created: ensurepip is not available', 'cannot make virtual', 'python3-venv'),
        ("PermissionError: [Errno 13] Permission denied: '/opt/x'", 'cannot be written', 'VENV='),
        ('one\nERROR: Something new\n', 'ERROR: Something new', 'full output'),
        ('', 'it said nothing', 'full output'),
    ],
)
def test_cause_and_advice_of_a_failed_command(output, cause, advice):
    error = explain_output(output, 'PyTorch', Path('/env/setup-logs/3-torch.log'))
    assert re.search(cause, error.cause)
    assert re.search(advice, error.advice)
    assert error.text().startswith('Set-up stopped: PyTorch: ')
    assert error.text().endswith('Full output: /env/setup-logs/3-torch.log')


@pytest.mark.parametrize(
    ('code', 'cause'), [(errno.ENOSPC, 'the disk is full'), (errno.EROFS, 'cannot be written'), (errno.EIO, 'error')]
)
def test_cause_of_a_failed_file_operation(code, cause):
    error = explain_os_error(OSError(code, os.strerror(code), '/env/x'))
    assert cause in error.cause
    assert '/env/x' in error.cause


@pytest.mark.parametrize(
    ('version', 'stack', 'message', 'other'),
    [
        (
            (3, 9),
            'onedl',
            r'the pins onedl are for Python 3\.10 to 3\.13, but got 3\.9 \(python3\.9\)',
            'py38-torch21',
        ),
        ((3, 13), 'openmmlab', r'the pins openmmlab are for Python 3\.10 to 3\.12, but got 3\.13', 'onedl'),
    ],
)
def test_wrong_python(version, stack, message, other):
    with pytest.raises(SetupError, match=message) as caught:
        checks.check_python(version, stack, f'python{version[0]}.{version[1]}')
    assert 'PYTHON=python3' in caught.value.advice
    assert f'STACK={other}' in caught.value.advice


@pytest.mark.parametrize(
    ('version', 'stack'), [((3, 8), 'py38-torch21'), ((3, 10), 'openmmlab'), ((3, 12), 'openmmlab'), ((3, 13), 'onedl')]
)
def test_right_python(version, stack):
    checks.check_python(version, stack, 'python')


def test_too_old_python_gets_a_message_before_anything_new_is_parsed(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'version_info', (3, 7, 10, 'final', 0))
    with pytest.raises(SystemExit, match='1'):
        runpy.run_path(str(ROOT / 'tools' / 'setup_env' / '__main__.py'), run_name='__main__')
    message = capsys.readouterr().err
    assert 'Python should be 3.8 or newer, but got 3.7' in message
    assert 'make setup PYTHON=' in message


def test_full_disk(tmp_path):
    with pytest.raises(SetupError, match=r'3 GB of free disk are needed at .*, but only 0\.5 GB') as caught:
        checks.check_disk(tmp_path / 'not' / 'there', lambda _: (0, 0, 1024**3 // 2))
    assert 'VENV=' in caught.value.advice


def test_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(SetupError, match=r'no C\+\+ compiler') as caught:
        checks.find_compiler()
    assert 'apt install g++' in caught.value.advice
    monkeypatch.setenv('CXX', 'my-g++ -O0')
    with pytest.raises(SetupError, match=r'CXX=my-g\+\+ -O0 is not a program'):
        checks.find_compiler()
    (tmp_path / 'g++').touch(mode=0o755)
    monkeypatch.delenv('CXX')
    assert checks.find_compiler() == 'g++'


def test_no_headers(tmp_path):
    with pytest.raises(SetupError, match='C headers are not in'):
        checks.check_headers(str(tmp_path))
    (tmp_path / 'Python.h').touch()
    checks.check_headers(str(tmp_path))


def test_failed_command_has_a_log(tmp_path, capsys):
    run = steps.Steps(tmp_path / 'logs', total=2)
    with pytest.raises(SetupError, match='Things: RuntimeError: broken') as caught, run.step('Things', 'why'):
        run.run([sys.executable, '-c', 'print("begin"); raise RuntimeError("broken")'], 'things')
    assert caught.value.log == tmp_path / 'logs' / '1-things.log'
    assert 'begin' in caught.value.log.read_text()
    assert '[1/2] Things  (why)' in capsys.readouterr().out


def test_long_command_shows_what_it_does(tmp_path, capsys):
    run = steps.Steps(tmp_path, total=1)
    code = 'import time; print("Downloading torch", flush=True); time.sleep(1.5)'
    with run.step('PyTorch'):
        run.run([sys.executable, '-c', code], 'torch', interval=0.5)
    assert 's: Downloading torch' in capsys.readouterr().out


def test_count_of_compiled_files():
    assert steps.compiled_files('a\n  [1/78] c++ x\n  [12/78] c++ y\nwarning') == '12 of 78 files compiled'
    assert steps.compiled_files('Preparing\n') == 'Preparing'


def test_commands_do_not_see_the_users_python_path(monkeypatch, tmp_path):
    monkeypatch.setenv('PYTHONPATH', '/somewhere')
    monkeypatch.setenv('PIP_USER', '1')
    code = 'import json, os; print(json.dumps([os.environ.get("PYTHONPATH"), os.environ["PIP_USER"]]))'
    assert steps.ask(sys.executable, code) == [None, '0']
    assert steps.ask(sys.executable, 'raise SystemExit(1)') is None
    assert steps.ask(sys.executable, 'print("no json")') is None


@pytest.mark.parametrize(('seconds', 'text'), [(4.4, '4 s'), (185, '3 min 05 s')])
def test_duration(seconds, text):
    assert steps.duration(seconds) == text
