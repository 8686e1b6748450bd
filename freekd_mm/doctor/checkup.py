"""Says on one screen whether the packages here fit together, and which command fixes what does not.

``python tools/doctor.py`` or ``python -m freekd_mm.doctor.checkup``. Other packages are imported in a child process
only, so that one that raises an error, prints or crashes cannot stop the doctor.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import distributions

from freekd_mm.doctor import rules
from freekd_mm.doctor.pins import MM_DISTRIBUTIONS, MM_MODULES, PIN_SETS, fitting_pins, normalize, read_pins
from freekd_mm.doctor.rules import PROBES, Problem, accepted_mmcv, mm_names
from freekd_mm.text import table
from freekd_mm.version import __version__

# The child keeps the real standard output for itself: packages print while they are imported.
_PROBE = """
import importlib, json, os, sys, warnings
warnings.simplefilter('ignore')
answers = os.fdopen(os.dup(1), 'w')
os.dup2(2, 1)
def answer(name, error):
    print(json.dumps([name, error]), file=answers, flush=True)
for name in sys.argv[1:]:
    answer(name, None)
    try:
        if name == 'mmrazor.models':
            importlib.import_module('freekd_mm.compat.mmrazor').install()
        importlib.import_module(name)
    except BaseException as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        answer(name, type(error).__name__ + (': ' + lines[-1] if lines else ''))
    else:
        answer(name, '')
try:
    answer('gpu', sys.modules['torch'].cuda.get_device_name())
    answer('mmcv_cuda', sys.modules['mmcv.ops'].get_compiling_cuda_version())
except BaseException:
    pass  # no GPU, or no working torch or mmcv: said above
os._exit(0)
"""


@dataclass
class Report:
    """What :func:`examine` found."""

    installed: Mapping[str, str]  # {distribution: version}
    pins: str  # the name of the pins that are nearest
    gpu: str = ''  # its name
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing that is always needed is wrong."""
        return not any(problem.fatal for problem in self.problems)

    def text(self) -> str:
        """Returns the screen."""
        system = f'{platform.system()} {platform.machine()}'
        lines = [f'freekd_mm {__version__}, Python {platform.python_version()}, {system}, GPU: {self.gpu or "none"}']
        lines += [sys.executable, '', self._table(), '']
        if not self.problems:
            lines.append('Nothing is missing or clashing.')
        for problem in sorted(self.problems, key=lambda problem: not problem.fatal):
            lines.append(f'{"WRONG" if problem.fatal else "note "} {problem.subject}: {problem.text}')
            lines.append(f'      {problem.remedy}')
        return '\n'.join(lines)

    def _table(self) -> str:
        python = sys.version_info[:2]
        sets = [name for name, about in PIN_SETS.items() if about.oldest <= python <= about.newest]
        pins = {name: read_pins(name) for name in dict.fromkeys([*sets, self.pins])}
        rows = [
            [name, self.installed.get(name, '-'), *(each.get(name, '-') for each in pins.values())]
            for name in ('torch', 'torchvision', 'numpy')
        ]
        for module in MM_MODULES:
            here = [
                _version(name, module, self.installed) for name in rules.candidates(module) if name in self.installed
            ]
            tested = (_version(mm_names(each).get(module, ''), module, each) for each in pins.values())
            rows.append([module, ' + '.join(here) or '-', *tested])
        titles = [name + (' (this one)' if name == self.pins else '') for name in pins]
        return table(rows, ['known to work together:', 'here', *titles])


def _version(name: str, module: str, versions: Mapping[str, str]) -> str:
    """Returns the version, with the distribution's name if it is not the expected one."""
    plain = name == module or (name, module) == ('mmsegmentation', 'mmseg')
    return versions.get(name, '-') if plain or name not in versions else f'{name} {versions[name]}'


def installed_distributions() -> dict[str, str]:
    """Returns ``{distribution: version}`` of all that this Python can see."""
    found: dict[str, str] = {}
    for item in distributions():
        # A half-removed package has no metadata. The first one found is the one that is imported.
        name = item.metadata['Name'] if item.metadata else None
        if name and item.version:
            found.setdefault(normalize(name), item.version)
    return found


def probe(modules: Sequence[str] = PROBES, timeout: float = 300) -> dict[str, str]:
    """Imports modules in a child process, and returns ``{module: error}``, an empty string where the import works.

    With a GPU also its name under ``'gpu'`` and the CUDA version of mmcv's operators under ``'mmcv_cuda'``.
    """
    answers: dict[str, str] = {}
    todo = list(modules)
    while todo:
        command = [sys.executable, '-c', _PROBE, *todo]
        try:
            child = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
            output, end = child.stdout, f'the import crashes Python (status {child.returncode})'
        except subprocess.TimeoutExpired as error:
            output = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ''
            end = f'the import takes more than {timeout:.0f} s'
        answers.update(map(json.loads, output.splitlines()))
        # No answer to the last one: it crashed the child. The rest gets another child.
        silent = [name for name, message in answers.items() if message is None]
        if not silent:
            break
        answers[silent[0]] = end
        todo = [name for name in todo if name not in answers]
    return answers


def find_stack(installed: Mapping[str, str]) -> str:
    """Returns the line whose packages are here, the one with more of its own; the first when there are none."""
    return max(MM_DISTRIBUTIONS, key=lambda stack: sum(name in installed for name in MM_DISTRIBUTIONS[stack][:-1]))


def obstacle() -> str | None:
    """Returns what keeps every tool from working and how to fix it, in one line, judged without importing anything."""
    problem = next((problem for problem in examine(imports={}).problems if problem.fatal), None)
    return f'{problem.subject}: {problem.text}. What to do: {problem.remedy}' if problem else None


def examine(
    stack: str | None = None,
    installed: Mapping[str, str] | None = None,
    imports: Mapping[str, str] | None = None,
    mmcv_below: Mapping[str, str] | None = None,
) -> Report:
    """Finds out what is missing or clashing; with a ``stack`` its pins should be here, whole and as tested.

    The others replace :func:`installed_distributions`, :func:`probe` and :func:`accepted_mmcv`.
    """
    installed = installed_distributions() if installed is None else installed
    imports = probe() if imports is None else imports
    mmcv_below = accepted_mmcv() if mmcv_below is None else mmcv_below
    nearest = fitting_pins(find_stack(installed), installed.get('torch', ''), sys.version_info[:2])
    report = Report(installed, stack or nearest, imports.get('gpu', ''))
    pins = read_pins(report.pins)
    report.problems += rules.find_unfit(installed, pins, mmcv_below, whole=stack is not None)
    known = {problem.subject for problem in report.problems if problem.fatal}
    # What is imported after a package that is wrong itself fails because of that one.
    names = mm_names(pins)
    sound = itertools.takewhile(lambda module: names.get(module.split('.')[0], module) not in known, PROBES)
    imports = {module: imports.get(module, '') for module in (*sound, 'gpu', 'mmcv_cuda')}
    broken = rules.find_broken(installed, imports, pins)
    report.problems += [problem for problem in broken if problem.subject not in known]
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the screen; returns 0 when all that is needed works, else 1."""
    parser = argparse.ArgumentParser(prog='doctor', description='Checks the packages that freekd_mm works with.')
    parser.add_argument('--stack', choices=PIN_SETS, help='the pins that should be here, whole and as tested')
    options = parser.parse_args(argv)
    report = examine(options.stack)
    print(report.text())
    return 0 if report.ok else 1


if __name__ == '__main__':
    sys.exit(main())
