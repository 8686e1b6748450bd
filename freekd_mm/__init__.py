"""Frequency-domain knowledge distillation for MMDetection and MMSegmentation.

Every Python 3 can read this file: an environment that is too old gets one line.
"""

import sys
import typing

from freekd_mm.version import __version__


def _refuse(oldest: str, here: str, command: str) -> None:
    """Raises ImportError with one line; only that is printed if nobody catches it."""
    line = 'freekd_mm {} needs {} or newer, but this is {}: {}'.format(__version__, oldest, here, command)
    refusal, show = ImportError(line), sys.excepthook

    def show_line(kind: type, error: BaseException, trace: 'typing.Any') -> None:
        if error is refusal:
            sys.stderr.write(line + '\n')
        else:
            show(kind, error, trace)

    sys.excepthook = show_line
    raise refusal


def _check_versions() -> None:
    if sys.version_info < (3, 8):
        here = 'Python {}.{} ({})'.format(sys.version_info[0], sys.version_info[1], sys.executable)
        _refuse('Python 3.8', here, 'use another Python, for example 3.11')
    from freekd_mm.compat.versions import OLDEST_TORCH, installed_torch

    torch = installed_torch() or OLDEST_TORCH
    if torch < OLDEST_TORCH:
        command = sys.executable + ' -m pip install torch==2.1.2, then an mmcv that fits it (docs/install.md)'
        _refuse('PyTorch {}.{}'.format(*OLDEST_TORCH), 'PyTorch {}.{}'.format(*torch), command)


_check_versions()

__all__ = ['ImageFolder', '__version__', 'distill', 'export', 'pretrain']


def __getattr__(name: str) -> 'typing.Any':
    """Loads the Python API when it is used: importing the package loads neither torch nor the MM packages."""
    if name not in __all__:
        raise AttributeError('module freekd_mm has no attribute {!r}'.format(name))
    from importlib import import_module

    return getattr(import_module('freekd_mm.datasets.unlabelled' if name == 'ImageFolder' else 'freekd_mm.api'), name)
