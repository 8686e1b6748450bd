"""Runs commands with one log file each, and shows what they are doing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from setup_env.errors import explain_output

Command = typing.Sequence[typing.Union[str, Path]]


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns the environment of the commands: the user's, without what would break a virtual environment."""
    environment = {key: value for key, value in os.environ.items() if key not in ('PYTHONPATH', 'PYTHONHOME')}
    environment.update(PIP_USER='0', PIP_DISABLE_PIP_VERSION_CHECK='1', PYTHONUNBUFFERED='1')
    environment.update(extra or {})
    return environment


def last_line(output: str) -> str:
    """Returns the last line of a log, shortened: what the command is doing now."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:90] if lines else ''


def compiled_files(output: str) -> str:
    """Returns ninja's count out of a compiler's log."""
    counts = re.findall(r'^\s*\[(\d+)/(\d+)\]', output, re.MULTILINE)
    return f'{counts[-1][0]} of {counts[-1][1]} files compiled' if counts else last_line(output)


def duration(seconds: float) -> str:
    """Returns e.g. ``'4 s'`` or ``'3 min 05 s'``."""
    whole = round(seconds)
    return f'{whole} s' if whole < 60 else f'{whole // 60} min {whole % 60:02d} s'


def ask(python: str | Path, code: str) -> Any:
    """Runs ``code`` with a Python and returns the JSON that it prints last; None when it fails."""
    command = [str(python), '-c', code]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, env=child_environment())
    try:
        return json.loads(answer.stdout.strip().splitlines()[-1]) if answer.returncode == 0 else None
    except (ValueError, IndexError):
        return None


class Steps:
    """The numbered steps of a set-up.

    Args:
        logs: Folder of the log files.
        total: Number of steps.
    """

    def __init__(self, logs: Path, total: int) -> None:
        self.logs = logs
        self.total = total
        self.number = 0
        self.title = ''
        self.began = time.monotonic()

    @contextmanager
    def step(self, title: str, note: str = '') -> Iterator[None]:
        """Announces a step and says how long it took."""
        self.number += 1
        self.title = title
        began = time.monotonic()
        self.say(f'[{self.number}/{self.total}] {title}' + (f'  ({note})' if note else ''))
        yield
        elapsed = time.monotonic() - began
        if elapsed >= 1:
            self.say(f'      done in {duration(elapsed)}')

    def skip(self, title: str, note: str = 'already there') -> None:
        """Announces a step that has nothing to do."""
        self.number += 1
        self.say(f'[{self.number}/{self.total}] {title}  ({note})')

    @staticmethod
    def say(text: str) -> None:
        """Prints at once, also into a pipe."""
        print(text, flush=True)

    def log(self, name: str) -> Path:
        """Returns the log of a command of this step."""
        return self.logs / f'{self.number}-{name}.log'

    def run(self, command: Command, name: str, **options: Any) -> str:
        """Runs a command like :meth:`try_run` and returns the output.

        Raises:
            SetupError: The command failed.
        """
        output, code = self.try_run(command, name, **options)
        if code != 0:
            raise explain_output(output, self.title, self.log(name))
        return output

    def try_run(
        self,
        command: Command,
        name: str,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        progress: Callable[[str], str] = last_line,
        interval: float | None = None,
    ) -> tuple[str, int]:
        """Runs a command, its output in ``<logs>/<step>-<name>.log``; returns output and exit status.

        Args:
            command: Program and arguments.
            name: Part of the log's name.
            env: Environment variables to add.
            cwd: Working folder.
            progress: Turns the output so far into a few words.
            interval: Seconds between two status lines; a terminal gets them often, a pipe rarely.
        """
        terminal = sys.stdout.isatty()
        interval = interval or (1.0 if terminal else 30.0)
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.log(name)
        began = time.monotonic()
        with log.open('w', encoding='utf-8') as file:
            file.write('$ ' + ' '.join(map(str, command)) + '\n')
            file.flush()
            process = subprocess.Popen(
                [str(part) for part in command],
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=child_environment(env),
                cwd=cwd,
            )
            try:
                code = self._wait(process, log, interval, progress, terminal)
            except BaseException:
                process.terminate()
                raise
        if terminal and time.monotonic() - began > interval:
            print('\r\x1b[K', end='', flush=True)
        return read_log(log), code

    @staticmethod
    def _wait(
        process: subprocess.Popen[bytes], log: Path, interval: float, progress: Callable[[str], str], terminal: bool
    ) -> int:
        began = time.monotonic()
        while True:
            try:
                return process.wait(timeout=interval)
            except subprocess.TimeoutExpired:
                line = f'      {duration(time.monotonic() - began)}: {progress(read_log(log))}'
                # A terminal shows one changing line, a pipe or a file one line after the other.
                print(f'\r\x1b[K{line}' if terminal else line, end='' if terminal else '\n', flush=True)


def read_log(log: Path) -> str:
    """Returns what a log holds so far."""
    return log.read_text(encoding='utf-8', errors='replace')
