"""The steps that install something; each one skips what is already there."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from freekd_mm.doctor.pins import read_pins
from setup_env.errors import SetupError
from setup_env.mmcv_wheel import describe, install_mmcv, wheel_cache, works
from setup_env.steps import Command, Steps, ask
from setup_env.venv import BASE_LINK, REQUIREMENTS, ROOT, Venv

CPU_INDEX = 'https://download.pytorch.org/whl/cpu'
_SITE_WITH_TORCH = """
import importlib.util, json, sysconfig
has = importlib.util.find_spec('torch') is not None
print(json.dumps([sysconfig.get_path('purelib'), sysconfig.get_path('platlib')] if has else []))
"""


def pip(venv: Venv) -> list[str | Path]:
    """Returns the start of a pip command."""
    return [venv.python, '-m', 'pip', 'install', '--no-input', '--progress-bar', 'off']


def missing(venv: Venv, pins: dict[str, str]) -> list[str]:
    """Returns the pins that are not in the environment."""
    installed = venv.installed()
    return [f'{name}=={version}' for name, version in pins.items() if installed.get(name) != version]


def make_venv(steps: Steps, venv: Venv, python: str) -> None:
    """Makes the virtual environment."""
    title = 'Virtual environment'
    if venv.works():
        steps.skip(title)
        return
    with steps.step(title, str(venv.folder)):
        steps.run([python, '-m', 'venv', venv.folder], 'venv')


def install_build_tools(steps: Steps, venv: Venv, pins: dict[str, str]) -> None:
    """Installs what builds source distributions, and NumPy before PyTorch looks for it."""
    names = {'setuptools', 'numpy', *read_pins('build', REQUIREMENTS)}
    todo = missing(venv, {name: version for name, version in pins.items() if name in names})
    if not todo:
        steps.skip('Build tools')
        return
    with steps.step('Build tools'):
        steps.run([*pip(venv), '--no-deps', *todo], 'build-tools')


def install_torch(steps: Steps, venv: Venv, torch: str, index: str, python: str) -> None:
    """Installs PyTorch, or makes the existing one visible."""
    there = venv.installed().get('torch')
    if torch == 'installed':
        if there is None:
            link_torch(venv, python)
        steps.skip('PyTorch', f'{there} is there' if there else f'the one of {python}')
        return
    # '2.13.0' is satisfied by '2.13.0+cpu'; '2.13.0+cu126' is not.
    if there is not None and torch in (there, there.split('+')[0]):
        steps.skip(f'PyTorch {there}')
        return
    note = 'the largest download'
    if not index and sys.platform == 'linux' and not shutil.which('nvidia-smi'):
        note += f'; no NVIDIA GPU here: TORCH_INDEX={CPU_INDEX} makes it much smaller'
    with steps.step(f'PyTorch {torch}', note):
        # PyTorch has its own requirements; they must not change what the line has pinned.
        constraints, here = venv.folder / 'constraints.txt', venv.installed()
        kept = [f'{name}=={here[name]}\n' for name in ('numpy', 'setuptools') if name in here]
        constraints.write_text(''.join(kept), encoding='utf-8')
        command = [*pip(venv), '--constraint', constraints, f'torch=={torch}']
        steps.run([*command, *(['--index-url', index] if index else [])], 'torch')


def link_torch(venv: Venv, python: str) -> None:
    """Lets the environment see the packages of ``python``, which has PyTorch."""
    folders = ask(python, _SITE_WITH_TORCH)
    if not folders or venv.site is None:
        raise SetupError(
            f'TORCH=installed, but neither {venv.folder} nor {python} has PyTorch',
            'name the Python that has it (make setup TORCH=installed PYTHON=/path/to/python), or leave TORCH out',
        )
    # A .pth file, not --system-site-packages: it also works when that Python is itself a virtual environment.
    (venv.site / BASE_LINK).write_text('\n'.join(dict.fromkeys(folders)) + '\n', encoding='utf-8')


def install_packages(steps: Steps, venv: Venv, pins: dict[str, str], mmcv: str) -> None:
    """Installs the rest of the pins. The list is complete, so pip need not (and may not) add anything."""
    todo = missing(venv, {name: version for name, version in pins.items() if name != mmcv})
    title = 'MM packages and their requirements'
    if not todo:
        steps.skip(title)
        return
    with steps.step(title, f'{len(todo)} packages'):
        listing = venv.folder / 'packages.txt'
        listing.write_text('\n'.join(todo) + '\n', encoding='utf-8')
        steps.run([*pip(venv), '--no-deps', '--no-build-isolation', '--requirement', listing], 'packages')


def install_operators(steps: Steps, venv: Venv, name: str, version: str) -> None:
    """Installs mmcv with compiled operators that fit PyTorch."""
    target = describe(venv, name, version)
    title = f'{name} {version} with compiled operators'
    known = venv.record.get('mmcv') in (None, target.key)
    if known and venv.installed().get(name) == version and works(venv, target):
        steps.skip(title)
    else:
        with steps.step(title, f'cache: {wheel_cache()}'):
            install_mmcv(steps, venv, target)
    venv.note(mmcv=target.key)


def install_self(steps: Steps, venv: Venv) -> None:
    """Installs this repository, editable, and nothing with it."""
    with steps.step('freekd_mm, editable'):
        steps.run([*pip(venv), '--no-deps', '--no-build-isolation', '--editable', ROOT], 'freekd_mm')


def show_doctor(steps: Steps, venv: Venv, stack: str) -> None:
    """Runs the doctor and shows its screen.

    Raises:
        SetupError: The environment does not work.
    """
    with steps.step('Check of the result'):
        command: Command = [venv.python, '-m', 'freekd_mm.doctor.checkup', '--stack', stack]
        output, code = steps.try_run(command, 'doctor', cwd=venv.folder)
        steps.say('\n' + output.split('\n', 1)[-1].rstrip() + '\n')
    if code != 0:
        raise SetupError(
            'everything is installed, but it does not work together (above)',
            f'run the commands named above, then make setup again; or start again: remove {venv.folder}',
            steps.log('doctor'),
        )
    if os.environ.get('VIRTUAL_ENV') not in (None, str(venv.folder)):
        steps.say(f'Note: another environment is active ({os.environ["VIRTUAL_ENV"]}); use {venv.folder}/bin/python')
