"""Packaging of freekd_mm: what it needs, and where MIM finds its configs and tools."""

import os
import re
import shutil
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# `mim train freekd_mm ...` and the doctor look for these inside the installed package.
MIM_PARTS = ('configs', 'tools', 'requirements', 'model-index.yml')

sys.path.insert(0, str(ROOT))
from freekd_mm.doctor.pins import MM_DISTRIBUTIONS, read_pins  # noqa: E402


class BuildWithMim(build_py):
    """Adds ``freekd_mm/.mim``: links to the folders in an editable installation, copies in a wheel."""

    def run(self) -> None:
        """Builds the package, then its ``.mim`` folder."""
        super().run()
        if self.editable_mode:
            self._fill(ROOT / 'freekd_mm' / '.mim', link=True)
        else:
            self._fill(Path(self.build_lib) / 'freekd_mm' / '.mim', link=False)

    @staticmethod
    def _fill(mim: Path, link: bool) -> None:
        mim.mkdir(parents=True, exist_ok=True)
        for part in MIM_PARTS:
            target, source = mim / part, ROOT / part
            if target.is_symlink() or target.is_file():
                target.unlink()
            elif target.exists():
                shutil.rmtree(target)
            if link:
                target.symlink_to(os.path.relpath(source, mim), target_is_directory=source.is_dir())
            elif source.is_file():
                shutil.copyfile(source, target)
            else:
                shutil.copytree(source, target, ignore=shutil.ignore_patterns('__pycache__', '.*'))


def version() -> str:
    """Reads the version without importing the package."""
    text = (ROOT / 'freekd_mm' / 'version.py').read_text(encoding='utf-8')
    return re.search(r"__version__ = '(.+)'", text)[1]


def mm_line(stack: str) -> list[str]:
    """Returns the exact MM packages of one tested line."""
    pins = read_pins(stack, ROOT / 'requirements')
    return [f'{name}=={pins[name]}' for name in MM_DISTRIBUTIONS[stack]]


setup(
    name='freekd_mm',
    version=version(),
    description='Frequency-domain knowledge distillation for MMDetection and MMSegmentation',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=['freekd_mm', 'freekd_mm.*']),
    package_data={'freekd_mm.pages': ['*.html']},
    cmdclass={'build_py': BuildWithMim},
    # No torch, mmcv, mmdet ... here: installing freekd_mm must not replace what a user has. For the same
    # reason PyWavelets has an upper bound where older NumPy is still in use: 1.9 asks for NumPy >= 1.25.
    install_requires=[
        'Jinja2>=3.0',
        'matplotlib>=3.5',
        'ptwt>=0.1.8',
        'PyWavelets>=1.4,<1.9; python_version < "3.12"',
        'PyWavelets>=1.4; python_version >= "3.12"',
    ],
    extras_require={
        'openmmlab': mm_line('openmmlab'),
        'onedl': mm_line('onedl'),
        'mmpretrain': ['mmpretrain>=1.2.0'],
        'docs': ['pdoc>=15'],
        'test': ['pytest', 'pytest-xdist', 'hypothesis', 'scipy', 'pytorch_wavelets'],
    },
    classifiers=[
        'License :: OSI Approved :: Apache Software License',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
