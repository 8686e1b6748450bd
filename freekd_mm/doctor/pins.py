"""The tested versions, read from ``requirements/*.txt``: the one place where they are written.

Used by ``make setup`` (before anything is installed) and by the doctor: standard library only.
"""

from __future__ import annotations

import platform
import re
import sys
from pathlib import Path
from typing import NamedTuple

DEFAULT_STACK = 'openmmlab'


class Pins(NamedTuple):
    """A file of pins."""

    oldest: tuple[int, int]  # first Python that it installs on
    newest: tuple[int, int]  # last one
    tests: str = 'test'  # the file that pins what the tests need


#: Each file of pins that makes a whole environment: a STACK of ``make setup``.
PIN_SETS = {
    'openmmlab': Pins((3, 10), (3, 12)),
    'onedl': Pins((3, 10), (3, 13)),
    'py38-torch21': Pins((3, 8), (3, 9), 'test-py38'),
    'py38-torch113': Pins((3, 8), (3, 9), 'test-py38'),
    'py311-torchvision': Pins((3, 10), (3, 12)),
}
#: The environments that the test suite runs in: name, as in ``make test ENV=...``, to Python and pins.
ENVIRONMENTS = {
    'py311-torch213': ((3, 11), 'openmmlab'),
    'py38-torch21': ((3, 8), 'py38-torch21'),
    'py38-torch113': ((3, 8), 'py38-torch113'),
    'py313-onedl': ((3, 13), 'onedl'),
    'py311-torchvision': ((3, 11), 'py311-torchvision'),
}
#: The MM packages of each line by distribution name: engine, cv, detection, segmentation, razor.
MM_DISTRIBUTIONS = {
    'openmmlab': ('mmengine', 'mmcv', 'mmdet', 'mmsegmentation', 'mmrazor'),
    'onedl': ('onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection', 'onedl-mmsegmentation', 'mmrazor'),
}
#: What each of them is imported as, in the same order.
MM_MODULES = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmrazor')

_PIN = re.compile(r'^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^;\s]+)\s*(;\s*(?P<marker>.+))?$')
_MARKER = re.compile(r'^python_version\s*(?P<sign><|>=)\s*"(?P<version>\d+\.\d+)"$')


def normalize(name: str) -> str:
    """Returns a distribution's name as package indexes compare it."""
    return re.sub(r'[-_.]+', '-', name).lower()


def requirements_dir() -> Path:
    """Returns the folder of the pinned files: of the clone, or of the installed wheel."""
    package = Path(__file__).resolve().parents[1]
    installed = package / '.mim' / 'requirements'
    return installed if installed.is_dir() else package.parent / 'requirements'


def read_pins(name: str, folder: Path | None = None, python: tuple[int, int] | None = None) -> dict[str, str]:
    """Returns ``{distribution: version}`` of ``<folder>/<name>.txt``, ``-r`` lines included, for a Python."""
    folder = folder or requirements_dir()
    python = python or sys.version_info[:2]
    pins: dict[str, str] = {}
    for number, line in enumerate((folder / f'{name}.txt').read_text(encoding='utf-8').splitlines(), 1):
        line = line.split('#')[0].strip()
        if line.startswith('-r '):
            pins.update(read_pins(line[3:].strip()[: -len('.txt')], folder, python))
        elif line:
            pin = _PIN.match(line)
            if pin is None:
                raise ValueError(f"{name}.txt, line {number}: a pin should be 'name==version', but got {line!r}")
            if pin['marker'] is None or _applies(pin['marker'].strip(), python):
                pins[normalize(pin['name'])] = pin['version']
    return pins


def fitting_pins(line: str, torch: str, python: tuple[int, int]) -> str:
    """Returns the name of the pins of a line that are nearest to a PyTorch and a Python."""
    if line != DEFAULT_STACK or python >= PIN_SETS[line].oldest:
        return line
    return 'py38-torch113' if torch.startswith('1.') else 'py38-torch21'


def _applies(marker: str, python: tuple[int, int]) -> bool:
    match = _MARKER.match(marker)
    if marker == 'platform_system == "Linux"':
        return platform.system() == 'Linux'
    if match is None:
        wanted = 'python_version < or >= "X.Y", or platform_system == "Linux"'
        raise ValueError(f'a marker should be {wanted}, but got {marker!r}')
    version = tuple(map(int, match['version'].split('.')))
    return python < version if match['sign'] == '<' else python >= version
