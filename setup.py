"""Packaging of freekd_mm: what it needs, and where MIM finds its configs and tools.

Runs on any Python 3, so that pip can say itself which Python is needed: nothing of the package is imported here.
"""

import os
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# `mim train freekd_mm ...` and the doctor look for these inside the installed package.
MIM_PARTS = ('configs', 'tools', 'requirements', 'model-index.yml')


class BuildWithMim(build_py):
    """Adds ``freekd_mm/.mim``: links to the folders in an editable installation, copies in a wheel."""

    def run(self):
        """Builds the package, then its ``.mim`` folder."""
        super().run()
        if getattr(self, 'editable_mode', False):
            self._fill(ROOT / 'freekd_mm' / '.mim', link=True)
        else:
            self._fill(Path(self.build_lib) / 'freekd_mm' / '.mim', link=False)

    @staticmethod
    def _fill(mim, link):
        mim.mkdir(parents=True, exist_ok=True)
        for part in MIM_PARTS:
            target, source = mim / part, ROOT / part
            if target.is_symlink() or target.is_file():
                target.unlink()
            elif target.exists():
                shutil.rmtree(str(target))
            if link:
                target.symlink_to(os.path.relpath(str(source), str(mim)), target_is_directory=source.is_dir())
            elif source.is_file():
                shutil.copyfile(str(source), str(target))
            else:
                shutil.copytree(str(source), str(target), ignore=shutil.ignore_patterns('__pycache__', '.*'))


def read(*parts):
    """Returns the text of a file here."""
    return ROOT.joinpath(*parts).read_text(encoding='utf-8')


def mm_line(stack):
    """Returns the exact MM packages of one tested line."""
    return re.findall(
        r'^(?:onedl-)?mm\w+==\S+', read('requirements', stack + '.txt') + read('requirements', 'common.txt'), re.M
    )


setup(
    name='freekd_mm',
    version=re.search(r"__version__ = '(.+)'", read('freekd_mm', 'version.py')).group(1),
    description='Frequency-domain knowledge distillation for MMDetection and MMSegmentation',
    long_description=read('README.md'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.8',
    packages=find_packages(include=['freekd_mm', 'freekd_mm.*']),
    package_data={'freekd_mm.pages': ['*.html']},
    cmdclass={'build_py': BuildWithMim},
    # Without bounds, and no torch, mmcv, mmdet ...: installing freekd_mm must not replace what a user has; the doctor
    # says what is missing. Also not ptwt, which wavelets other than Haar need: it asks for SciPy 1.10 or newer.
    install_requires=['Jinja2', 'matplotlib'],
    extras_require={
        'openmmlab': mm_line('openmmlab'),
        'onedl': mm_line('onedl'),
        'wavelets': ['ptwt>=0.1.8', 'PyWavelets>=1.4'],
        'mmpretrain': ['mmpretrain>=1.2.0'],
        # It asks for no torch. timm has no extra: its torchvision would bring another PyTorch.
        'transformers': ['transformers>=4.46'],
        'docs': ['pdoc>=15'],
        'test': ['pytest', 'pytest-xdist', 'hypothesis', 'scipy', 'pytorch_wavelets', 'transformers>=4.46'],
    },
    classifiers=[
        'License :: OSI Approved :: Apache Software License',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
