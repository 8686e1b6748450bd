"""The order of the set-up."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Collection
from pathlib import Path

from freekd_mm.checks import did_you_mean
from freekd_mm.doctor.pins import DEFAULT_STACK, ENVIRONMENTS, PIN_SETS, fitting_pins, read_pins
from setup_env.checks import check_disk, check_headers, check_python, find_compiler
from setup_env.errors import SetupError, explain_os_error
from setup_env.installs import (
    install_build_tools,
    install_operators,
    install_packages,
    install_self,
    install_torch,
    make_venv,
    show_doctor,
)
from setup_env.mmcv_wheel import is_cached
from setup_env.steps import Steps, duration
from setup_env.venv import (
    REQUIREMENTS,
    Venv,
    base_python,
    check_ownership,
    find_python,
    fingerprint,
    up_to_date,
    wanted,
)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Reads the command line; `make setup` passes its variables here."""
    parser = argparse.ArgumentParser(prog='setup_env', description='Makes the environment of this repository.')
    parser.add_argument('--venv', type=Path, default=Path('.venv'), help='place of the virtual environment')
    parser.add_argument('--python', default='', help='Python to make it with; default: the running one')
    parser.add_argument('--stack', default='', help=f'the pins, one of {", ".join(PIN_SETS)}; default: {DEFAULT_STACK}')
    parser.add_argument('--env', default='', help=f'Python and pins of a tested environment: {", ".join(ENVIRONMENTS)}')
    parser.add_argument('--torch', default='', help="a version, or 'installed' to use the one that is there")
    parser.add_argument('--torch-index', default='', help='package index for PyTorch alone, e.g. its CPU builds')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the set-up; returns the exit status."""
    options = parse(argv)
    try:
        set_up(Venv(options.venv), options)
    except SetupError as error:
        print(error.text(), file=sys.stderr)
        return 1
    except OSError as error:
        print(explain_os_error(error).text(), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nSet-up interrupted. Finished steps are kept: run make setup again to continue.', file=sys.stderr)
        return 130
    return 0


def set_up(venv: Venv, options: argparse.Namespace) -> None:
    """Runs the steps that are not done yet."""
    version, pins_of = ENVIRONMENTS[known('ENV', options.env, ENVIRONMENTS)] if options.env else (None, '')
    asked = options.python or (find_python(version) if version and not venv.version else '')
    # A later `make test` without variables uses the variables with which the environment was made.
    stack = options.stack or pins_of or venv.record.get('stack')
    python = None if stack else base_python(venv, asked)
    stack = known('STACK', stack or fitting_pins(DEFAULT_STACK, '', python.version), PIN_SETS)
    torch = options.torch or venv.record.get('torch') or default_torch(venv, stack)
    if up_to_date(venv, stack, torch):
        print(f'{options.venv} is up to date ({stack} line, torch {torch}).')
        return

    began = time.monotonic()
    check_ownership(venv, stack)
    if venv.remove_if_broken():
        print(f'The Python of {venv.folder} is gone; it is made again.')
    python = python or base_python(venv, asked)
    check_python(python.version, stack, python.path)
    pins = wanted(stack, python.version)
    mmcv = 'mmcv' if 'mmcv' in pins else 'onedl-mmcv'
    if not venv.record.get('mmcv'):
        check_disk(venv.folder)
        if not is_cached(mmcv, pins[mmcv], torch, python.version):
            # Said now, not after the downloads.
            find_compiler()
            check_headers(python.include)

    steps = Steps(venv.logs, total=7)
    steps.say(f'Setting up {options.venv}: {stack} line, {mmcv} {pins[mmcv]}, torch {torch}')
    venv.note(stack=stack, done=None)
    make_venv(steps, venv, python.path)
    install_build_tools(steps, venv, pins)
    install_torch(steps, venv, torch, options.torch_index, python.path)
    venv.note(torch=torch, torch_version=venv.installed().get('torch'))
    install_packages(steps, venv, pins, mmcv)
    install_operators(steps, venv, mmcv, pins[mmcv])
    install_self(steps, venv)
    show_doctor(steps, venv, stack)
    venv.note(done=fingerprint(stack, torch))
    steps.say(f'Set up in {duration(time.monotonic() - began)}. Next: make test, make demo, or see README.md')


def known(variable: str, value: str, names: Collection[str]) -> str:
    """Returns a value of a variable of ``make``; raises SetupError when it is none of the names."""
    if value in names:
        return value
    raise SetupError(
        f'{variable} should be one of {", ".join(names)}, but got {value!r}.{did_you_mean(value, names)}',
        f'make setup {variable}={next(iter(names))}',
    )


def default_torch(venv: Venv, stack: str) -> str:
    """Returns the tested PyTorch, or 'installed' in a user's own environment that has one."""
    if not venv.record and 'torch' in venv.installed():
        return 'installed'
    return read_pins(stack, REQUIREMENTS)['torch']
