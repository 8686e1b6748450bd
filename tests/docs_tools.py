"""Starts the tools of the repository as a page's command would, or reads their command lines alone."""

from __future__ import annotations

import argparse
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from leftovers import clear_leftovers
from mmengine.config import Config


class Parsed(Exception):  # noqa: N818 - it ends a tool behind its parser
    """The command line of a tool was read without an error."""


class CommandError(AssertionError):
    """A command of a page is wrong or not known."""


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
    # As Python does it: the script's folder, and not the one in which it was called, which is a module's.
    path = [
        str((folder / tool).parent if not tool.startswith('-m') else folder),
        *(entry for entry in sys.path if entry not in ('', str(folder))),
    ]
    try:
        with mock.patch.object(sys, 'argv', [tool, *arguments]), mock.patch.object(sys, 'path', path):
            yield
    finally:
        os.chdir(before)
        clear_leftovers()


def start(tool: str) -> None:
    """Runs a script, or a module written as ``-m name``, as Python does."""
    if tool.startswith('-m '):
        runpy.run_module(tool[3:], run_name='__main__')
    else:
        runpy.run_path(tool, run_name='__main__')


def run_tool(folder: Path, tool: str, arguments: list[str]) -> None:
    """Runs a tool of the repository to its end, in this process."""
    with tool_environment(folder, tool, arguments):
        try:
            start(tool)
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
            start(tool)
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
