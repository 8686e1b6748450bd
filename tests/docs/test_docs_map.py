"""The map of the code in CONTRIBUTING names every package, module beside them, and folder, and nothing else."""

from __future__ import annotations

import re

from docs_pages import ROOT

TEXT = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')
MAP = TEXT[TEXT.index('## Map of the code') : TEXT.index('## A new method')]
ROWS = dict(re.findall(r'^\| `([\w./]+)` \| (.+) \|$', MAP, re.MULTILINE))


def test_no_package_or_folder_is_missing() -> None:
    packages = [f'freekd_mm/{path.parent.name}/' for path in (ROOT / 'freekd_mm').glob('*/__init__.py')]
    modules = [f'freekd_mm/{path.name}' for path in (ROOT / 'freekd_mm').glob('*.py')]
    folders = ['tools/', 'configs/', 'speed/', 'docs/', 'tests/', 'requirements/']
    missing = sorted({*packages, *modules, *folders} - ROWS.keys() - {'freekd_mm/__init__.py', 'freekd_mm/version.py'})
    assert not missing, f'the map in CONTRIBUTING.md should have a line on {missing}'


def test_every_file_of_the_map_exists() -> None:
    wrong = []
    for place, text in ROWS.items():
        folder = ROOT / place if place.endswith('/') else (ROOT / place).parent
        names = re.findall(r'`(\w+\.py)`', text)
        wrong += [f'{place}{name}' for name in names if not (folder / name).is_file()]
        wrong += [place] if not (ROOT / place).exists() else []
    assert not wrong, f'the map in CONTRIBUTING.md names what is not there: {wrong}'
