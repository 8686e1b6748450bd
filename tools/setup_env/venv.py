"""The virtual environment: what it holds, whether it is ours, and what the last set-up did there."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from freekd_mm.doctor.pins import MM_DISTRIBUTIONS, PIN_SETS, normalize, read_pins
from setup_env.errors import SetupError
from setup_env.steps import ask, child_environment

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / 'requirements'
#: Names the folders of another Python whose packages the environment sees; TORCH=installed writes it.
BASE_LINK = 'freekd_mm_base.pth'


class Venv:
    """A virtual environment and the record ``freekd_mm-setup.json`` in it.

    Args:
        folder: Where it is, or will be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.python = self.folder / 'bin' / 'python'
        self.logs = self.folder / 'setup-logs'
        self.record_file = self.folder / 'freekd_mm-setup.json'

    @property
    def record(self) -> dict[str, Any]:
        """What was asked for and done so far; empty when the environment is not ours or the file is broken."""
        try:
            record = json.loads(self.record_file.read_text(encoding='utf-8'))
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def note(self, **entries: Any) -> None:
        """Adds entries to the record."""
        record = {**self.record, **entries}
        self.folder.mkdir(parents=True, exist_ok=True)
        scratch = self.record_file.with_suffix('.tmp')
        scratch.write_text(json.dumps(record, indent=2) + '\n', encoding='utf-8')
        scratch.replace(self.record_file)

    @property
    def site(self) -> Path | None:
        """Its ``site-packages``; None before it is made."""
        found = sorted(self.folder.glob('lib/python3.*/site-packages'))
        return found[-1] if found else None

    @property
    def version(self) -> tuple[int, int] | None:
        """Its Python version; None before it is made."""
        match = re.fullmatch(r'python(\d+)\.(\d+)', self.site.parent.name) if self.site else None
        return (int(match[1]), int(match[2])) if match else None

    def installed(self) -> dict[str, str]:
        """Returns ``{distribution: version}`` of what the environment sees, without running its Python."""
        if self.site is None:
            return {}
        link = self.site / BASE_LINK
        linked = link.read_text(encoding='utf-8').split('\n') if link.exists() else []
        found: dict[str, str] = {}
        for item in distributions(path=[str(self.site), *filter(None, linked)]):
            name = item.metadata['Name'] if item.metadata else None
            if name:
                found.setdefault(normalize(name), item.version)
        return found

    def works(self) -> bool:
        """Whether its Python runs and has pip."""
        if not self.python.exists():
            return False
        command = [str(self.python), '-m', 'pip', '--version']
        return subprocess.run(command, capture_output=True, check=False, env=child_environment()).returncode == 0

    def remove_if_broken(self) -> bool:
        """Removes an environment of ours whose Python is gone; returns whether it did."""
        if not self.record or self.python.exists() or self.site is None:
            return False
        shutil.rmtree(self.folder)
        return True


def fingerprint(stack: str, torch: str) -> str:
    """Returns a hash of all that decides what a set-up installs."""
    digest = hashlib.sha256(f'{stack} {torch} {ROOT}'.encode())
    for path in [ROOT / 'setup.py', *sorted(REQUIREMENTS.glob('*.txt'))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def wanted(stack: str, python: tuple[int, int]) -> dict[str, str]:
    """Returns all pins of an environment, without torch."""
    pins = {
        name: version
        for file in (stack, 'build', PIN_SETS[stack].tests)
        for name, version in read_pins(file, REQUIREMENTS, python).items()
    }
    pins.pop('torch')
    return pins


def up_to_date(venv: Venv, stack: str, torch: str) -> bool:
    """Whether a finished set-up of the same kind is still in place: takes milliseconds."""
    record, version = venv.record, venv.version
    if record.get('done') != fingerprint(stack, torch) or not venv.python.exists() or version is None:
        return False
    installed, pins = venv.installed(), wanted(stack, version)
    if 'freekd-mm' not in installed or installed.get('torch') != record.get('torch_version'):
        return False
    return all(installed.get(name) == version for name, version in pins.items())


def check_ownership(venv: Venv, stack: str) -> None:
    """Raises SetupError when ``venv`` holds something that a set-up would damage."""
    if not venv.folder.exists():
        return
    if not venv.folder.is_dir() or (not venv.record and not venv.python.exists() and any(venv.folder.iterdir())):
        raise SetupError(
            f'{venv.folder} exists and is not a virtual environment', 'choose another place: make setup VENV=...'
        )
    recorded = venv.record.get('stack')
    if recorded and recorded != stack:
        raise SetupError(
            f'{venv.folder} holds the line {recorded}, not {stack}; both use the same import names',
            f'give each its own place: make setup STACK={stack} VENV=.venv-{stack}  (or remove {venv.folder})',
        )
    if recorded:
        return
    pins, installed = read_pins(stack, REQUIREMENTS), venv.installed()
    every = {name for names in MM_DISTRIBUTIONS.values() for name in names}
    other = [
        f'{name} {installed[name]}' for name in sorted(every & installed.keys()) if installed[name] != pins.get(name)
    ]
    if other:
        raise SetupError(
            f'{venv.folder} is an environment of yours with {", ".join(other)}, which make setup would replace',
            f'add freekd_mm to it as it is ({venv.python} -m pip install -e . ; then '
            f'{venv.python} tools/doctor.py), or make a new one: make setup VENV=.venv-freekd',
        )


@dataclass(frozen=True)
class Python:
    """A Python to make the environment with.

    Attributes:
        path: Its executable.
        version: E.g. ``(3, 11)``.
        include: Folder of its C headers.
    """

    path: str
    version: tuple[int, int]
    include: str


def find_python(version: tuple[int, int]) -> str:
    """Returns a Python of a version: on the path, or one of pyenv's.

    Raises:
        SetupError: There is none.
    """
    name = '.'.join(map(str, version))
    pyenv = Path(os.environ.get('PYENV_ROOT') or Path.home() / '.pyenv') / 'versions'
    for place in (shutil.which(f'python{name}'), *sorted(pyenv.glob(f'{name}.*/bin/python'), reverse=True)):
        # pyenv has a program of every name on the path, which may only say that it is not installed.
        if place and ask(place, 'import sys; print(list(sys.version_info[:2]))') == list(version):
            return str(place)
    raise SetupError(
        f'there is no Python {name} here', f'pyenv install {name}, or name it: PYTHON=/path/to/python{name}'
    )


def base_python(venv: Venv, asked: str) -> Python:
    """Returns the Python to make ``venv`` with: the one asked for, or the running one.

    Raises:
        SetupError: There is no such program, or ``venv`` exists and has another version.
    """
    path = shutil.which(asked) if asked else getattr(sys, '_base_executable', None) or sys.executable
    another = 'name another one: make setup PYTHON=python3.11'
    if path is None:
        raise SetupError(f'PYTHON={asked} is not a program here', another)
    code = "import json, sys, sysconfig; print(json.dumps([*sys.version_info[:2], sysconfig.get_path('include')]))"
    answer = ask(path, code)
    if answer is None:
        raise SetupError(f'{path} does not run as a Python 3', another)
    python = Python(path, (answer[0], answer[1]), answer[2])
    if venv.version and python.version != venv.version:
        has, got = (f'{major}.{minor}' for major, minor in (venv.version, python.version))
        raise SetupError(
            f'{venv.folder} has Python {has}, but {path} is {got}',
            f'give it its own place (make setup PYTHON={asked or path} VENV=.venv-{got}), or remove {venv.folder}',
        )
    return python
