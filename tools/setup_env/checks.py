"""What is checked before anything is downloaded: Python, disk, compiler."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path

from freekd_mm.doctor.pins import PIN_SETS
from setup_env.errors import COMPILER_ADVICE, DISK_ADVICE, HEADERS_ADVICE, SetupError

#: An environment with the CPU build of PyTorch takes 1.7 GB; the rest is for compiling.
DISK_NEEDED = 3 * 1024**3


def check_python(version: tuple[int, int], stack: str, executable: str) -> None:
    """Raises SetupError for a Python on which the pins do not install."""
    pins = PIN_SETS[stack]
    if pins.oldest <= version <= pins.newest:
        return
    first, last, got = ('.'.join(map(str, numbers)) for numbers in (pins.oldest, pins.newest, version))
    others = [name for name, other in PIN_SETS.items() if other.oldest <= version <= other.newest]
    raise SetupError(
        f'the pins {stack} are for Python {first} to {last}, but got {got} ({executable})',
        f'use another Python: make setup PYTHON=python{last}'
        + (f'; or other pins: make setup STACK={others[0]}' if others else ''),
    )


def check_disk(folder: Path, usage: Callable[[Path], tuple[int, int, int]] = shutil.disk_usage) -> None:
    """Raises SetupError when the disk of ``folder`` (which need not exist) is too full to start."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = usage(existing)[2]
    if free < DISK_NEEDED:
        raise SetupError(
            f'{DISK_NEEDED / 1024**3:.0f} GB of free disk are needed at {existing}, but only {free / 1024**3:.1f} GB '
            'are left',
            DISK_ADVICE,
        )


def find_compiler(which: Callable[[str], str | None] = shutil.which) -> str:
    """Returns the C++ compiler: ``$CXX`` or the first of the usual names.

    Raises:
        SetupError: There is none.
    """
    wanted = os.environ.get('CXX')
    if wanted:
        # CXX may hold a launcher or flags, e.g. 'ccache g++'.
        if which(wanted.split()[0]):
            return wanted
        raise SetupError(
            f'CXX={wanted} is not a program here', 'set CXX to your C++ compiler, or unset it to use the one found'
        )
    for name in ('c++', 'g++', 'clang++'):
        if which(name):
            return name
    raise SetupError('mmcv must be compiled here, and there is no C++ compiler', COMPILER_ADVICE)


def check_headers(include: str | None = None) -> None:
    """Raises SetupError when Python's C headers are missing (Debian has a separate package for them)."""
    folder = Path(include or sysconfig.get_path('include'))
    if not (folder / 'Python.h').is_file():
        raise SetupError(f"mmcv must be compiled here, and Python's C headers are not in {folder}", HEADERS_ADVICE)
