"""The rules of the doctor: from what is installed and what imports to problems and their remedies."""

from __future__ import annotations

import importlib.util
import re
import sys
import typing
from pathlib import Path
from typing import NamedTuple

from freekd_mm.compat.versions import OLDEST_TORCH, zip_equal
from freekd_mm.doctor.pins import MM_DISTRIBUTIONS, MM_MODULES

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
    'freekd_mm.runtime.model',
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

#: The first versions that freekd_mm works with, and the last ones that it was tested with.
OLDEST = {'torch': OLDEST_TORCH, 'mmengine': (0, 8), 'mmcv': (2, 0), 'mmdet': (3, 0), 'mmsegmentation': (1, 0)}
NEWEST_TORCH = (2, 14)
#: mmdet 3.0, 3.1 and mmseg 1.0, 1.1 accept an mmcv below 2.1.0, later ones below 2.2.0.
MMCV_BELOW = {'2.1.0': '2.0.1', '2.2.0': '2.1.0'}

Versions = typing.Mapping[str, str]


class Problem(NamedTuple):
    """Something missing or clashing."""

    subject: str  # the package
    text: str  # what is wrong with it
    remedy: str  # the command that fixes it
    fatal: bool = True  # False for what only some uses need


Problems = typing.Iterator[Problem]


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
        return f'{pip("install", wanted)}   (then mmcv again, which must fit it)'
    return pip('install --no-deps', *(['--force-reinstall'] if again else []), wanted)


def replace(names: list[str], name: str, pins: Versions) -> str:
    """Returns the commands that remove some packages and install another."""
    command = install(name, pins)
    return f'{pip("uninstall -y", *names)} && {command}' if names else command


def mm_names(pins: Versions) -> dict[str, str]:
    """Returns ``{module: distribution}`` of the MM packages of the line that ``pins`` are of."""
    line = 'onedl' if 'onedl-mmcv' in pins else 'openmmlab'
    return {module: name for module, name in zip_equal(MM_MODULES, MM_DISTRIBUTIONS[line]) if name in pins}


def candidates(module: str) -> typing.Iterable[str]:
    """Returns the distributions that install an MM package."""
    index = MM_MODULES.index(module)
    return MMCV_LIKE if module == 'mmcv' else dict.fromkeys(names[index] for names in MM_DISTRIBUTIONS.values())


def numbers(version: str) -> tuple[int, ...]:
    """Returns the first two numbers of a version."""
    return tuple(map(int, re.findall(r'\d+', version)[:2]))


def accepted_mmcv(modules: typing.Sequence[str] = ('mmdet', 'mmseg')) -> dict[str, str]:
    """Reads the first mmcv that each module refuses out of its ``__init__.py``, where users change it."""
    found = {}
    for module in modules:
        spec = importlib.util.find_spec(module)
        text = Path(spec.origin).read_text(encoding='utf-8') if spec and spec.origin else ''
        bound = re.search(r"^(?:mmcv_maximum_version|MMCV_MAX)\s*=\s*'(.+)'", text, re.MULTILINE)
        if bound:
            found[module] = bound[1]
    return found


def find_unfit(installed: Versions, pins: Versions, mmcv_below: Versions, whole: bool = False) -> Problems:
    """Finds packages that are missing, clash, cannot work, or are not tested; of each package the first of these.

    With ``whole`` all packages of the line are needed in the tested version. ``mmcv_below``: see
    :func:`accepted_mmcv`.
    """
    names = mm_names(pins)
    kinds = {
        **dict.fromkeys(('torch', 'numpy', 'ptwt', 'pywavelets'), ()),
        **{n: candidates(m) for m, n in names.items()},
    }
    neither = not {names['mmdet'], names['mmseg']} & set(installed)
    wavelets = ('; needed for wavelets other than Haar', False)
    uses = {
        'ptwt': wavelets,
        'pywavelets': wavelets,
        names['mmdet']: ('; needed for detectors', whole or neither),
        names['mmseg']: ('; needed for segmenters', whole or neither),
        names.get('mmrazor', ''): ("; needed for mmrazor's own losses and algorithms", whole),
    }
    torch = installed.get('torch', '').split('+')[0]
    for name, others in kinds.items():
        here = [other for other in others or (name,) if other in installed]
        version, wanted, oldest = installed.get(name, ''), pins.get(name, ''), OLDEST.get(name, (0,))
        remedy = install(name, pins)
        if not here:
            use, fatal = uses.get(name, ('', True))
            if wanted:
                yield Problem(name, f'is not installed{use}', remedy, fatal)
        elif len(here) > 1:
            yield Problem(name, f'{" and ".join(here)} install the same files', replace(here, name, pins))
        elif here[0] in ('mmcv-lite', 'mmcv-full'):
            text = f'{here[0]} is not the mmcv with operators that MMDetection 3 needs'
            yield Problem(name, text, replace(here, name, pins))
        elif here[0] != name:
            text = f'{here[0]} belongs to the other line than the rest'
            yield Problem(name, text, replace(here, name, pins), fatal=False)
        elif numbers(version) < oldest:
            text = f'{version} is here, but freekd_mm needs {".".join(map(str, oldest))} or newer'
            yield Problem(name, text, remedy)
        elif name == 'mmcv' and (refused := _refused(installed, pins, mmcv_below)):
            yield refused
        elif name == 'numpy' and torch and numbers(torch) < (2, 3) and numbers(version) >= (2, 0):
            text = f'{version} is here, but PyTorch {torch} is compiled for NumPy 1 (2.3 is the first one for 2)'
            yield Problem(name, text, pip('install --no-deps "numpy<2"'))
        elif name == 'torch' and torch != wanted:
            known = 'newer than any tested' if numbers(torch) > NEWEST_TORCH else 'between tested ones'
            text = f'{torch} is here, {known}; {wanted} is tested; mmcv must be compiled for the one that is here'
            yield Problem(name, text, remedy, fatal=False)
        elif name not in ('torch', 'ptwt', 'pywavelets') and version != wanted:
            yield Problem(name, f'{version} is here, {wanted} is tested', remedy, whole)
    major, minor = (*numbers(torch), 0, 0)[:2]
    vision, needed = installed.get('torchvision', ''), (0, minor + (15 if major == 2 else 1))
    if torch and vision and numbers(vision) != needed:
        wanted = '.'.join(map(str, needed))
        text = f'{vision} is here, but PyTorch {torch} needs {wanted}; CrowdDet, timm and mmpretrain need it'
        command = pip('install --no-deps', f'"torchvision=={wanted}.*"')
        yield Problem('torchvision', text, f'{command}   (in a clone: make setup ENV=py311-torchvision)', False)
    opencv = [name for name in OPENCV if name in installed]
    if len(opencv) > 1:
        text = f'{" and ".join(opencv)} install the same files'
        yield Problem('opencv', text, replace(opencv, HEADLESS, pins), fatal=False)


def _refused(installed: Versions, pins: Versions, mmcv_below: Versions) -> Problem | None:
    """Returns the tightest limit on mmcv that is exceeded; a package that is too old itself has none."""
    for module, bound in sorted(mmcv_below.items(), key=lambda item: numbers(item[1])):
        name = {'mmseg': 'mmsegmentation'}.get(module, module)
        if numbers(installed.get(name, '')) >= OLDEST[name] and numbers(installed['mmcv']) >= numbers(bound):
            text = f'{installed["mmcv"]} is here, but {name} {installed[name]} accepts versions below {bound} only'
            fitting = {**pins, 'mmcv': MMCV_BELOW.get(bound, pins.get('mmcv', bound))}
            return Problem('mmcv', text, install('mmcv', fitting))
    return None


def find_broken(installed: Versions, imports: Versions, pins: Versions) -> Problems:
    """Turns failed imports into problems; of those with the same cause only the first."""
    seen = {''}
    names = mm_names(pins)
    for module in PROBES:
        error = imports.get(module, '')
        if error in seen:
            continue
        seen.add(error)
        package = module.split('.')[0]
        name = names.get(package, DISTRIBUTION_OF.get(package, package))
        missing = re.match(r"ModuleNotFoundError: No module named '(\w+)'", error)
        if missing is None:
            yield _broken(module, name, error, installed, pins)
            continue
        needed = names.get(missing[1], DISTRIBUTION_OF.get(missing[1], missing[1]))
        if needed in installed:
            text = 'is listed as installed, but its files are gone'
            yield Problem(needed, text, install(needed, pins, again=True))
        elif needed == HEADLESS:
            yield Problem('opencv', 'is not installed', install(needed, pins))
        elif needed != name:
            yield Problem(needed, f'is not installed, and {package} needs it', install(needed, pins))
    gpu = imports.get('gpu', '')
    if gpu and imports.get('mmcv_cuda') == 'not available':
        text = f'its operators are compiled for the CPU only, and there is a GPU ({gpu})'
        yield Problem(names['mmcv'], text, install(names['mmcv'], pins))


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
