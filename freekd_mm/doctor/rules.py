"""The rules of the doctor: from what is installed and what imports to problems and their remedies."""

from __future__ import annotations

import re
import sys
import typing
from dataclasses import dataclass

from freekd_mm.compat.versions import zip_equal
from freekd_mm.doctor.pins import MM_DISTRIBUTIONS, MM_MODULES, STACKS

#: What the doctor imports, in the order in which the packages depend on each other.
PROBES = (
    'freekd_mm',
    'numpy',
    'torch',
    'cv2',
    'mmengine',
    'mmcv',
    'mmcv.ops',
    'mmdet.models',
    'mmdet.datasets',
    'mmseg.models',
    'mmseg.datasets',
    'mmrazor.models',
    'freekd_mm.losses',
    'freekd_mm.prompts',
    'freekd_mm.connectors',
    'freekd_mm.runtime',
)
HEADLESS = 'opencv-python-headless'
OPENCV = (HEADLESS, 'opencv-python', 'opencv-contrib-python', 'opencv-contrib-python-headless')
#: Distributions that install the package ``mmcv``.
MMCV_LIKE = ('mmcv', 'onedl-mmcv', 'mmcv-lite', 'mmcv-full')
#: Modules whose distribution has another name.
DISTRIBUTION_OF = {
    'cv2': HEADLESS,
    'PIL': 'pillow',
    'yaml': 'pyyaml',
    'pywt': 'pywavelets',
    'ordered_set': 'ordered-set',
    'dateutil': 'python-dateutil',
    'imgaug': 'imaug',
    'skimage': 'scikit-image',
}

Versions = typing.Mapping[str, str]


@dataclass(frozen=True)
class Problem:
    """Something missing or clashing.

    Attributes:
        subject: The package.
        text: What is wrong with it.
        remedy: The command that mends it.
        fatal: False for what only some uses need.
    """

    subject: str
    text: str
    remedy: str
    fatal: bool = True


def pip(*arguments: str) -> str:
    """Returns a pip command for this Python."""
    return f'{sys.executable} -m pip {" ".join(arguments)}'


def install(name: str, pins: Versions, again: bool = False) -> str:
    """Returns the command that installs the tested version of a package and nothing else."""
    wanted = f'{name}=={pins[name]}' if name in pins else name
    if name in ('mmcv', 'onedl-mmcv'):
        # Compiled for the PyTorch that is here; pip's cache may hold one for another.
        flags = '--no-deps --no-build-isolation --no-cache-dir --force-reinstall'
        return f'MMCV_WITH_OPS=1 {pip("install", flags, f"--no-binary={name}", wanted)}   (in a clone: make setup)'
    if name == 'torch':
        return pip('install', wanted)
    return pip('install --no-deps', *(['--force-reinstall'] if again else []), wanted)


def replace(names: list[str], name: str, pins: Versions) -> str:
    """Returns the commands that remove some packages and install another."""
    command = install(name, pins)
    return f'{pip("uninstall -y", *names)} && {command}' if names else command


def mm_names(pins: Versions) -> dict[str, str]:
    """Returns ``{module: distribution}`` of the MM packages of the line that ``pins`` are of."""
    line = 'onedl' if 'onedl-mmcv' in pins else 'openmmlab'
    return dict(zip_equal(MM_MODULES, MM_DISTRIBUTIONS[line]))


def find_clashes(installed: Versions, pins: Versions) -> list[Problem]:
    """Finds distributions that write the same files."""
    problems = []
    for module, wanted in mm_names(pins).items():
        index = MM_MODULES.index(module)
        names = MMCV_LIKE if module == 'mmcv' else dict.fromkeys(MM_DISTRIBUTIONS[stack][index] for stack in STACKS)
        here = [name for name in names if name in installed]
        if len(here) > 1:
            text = f'{" and ".join(here)} install the same files'
            problems.append(Problem(module, text, replace(here, wanted, pins)))
        elif here and here[0] in ('mmcv-lite', 'mmcv-full'):
            text = f'{here[0]} is not the mmcv with operators that MMDetection 3 needs'
            problems.append(Problem(module, text, replace(here, wanted, pins)))
        elif here and here[0] != wanted:
            text = f'{here[0]} belongs to the other line than the rest'
            problems.append(Problem(module, text, replace(here, wanted, pins), fatal=False))
    opencv = [name for name in OPENCV if name in installed]
    if len(opencv) > 1:
        text = f'{" and ".join(opencv)} install the same files'
        problems.append(Problem('opencv', text, replace(opencv, HEADLESS, pins), fatal=False))
    return problems


def find_missing(installed: Versions, pins: Versions, whole: bool = False) -> list[Problem]:
    """Finds packages that are not there; with ``whole`` each one of the line is needed."""
    names = mm_names(pins)
    others = {names['mmengine']: ('mmengine', 'onedl-mmengine'), names['mmcv']: MMCV_LIKE}
    problems = [
        Problem(name, 'is not installed', install(name, pins))
        for name in ('torch', 'numpy', names['mmengine'], names['mmcv'], 'ptwt', 'pywavelets')
        if not any(other in installed for other in others.get(name, (name,)))
    ]
    neither = names['mmdet'] not in installed and names['mmseg'] not in installed
    uses = {
        'mmdet': 'needed for detectors',
        'mmseg': 'needed for segmenters',
        'mmrazor': "needed for mmrazor's own losses and algorithms",
    }
    for module, use in uses.items():
        if names[module] not in installed:
            fatal = whole or (neither and module != 'mmrazor')
            text = f'is not installed; {use}'
            problems.append(Problem(names[module], text, install(names[module], pins), fatal))
    return problems


def find_other_versions(installed: Versions, pins: Versions, fatal: bool = False) -> list[Problem]:
    """Finds packages of the line in another version than the tested one."""
    problems = [
        Problem(name, f'{installed[name]} is here, {pins[name]} is tested', install(name, pins), fatal)
        for name in ('numpy', *mm_names(pins).values())
        if name in installed and installed[name] != pins[name]
    ]
    torch = installed.get('torch', '').split('+')[0]
    if torch and torch != pins['torch']:
        text = f'{torch} is here, {pins["torch"]} is tested; mmcv must be compiled for the one that is here'
        problems.append(Problem('torch', text, install('torch', pins), fatal=False))
    return problems


def find_broken(installed: Versions, imports: Versions, pins: Versions) -> list[Problem]:
    """Turns failed imports into problems; of those with the same cause only the first."""
    problems: list[Problem] = []
    seen: set[str] = set()
    names = mm_names(pins)
    for module in PROBES:
        error = imports.get(module, '')
        if not error or error in seen:
            continue
        seen.add(error)
        package = module.split('.')[0]
        name = names.get(package, DISTRIBUTION_OF.get(package, package))
        missing = re.match(r"ModuleNotFoundError: No module named '(\w+)'", error)
        if missing is None:
            problems.append(_broken(module, name, error, installed, pins))
            continue
        needed = names.get(missing[1], DISTRIBUTION_OF.get(missing[1], missing[1]))
        if needed in installed:
            text = 'is listed as installed, but its files are gone'
            problems.append(Problem(needed, text, install(needed, pins, again=True)))
        elif needed == HEADLESS:
            problems.append(Problem('opencv', 'is not installed', install(needed, pins)))
        elif needed != name:
            problems.append(Problem(needed, f'is not installed, and {package} needs it', install(needed, pins)))
    gpu = imports.get('gpu', '')
    if gpu and imports.get('mmcv_cuda') == 'not available':
        text = f'its operators are compiled for the CPU only, and there is a GPU ({gpu})'
        problems.append(Problem(names['mmcv'], text, install(names['mmcv'], pins)))
    return problems


def _broken(module: str, name: str, error: str, installed: Versions, pins: Versions) -> Problem:
    text = f'import {module} fails: {error[:240]}'
    if module == 'cv2' and re.search(r'lib(GL|gthread|glib|SM|Xext|xcb)\b', error):
        here = [opencv for opencv in OPENCV if opencv in installed]
        return Problem('opencv', f'{text} (a server needs the headless build)', replace(here, HEADLESS, pins))
    if module == 'mmcv.ops':
        text = f'its operators do not load; they were left out or compiled for another PyTorch: {error[:200]}'
    names = mm_names(pins)
    for wanted in ('mmcv', 'mmengine'):
        # mmdet and mmseg assert the versions they accept, e.g. 'MMCV==2.2.0 is used but incompatible ...'.
        if f'{wanted.upper()}==' in error.upper():
            return Problem(names[wanted], text, install(names[wanted], pins))
    if name == 'freekd_mm':
        again = pip('install --no-deps --force-reinstall freekd_mm')
        return Problem(module, text, f'{again}   (in a clone: make setup)')
    return Problem(name, text, install(name, pins, again=True))
