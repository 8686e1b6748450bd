"""Checks the commands of a page: runs what is cheap, and parses the rest with the program's own parser.

A command that no rule here knows is an error, so that nobody can write one that is not checked.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from docs_pages import ROOT, Command
from docs_rules import RULES
from docs_tools import CommandError, check_torchrun, launched, one_epoch, parse_tool, run_tool

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
    'tools/make_scenes.py': ['--train', '8', '--val', '2', '--size', '64'],
    'tools/benchmark.py': ['--dry-run'],
}
#: Commands that are parsed and not run, with the reason. A rule that fits no command any more is an error.
PARSED_ONLY = {
    r'tools/train\.py configs/(wavelet|freekd|famkd|figkd|dctkd|ld|crosskd|kl)/': 'COCO: tests/configs takes a step',
    r'tools/pretrain\.py': 'its teacher is on the net: tests/test_api.py runs it with another',
    r'tools/make_config\.py .* (transformers|timm):': 'the same: tests/wizard/test_make_config_foreign.py runs it',
    r'tools/doctor\.py': 'imports every package in a child process: tests/doctor/test_doctor.py runs it',
    r'tools/robustness\.py': '75 evaluations: tests/robustness runs it',
    r'work_dirs/directions/': 'the data and teachers of our benchmarks: tests/tools runs it small',
    r'work_dirs/demo/': 'continues from the demo, which takes minutes: tests/report and tests/visualize run them small',
    r'tools/zoo\.py': 'the survey takes hours: tests/tools/test_zoo.py runs a sample',
    r'-m speed': 'takes times, which a busy machine spoils',
    r'tests/kill_(and_resume|others)\.py': 'half an hour: tests/engine/test_reliability_kill.py runs a part',
}
#: What other commands leave for those behind them.
MAKES = {'make demo': ('work_dirs/demo/',)}
OUTPUTS = ('-o', '--out', '--result', '--out-dir', '--work-dir', '--show-dir')


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
                    raise CommandError('no rule of tests/docs_rules.py knows this program')
                self.parsed[str(command)] = known[0](self.folder, words[1:], command)
                self.promised += MAKES.get(' '.join(words), ())
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
        # A script, or a module behind -m: '-m speed'.
        tool, arguments = (words[1], words[2:]) if words[1] != '-m' else (f'-m {words[2]}', words[3:])
        if not any((self.folder / place).is_file() for place in (tool, f'{tool[3:].replace(".", "/")}/__main__.py')):
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
        if tool == 'tools/make_config.py' and {'--stage', 'wavelet-prompt', 'freekd'} & set(arguments):
            arguments += ['--prompt-iters', '2']  # they train a prompt first
        if tool == 'tools/train.py':
            arguments = one_epoch(self.folder, arguments)
        if command.variables:
            self._in_a_process(command.variables, ['python', tool, *arguments])
        else:
            run_tool(self.folder, tool, arguments)
        self.ran.append(str(command))

    def _in_a_process(self, variables: tuple[str, ...], words: list[str]) -> None:
        given = dict(variable.split('=', 1) for variable in variables)
        path = os.pathsep.join(filter(None, (given.pop('PYTHONPATH', ''), str(ROOT), os.environ.get('PYTHONPATH'))))
        environment = {**os.environ, **given, 'PYTHONPATH': path}
        done = subprocess.run(
            [sys.executable, *words[1:]], cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise CommandError(f'ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}')

    def _check_files(self, arguments: list[str]) -> None:
        """Raises for an input file that neither exists nor is made by an earlier command of the page."""
        for before, word in zip(['', *arguments], arguments):
            if before in OUTPUTS or '::' in word or '=' in word or word.startswith('http'):
                continue
            there = (self.folder / word).exists() or any(word.startswith(promise) for promise in self.promised)
            if re.search(r'\.(py|pth|ya?ml|json)$', word) and not there:
                raise CommandError(f'{word} does not exist, and no earlier command of the page makes it')

    def _promise(self, tool: str, arguments: list[str]) -> None:
        """Notes what a command would have written."""
        self.promised += [after for option, after in zip(arguments, arguments[1:]) if option in OUTPUTS]
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
