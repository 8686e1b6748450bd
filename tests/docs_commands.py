"""Checks the commands of a page: runs what is cheap, and parses the rest with the program's own parser.

A command that no rule here knows is an error, so that nobody can write one that is not checked.
"""

import argparse
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from docs_pages import ROOT, Command
from leftovers import clear_leftovers
from mmengine.config import Config

#: Names on the pages that stand for files of the reader, and the figures of a real training.
SUBSTITUTES = (
    (r'\bSTUDENT_CFG\b', 'student.py'),
    (r'\bTEACHER_CFG\b', 'teacher.py'),
    (r'\bTEACHER\.pth\b', 'teacher.pth'),
    (r'\bepoch_\d+\.pth\b', 'epoch_1.pth'),
    (r'\biter_\d+\.pth\b', 'iter_2.pth'),
)
#: Options that make a tool quick; the rest of the command runs as it is written.
QUICK = {
    'tools/make_config.py': ['--prompt-iters', '2'],
    'tools/make_scenes.py': ['--train', '8', '--val', '2', '--size', '64'],
    'tools/benchmark.py': ['--dry-run'],
}
#: Commands that are parsed and not run, with the reason. A rule that fits no command any more is an error.
PARSED_ONLY = {
    r'tools/train\.py configs/(freekd|famkd|figkd|dctkd)/': 'COCO, Cityscapes, ImageNet: tests/configs takes a step',
    r'tools/doctor\.py': 'imports every package in a child process: tests/test_doctor.py runs it',
    r'tools/robustness\.py': '75 evaluations: tests/robustness runs it',
    r'work_dirs/demo/': 'goes on from the demo, which takes minutes: tests/report and tests/visualize run them small',
    r'benchmarks/': 'takes times, which a busy machine spoils',
    r'tests/kill_and_resume\.py': 'half an hour: tests/engine/test_reliability_kill.py runs a part',
}
OUTPUTS = ('-o', '--out', '--out-dir', '--work-dir', '--show-dir')


class Parsed(Exception):  # noqa: N818 - it ends a tool behind its parser
    """The command line of a tool was read without an error."""


class CommandError(AssertionError):
    """A command of a page is wrong or not known."""


class Commands:
    """Checks the commands of one page in its folder, in order.

    Args:
        folder: The page's folder, see :func:`docs_world.make_world`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.promised: list[str] = []
        self.ran: list[str] = []
        self.parsed: dict[str, str] = {}

    def check(self, command: Command) -> None:
        """Runs or parses a command; CommandError says what is wrong with it."""
        if not command.words:
            return
        name = command.words[0]
        words = [self._substitute(word) for word in command.words]
        try:
            if name in ('python', 'python3'):
                self._python(command, words)
            elif name.startswith('tools/') and name.endswith('.sh'):
                self._launcher(command, words)
            else:
                known = [rule for pattern, rule in RULES.items() if re.fullmatch(pattern, name)]
                if not known:
                    raise CommandError('no rule of tests/docs_commands.py knows this program')
                self.parsed[str(command)] = known[0](self, words[1:], command)
        except SystemExit as end:
            if end.code not in (0, None):
                raise CommandError(f'{command}: ended with {end.code}') from end
        except CommandError as error:
            raise CommandError(f'{command}: {error}') from error

    @staticmethod
    def _substitute(word: str) -> str:
        for pattern, value in SUBSTITUTES:
            word = re.sub(pattern, value, word)
        return word

    def _python(self, command: Command, words: list[str]) -> None:
        tool, arguments = words[1], words[2:]
        if not (self.folder / tool).is_file():
            raise CommandError(f'there is no {tool}')
        reason = next((why for rule, why in PARSED_ONLY.items() if re.search(rule, ' '.join(words))), '')
        if reason:
            parse_tool(self.folder, tool, arguments)
            self._check_files(arguments)
            self._promise(tool, arguments)
            self.parsed[str(command)] = reason
            return
        self._check_files(arguments)
        arguments += QUICK.get(tool, [])
        if tool == 'tools/train.py':
            arguments = one_epoch(self.folder, arguments)
        if command.variables:
            self._in_a_process(command.variables, ['python', tool, *arguments])
        else:
            run_tool(self.folder, tool, arguments)
        self.ran.append(str(command))

    def _in_a_process(self, variables: tuple[str, ...], words: list[str]) -> None:
        given = dict(variable.split('=', 1) for variable in variables)
        path = os.pathsep.join(filter(None, (given.pop('PYTHONPATH', ''), str(ROOT))))
        environment = {**os.environ, 'OMP_NUM_THREADS': '1', **given, 'PYTHONPATH': path}
        done = subprocess.run(
            [sys.executable, *words[1:]], cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise CommandError(f'ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}')

    def _check_files(self, arguments: list[str]) -> None:
        """Raises for an input file that neither exists nor is made by an earlier command of the page."""
        for before, word in zip(['', *arguments], arguments, strict=False):
            if before in OUTPUTS or '::' in word or '=' in word or word.startswith('http'):
                continue
            there = (self.folder / word).exists() or any(word.startswith(promise) for promise in self.promised)
            if re.search(r'\.(py|pth|ya?ml|json)$', word) and not there:
                raise CommandError(f'{word} does not exist, and no earlier command of the page makes it')

    def _promise(self, tool: str, arguments: list[str]) -> None:
        """Notes what a command would have written."""
        self.promised += [after for option, after in pairwise(arguments) if option in OUTPUTS]
        if tool == 'tools/train.py':
            self.promised.append(f'work_dirs/{Path(arguments[0]).stem}/')

    def _launcher(self, command: Command, words: list[str]) -> None:
        """Runs a launch script with a stand-in for what it starts, and parses what that was asked to do."""
        started = launched(self.folder, words, command.variables)
        if started[0] == 'srun':
            started = started[started.index('python') :]
            words = [word for word in started[1:] if word != '-u']
        else:
            words = check_torchrun(started[3:])
        parse_tool(self.folder, os.path.relpath(words[0], self.folder), words[1:])
        self._check_files(words[1:])
        self._promise('tools/train.py', words[1:])
        self.parsed[str(command)] = 'needs several GPUs; the script ran with a stand-in for torchrun or srun'


def one_epoch(folder: Path, arguments: list[str]) -> list[str]:
    """Adds to a training command that one epoch will do."""
    config = Config.fromfile(folder / arguments[0])
    if not config.train_cfg.get('max_epochs'):
        return arguments
    at = arguments.index('--cfg-options') + 1 if '--cfg-options' in arguments else len(arguments)
    option = [] if '--cfg-options' in arguments else ['--cfg-options']
    return [*arguments[:at], *option, 'train_cfg.max_epochs=1', *arguments[at:]]


@contextmanager
def tool_environment(folder: Path, tool: str, arguments: list[str]) -> Iterator[None]:
    """Sets the command line and the folder; forgets afterwards what a run leaves behind."""
    before = Path.cwd()
    os.chdir(folder)
    # As Python does it: the script's folder, and not the one in which it was called.
    path = [str((folder / tool).parent), *(entry for entry in sys.path if entry not in ('', str(folder)))]
    try:
        with mock.patch.object(sys, 'argv', [tool, *arguments]), mock.patch.object(sys, 'path', path):
            yield
    finally:
        os.chdir(before)
        clear_leftovers()


def run_tool(folder: Path, tool: str, arguments: list[str]) -> None:
    """Runs a tool of the repository to its end, in this process."""
    with tool_environment(folder, tool, arguments):
        try:
            runpy.run_path(tool, run_name='__main__')
        except SystemExit as end:
            if end.code not in (0, None):
                raise CommandError(f'{tool} ended with {end.code}') from end


def parse_tool(folder: Path, tool: str, arguments: list[str]) -> None:
    """Reads a command line with the tool's own parser, and stops there."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(parser: Any, *given: Any, **options: Any) -> None:
        original(parser, *given, **options)
        raise Parsed

    with tool_environment(folder, tool, arguments), mock.patch('argparse.ArgumentParser.parse_args', parse_args):
        try:
            runpy.run_path(tool, run_name='__main__')
        except Parsed:
            return
        except SystemExit as end:
            raise CommandError(f'{tool} does not take {arguments}') from end
    raise CommandError(f'{tool} reads no command line')


def launched(folder: Path, words: list[str], variables: tuple[str, ...]) -> list[str]:
    """Returns what a launch script starts: the words of its last command."""
    stand_ins = folder / 'stand_ins'
    stand_ins.mkdir(exist_ok=True)
    for name in ('python', 'srun'):
        code = f'import json, sys; print(json.dumps([{name!r}, *sys.argv[1:]]))'
        (stand_ins / name).write_text(f'#!{sys.executable}\n{code}\n')
        (stand_ins / name).chmod(0o755)
    environment = {**os.environ, **dict(variable.split('=', 1) for variable in variables)}
    environment['PATH'] = f'{stand_ins}{os.pathsep}{environment["PATH"]}'
    done = subprocess.run(['bash', *words], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandError(f'ended with {done.returncode}: {done.stderr}')
    return json.loads(done.stdout)


def check_torchrun(words: list[str]) -> list[str]:
    """Reads torchrun's own options; returns the script and its arguments."""
    from torch.distributed.run import get_args_parser

    options = get_args_parser().parse_args(words)
    if options.nnodes != '1' and not (options.master_addr or options.rdzv_endpoint):
        raise CommandError('several nodes need an address of the first one')
    return [options.training_script, *options.training_script_args]


def _make(commands: Commands, words: list[str], command: Command) -> str:
    text = (ROOT / 'Makefile').read_text() + ''.join(path.read_text() for path in (ROOT / 'tools/setup_env').glob('*'))
    for variable in [*command.variables, *(word for word in words if '=' in word)]:
        if not re.search(rf'\b{variable.split("=")[0]}\b', text):
            raise CommandError(f'neither the Makefile nor tools/setup_env knows {variable}')
    done = subprocess.run(['make', '-n', *words], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandError(done.stderr)
    return 'sets up an environment or runs for minutes; make -n ran'


def _pip(commands: Commands, words: list[str], command: Command) -> str:
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
        if wanted.name != 'freekd_mm' and not re.search(rf'^{re.sub("[-_]", "[-_]", wanted.name)}==', pins, re.M):
            raise CommandError(f'requirements/ does not name {wanted.name}')
    return 'changes the environment'


def _srun(commands: Commands, words: list[str], command: Command) -> str:
    if 'python' not in words:
        raise CommandError('srun should start python')
    script = [word for word in words[words.index('python') + 1 :] if word != '-u']
    parse_tool(commands.folder, script[0], script[1:])
    commands._check_files(script[1:])
    return 'needs Slurm'


def _system(commands: Commands, words: list[str], command: Command) -> str:
    if words[0] not in ('install', 'clone'):
        raise CommandError('only installing and cloning is known')
    return 'changes the machine or needs the net'


def _shell(commands: Commands, words: list[str], command: Command) -> str:
    if command.words[0] == 'export' and not all(re.match(r'\w+=.', word) for word in words):
        raise CommandError('export should set variables')
    if command.words[0] == 'cd' and words != ['freekd_mm'] and not (commands.folder / words[0]).is_dir():
        raise CommandError(f'there is no folder {words[0]}')
    return "changes the reader's shell"


def _mim(commands: Commands, words: list[str], command: Command) -> str:
    if words[:2] != ['train', 'freekd_mm'] or "'tools'" not in (ROOT / 'setup.py').read_text():
        raise CommandError('only mim train freekd_mm is known')
    return 'mim is not among the tested packages; tests/test_packaging.py checks what it looks for'


def _ci(commands: Commands, words: list[str], command: Command) -> str:
    script = ROOT / '.ci/run'
    if words or not os.access(script, os.X_OK) or subprocess.run(['bash', '-n', script], check=False).returncode:
        raise CommandError('.ci/run should be a shell script without options')
    return 'runs all tests, this one too'


def _pre_commit(commands: Commands, words: list[str], command: Command) -> str:
    if words != ['install'] or not yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())['repos']:
        raise CommandError('only pre-commit install is known')
    return "changes the clone's git hooks"


Rule = Callable[[Commands, list[str], Command], str]
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
